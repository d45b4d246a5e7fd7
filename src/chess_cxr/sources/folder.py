"""Films in a folder tree, with a table beside them or without one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.records import SPLITS, SourceFilm, UsageError
from chess_cxr.sources.demographics import parse_age_years, parse_sex, parse_view
from chess_cxr.sources.tables import read_table

FIELDS = ("path", "uid", "patient", "study", "view", "age", "sex", "split", "class", "labels")
PATH_COLUMNS = ("file", "path", "Path", "filename", "file_name", "image", "Image Index", "dicom_path", "ImageID")
_SAME_NAME = ("patient", "study", "view", "age", "sex", "split")
_BLANK = frozenset({"", "nan", "NaN", "NA", "N/A", "null", "None"})
_SPLIT_NAMES = {"training": "train", "valid": "val", "validate": "val", "validation": "val", "dev": "val"} | {
    "testing": "test"
}
_TABLES = (".csv", ".tsv", ".tab", ".parquet", ".xls", ".xlsx", ".ods", ".csv.gz", ".tsv.gz")
_TEXTS = (".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".html", ".htm", ".pdf")
_OTHERS = (".doc", ".docx", ".rtf", ".log", ".py", ".ipynb", ".sh", ".bat", ".exe", ".db", ".md5", ".sha256", ".lock")
_NOT_FILMS = (*_TABLES, *_TEXTS, *_OTHERS, "dicomdir", "license", "readme", "makefile")


def read_folder(
    sources: Sequence[Path], table: Path | None = None, columns: Mapping[str, str] | None = None
) -> list[SourceFilm]:
    """List the films below `sources` (folders or single files), or those a table names.

    Without a table every regular file counts, also one without extension; hidden files, links out of the
    tree and what is no image by its extension (.csv, .txt, .json, DICOMDIR ...) are left out.  The uid is
    the path below its source, after the name of the source where there are several.

    A table (CSV, TSV, Parquet; may be compressed) holds one row a film.  `columns` maps fields to its
    columns: path, uid, patient, study, view, age, sex, split, class (one label a value, blank = all
    unknown) and labels (several columns, separated by commas).  Labels are 1, 0, blank, or -1, which is
    "uncertain" and read as unknown.  A field that is not mapped is taken from the column of exactly its
    name (patient, study, view, age, sex, split); map it to "" to leave such a column out.  A film that the
    table names and the tree lacks is listed all the same: it ends in the quarantine, not in silence.

    Raises `UsageError` where there is nothing to read, for columns that do not exist, a uid twice, a label
    that is no number, and paths that lead out of the sources.
    """
    _check_sources(sources)
    if table is None:
        if columns:
            raise UsageError("columns are mapped but no table is given; name it with --table")
        films = [SourceFilm(path=path, uid=uid) for path, uid in _walk(sources)]
        if not films:
            raise UsageError(f"no image file in {', '.join(map(str, sources))}")
    else:
        films = _read_rows(read_table(table), sources, columns or {})
    _check_uids(films)
    return films


def _check_sources(sources: Sequence[Path]) -> None:
    if not sources:
        raise UsageError("no source folder is given")
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source} does not exist")


def _check_uids(films: Sequence[SourceFilm]) -> None:
    repeated = [uid for uid, count in Counter(film.uid for film in films).items() if count > 1]
    if repeated:
        raise UsageError(
            f"{len(repeated)} uid{'s occur' if len(repeated) > 1 else ' occurs'} more than once, "
            f"first {repeated[0]!r}; every film needs a uid of its own"
        )


# ---------------------------------------------------------------- tree


def _walk(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for source, prefix in zip(sources, _name_roots(sources), strict=True):
        if source.is_file():
            yield source, prefix + source.name
            continue
        inside = os.path.realpath(source) + os.sep
        for folder, subfolders, names in os.walk(source):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = os.path.join(folder, name)
                if _may_be_film(name) and _is_own_file(path, inside):
                    yield Path(path), prefix + Path(path).relative_to(source).as_posix()


def _name_roots(sources: Sequence[Path]) -> list[str]:
    if len(sources) == 1:
        return [""]
    return [f"{source.resolve().name}/" if source.is_dir() else "" for source in sources]


def _may_be_film(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(_NOT_FILMS)


def _is_own_file(path: str, inside: str) -> bool:
    if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
        return False
    return os.path.isfile(path)


# ---------------------------------------------------------------- table


def _read_rows(frame: pd.DataFrame, sources: Sequence[Path], columns: Mapping[str, str]) -> list[SourceFilm]:
    chosen = _choose_columns(frame, columns)
    texts = {
        field: _read_text(frame[chosen[field]]) if chosen.get(field) else [""] * len(frame)
        for field in FIELDS
        if field != "labels"
    }
    paths = _resolve_paths(texts["path"], sources, chosen["path"])
    uids = [uid or path for uid, path in zip(texts["uid"], texts["path"], strict=True)]
    splits = [_parse_split(text, chosen.get("split", "")) for text in texts["split"]]
    labels = _read_labels(frame, chosen, texts["class"])
    age, sex, view = cache(parse_age_years), cache(parse_sex), cache(parse_view)
    return [
        SourceFilm(
            path=paths[row],
            uid=uids[row],
            patient=texts["patient"][row],
            study=texts["study"][row],
            view=view(texts["view"][row]),
            age_years=age(texts["age"][row]),
            sex=sex(texts["sex"][row]),
            split=splits[row],
            labels=labels[row],
        )
        for row in range(len(frame))
    ]


def _choose_columns(frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Return which column fills each field; "" where none does."""
    if unknown := [field for field in columns if field not in FIELDS]:
        raise UsageError(f"no field is named {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    chosen = {field: field for field in _SAME_NAME if field in frame.columns} | dict(columns)
    if not chosen.get("path"):
        chosen["path"] = next((name for name in PATH_COLUMNS if name in frame.columns), "")
    if not chosen["path"]:
        raise UsageError(f"no column holds the files; map one with path=NAME: {_list_columns(frame)}")
    asked = [name for field, name in chosen.items() if field != "labels" and name]
    asked += _split_names(chosen.get("labels", ""))
    if missing := [name for name in asked if name not in frame.columns]:
        raise UsageError(f"the table has no column {missing[0]!r}; {_list_columns(frame)}")
    if doubled := [name for name in asked if list(frame.columns).count(name) > 1]:
        raise UsageError(f"the table has more than one column {doubled[0]!r}")
    return chosen


def _list_columns(frame: pd.DataFrame) -> str:
    return f"it has {', '.join(map(str, frame.columns))}"


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _read_text(column: pd.Series) -> list[str]:
    """Return the column as text; whole numbers that a blank has turned into floats lose their ".0"."""
    if pd.api.types.is_float_dtype(column):
        whole = column.isna() | (column == column.round())
        return ["" if pd.isna(v) else str(int(v)) if w else str(v) for v, w in zip(column, whole, strict=True)]
    return ["" if pd.isna(value) or str(value).strip() in _BLANK else str(value).strip() for value in column]


def _parse_split(text: str, column: str) -> str:
    split = _SPLIT_NAMES.get(text.lower(), text.lower())
    if split and split not in SPLITS:
        raise UsageError(
            f"column {column!r} holds {text!r}, which is no split; use train, val or test, or leave it out"
        )
    return split


def _resolve_paths(texts: Sequence[str], sources: Sequence[Path], column: str) -> list[Path]:
    """Return the files that the table names; with several sources the first that has the file counts."""
    roots = [os.path.abspath(source if source.is_dir() else source.parent) for source in sources]
    paths = []
    for row, text in enumerate(texts, start=1):
        if not text:
            raise UsageError(f"row {row} of column {column!r} names no file")
        inside = [
            path for root in roots if (path := os.path.normpath(os.path.join(root, text))).startswith(root + os.sep)
        ]
        if not inside:
            raise UsageError(f"row {row} of column {column!r} leads out of {', '.join(map(str, sources))}")
        found = inside[0] if len(inside) == 1 else next((path for path in inside if os.path.exists(path)), inside[0])
        paths.append(Path(found))
    return paths


def _read_labels(frame: pd.DataFrame, chosen: Mapping[str, str], classes: Sequence[str]) -> list[dict[str, float]]:
    """Return the labels of each row; every row holds every name."""
    by_name = {name: _read_label(frame[name], name) for name in _split_names(chosen.get("labels", ""))}
    if chosen.get("class"):
        for value in sorted(set(classes) - {""}):
            if value in by_name:
                raise UsageError(f"the class {value!r} and a label column have the same name")
            by_name[value] = np.array([np.nan if not held else float(held == value) for held in classes])
    names = list(by_name)
    columns = [values.tolist() for values in by_name.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if names else [{}] * len(frame)


def _read_label(column: pd.Series, name: str) -> np.ndarray:
    texts = pd.Series(_read_text(column))
    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero((texts != "").to_numpy() & ~np.isin(values, (-1.0, 0.0, 1.0)))
    if len(wrong):
        raise UsageError(
            f"column {name!r} holds something else than 1, 0, -1 or blank in row {wrong[0] + 1} "
            f"({len(wrong)} such row{'s' if len(wrong) > 1 else ''}); labels are numbers"
        )
    return np.where(values == -1, np.nan, values)
