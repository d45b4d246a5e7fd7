"""List the films in a folder tree or below a URL, with or without a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chess_cxr.files.listing import find_kind, list_location
from chess_cxr.files.locations import simplify_location
from chess_cxr.records import ChessError, FilmListing, SourceFilm, UsageError
from chess_cxr.sources.read_table import read_table
from chess_cxr.sources.tables import build_table_listing

_TABLES = (".csv", ".tsv", ".tab", ".parquet", ".xls", ".xlsx", ".ods", ".csv.gz", ".tsv.gz")
_TEXTS = (".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".html", ".htm", ".pdf")
_OTHERS = (".doc", ".docx", ".rtf", ".log", ".py", ".ipynb", ".sh", ".bat", ".exe", ".db", ".md5", ".sha256", ".lock")
_NOT_FILMS = (*_TABLES, *_TEXTS, *_OTHERS, "dicomdir", "license", "readme", "makefile")


def read_folder(
    sources: Sequence[Path | str], table: Path | str | None = None, columns: Mapping[str, str] | None = None
) -> FilmListing:
    """List the films below `sources` (folders, single files or URLs of either), or those that a table names.

    Only names are read.  Without a table, each iteration walks the tree with the names of one folder in memory; with
    one, the table stays in memory and its films are built on demand.

    Without a table every regular file is a film, with or without extension.  Left out are hidden files, stores, links
    to nothing or out of the tree, and files that are no images by extension (.csv, .txt, .json, DICOMDIR ...).  The uid
    is the path relative to the source.  With several sources the name of the source comes first, and as many folders
    above it as tell all sources apart.

    A table (CSV, TSV, Parquet; may be compressed) has one row a film.  `columns` maps fields to its columns: path, uid,
    patient, study, view, age, sex, split, class (one label a value, blank = all unknown), labels (several columns,
    separated by commas), study_date (YYYYMMDD or YYYY-MM-DD), manufacturer and site.  Labels are 1, 0, blank, or -1
    for `UNCERTAIN`.  An unmapped field is read from the column of the same name (patient, study, view, age, sex, split,
    study_date, manufacturer); map it to "" to ignore that column.  Paths and uids are literal, spaces and words such as
    NA included; without a uid, the path in its simplest spelling is the uid.  A film that the table names but the tree
    lacks is listed too and ends in the quarantine.  With several sources each film is searched for when listed, which
    costs a request over a network.

    Raises `UsageError` if there is nothing to read, for missing columns, a repeated file or uid, a label that is no
    number, paths that lead out of the sources, and overlapping sources.  The iteration raises it for a table's film
    that is a link out of its source, and `ChessError` for a folder that cannot be listed.
    """
    roots = [simplify_location(source) for source in sources]
    kinds = _find_kinds(roots)
    if table is not None:
        folders = [root if kind == "folder" else _get_parent(root) for root, kind in zip(roots, kinds, strict=True)]
        return build_table_listing(read_table(table), folders, columns or {})
    if columns:
        raise UsageError("columns are mapped but no table is given; name it with --table")
    prefixes = _name_roots(roots, kinds)

    def walk() -> Iterator[tuple[Path | str, str]]:
        for root, kind, prefix in zip(roots, kinds, prefixes, strict=True):
            yield from _walk(root, kind, prefix)

    if next(walk(), None) is None:
        raise UsageError(f"no image file in {', '.join(map(str, roots))}")
    return FilmListing(
        label_names=(),
        list_films=lambda: (SourceFilm(path=location, uid=uid) for location, uid in walk()),
        count=lambda: sum(1 for _ in walk()),
        described=False,
    )


def _find_kinds(roots: Sequence[Path | str]) -> list[str]:
    if not roots:
        raise UsageError("no source folder is given")
    kinds = []
    for root in roots:
        try:
            kind = find_kind(root)
        except OSError as error:
            raise _describe(root, error) from None
        if not kind:
            raise UsageError(f"{root} does not exist")
        kinds.append(kind)
    return kinds


def _describe(root: Path | str, error: OSError) -> ChessError:
    """Return an error with advice, without names of folders below the source, which may name patients."""
    if isinstance(error, PermissionError):
        place = "the rights of its folders" if isinstance(root, Path) else "the credentials in the environment"
        return UsageError(f"no permission to list {root}; check {place}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ChessError(f"a folder in {root} was removed while it was listed; start again")
    if isinstance(error, ConnectionError):
        return ChessError(f"the object store of {root} cannot be reached; check the network and AWS_ENDPOINT_URL")
    return ChessError(f"{root} cannot be listed ({error.strerror or type(error).__name__})")


def _get_parent(root: Path | str) -> Path | str:
    return root.parent if isinstance(root, Path) else root.rpartition("/")[0]


def _walk(root: Path | str, kind: str, prefix: str) -> Iterator[tuple[Path | str, str]]:
    if kind != "folder":
        yield root, prefix
        return
    try:
        for location, relative in list_location(root, _may_be_film):
            yield location, prefix + relative
    except OSError as error:
        raise _describe(root, error) from None


def _may_be_film(name: str) -> bool:
    return not name.lower().endswith(_NOT_FILMS)


def _name_roots(roots: Sequence[Path | str], kinds: Sequence[str]) -> list[str]:
    """Return a prefix for the uids of each source: as many last parts of its path as tell all sources apart.

    A single folder has none.  The prefix of a file is its whole uid.
    """
    parts = [_split_location(root) for root in roots]
    if len(roots) == 1:
        return ["" if kinds[0] == "folder" else parts[0][-1]]
    for one, (first, kind) in enumerate(zip(parts, kinds, strict=True)):
        for other, second in enumerate(parts):
            if one != other and first == second:
                raise UsageError(f"the source {roots[one]} occurs more than once; name it once")
            if one != other and kind == "folder" and second[: len(first)] == first:
                raise UsageError(f"{roots[other]} lies inside {roots[one]}; name one of them")
    depth = next(depth for depth in range(1, 1000) if len({part[-depth:] for part in parts}) == len(parts))
    names = ["/".join(part[-depth:]) for part in parts]
    return [f"{name}/" if kind == "folder" else name for name, kind in zip(names, kinds, strict=True)]


def _split_location(root: Path | str) -> tuple[str, ...]:
    if isinstance(root, Path):
        return Path(os.path.realpath(root)).parts
    scheme, _, rest = root.partition("://")
    bucket, *key = rest.split("/")
    return (f"{scheme}://{bucket}", *key)
