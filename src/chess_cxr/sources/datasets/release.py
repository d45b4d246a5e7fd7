"""Find the folder of a data set, read its tables and locate their films."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from chess_cxr.files.listing import list_location
from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import DataSet, Release, Table, is_blank


def open_release(entry: DataSet, root: Path) -> Release:
    """Find the set in `root`, its own folder or that folder's parent, and read its tables.

    Raises `UsageError` for a missing set, table or column, and for an unknown column.
    """
    own = _find_own_folder(entry, root)
    tables = {}
    for name, table in entry.tables.items():
        path = _find_table(table, own)
        if path is not None:
            tables[name] = read_published(path, table, entry.title)
        elif table.needed:
            raise UsageError(f"{entry.title} needs {' or '.join(table.names)} in {own}; there is none")
    return Release(own, tables)


def _find_own_folder(entry: DataSet, root: Path) -> Path:
    if not root.is_dir():
        raise UsageError(f"{root} is no folder")
    if _has_mark(entry, root):
        return root
    below = [path for name in entry.folders if (path := find_entry(root, name)) and _has_mark(entry, path)]
    if not below:
        raise UsageError(
            f"no {entry.title} in {root}: neither it nor {', '.join(entry.folders)} below it has "
            f"{' or '.join(entry.marks)}"
        )
    if len(below) > 1:
        raise UsageError(f"{root} has more than one {entry.title}; name one: {', '.join(map(str, below))}")
    return below[0]


def _has_mark(entry: DataSet, folder: Path) -> bool:
    return any(find_entry(folder, mark) for mark in entry.marks)


def find_entry(folder: Path, name: str) -> Path | None:
    """Return the path of `name` ("a/b.txt") below `folder`, whatever its case, None if there is none."""
    for part in PurePosixPath(name).parts:
        if (folder / part).exists():
            folder = folder / part
            continue
        if not folder.is_dir():
            return None
        same = sorted(entry for entry in os.listdir(folder) if entry.casefold() == part.casefold())
        if not same:
            return None
        folder = folder / same[0]
    return folder


def _find_table(table: Table, folder: Path) -> Path | None:
    found = (find_entry(folder, name) for name in table.names)
    return next((path for path in found if path is not None and path.is_file()), None)


def read_published(path: Path, table: Table, title: str) -> pd.DataFrame:
    """Read a table and check its columns against the published ones; blanks of all kinds stay."""
    frame = table.read(path)
    frame = frame.rename(columns=_find_renamed((*table.columns, *table.optional)))
    present = list(frame.columns)
    if repeated := [name for name in present if present.count(name) > 1]:
        raise UsageError(f"{path} has the column {repeated[0]!r} more than once")
    columns, optional = ([name.split("|")[0] for name in names] for names in (table.columns, table.optional))
    if missing := [name for name in columns if name not in frame.columns]:
        raise UsageError(f"{path} has no {_quote(missing)}, which the published {title} has")
    if extra := [name for name in frame.columns if name not in columns and name not in optional]:
        raise UsageError(f"{path} has {_quote(extra)}, which the published {title} lacks; is it another release?")
    return frame.drop(columns=[name for name in table.drop if name in frame.columns])


def _find_renamed(published: Iterable[str]) -> dict[str, str]:
    """Map the alternative names of columns to their first ones."""
    return {other: name.split("|")[0] for name in published for other in name.split("|")[1:]}


def _quote(names: list[str]) -> str:
    word = "column" if len(names) == 1 else "columns"
    return f"{word} {', '.join(repr(name) if name else 'without a name' for name in names)}"


# ---------------------------------------------------------------- files


def index_files(folder: Path, endings: tuple[str, ...], below: tuple[str, ...] = ()) -> dict[str, str]:
    """Map the name of each file below `folder`, in lower case, to its path: {"1.png": "images_001/images/1.png"}.

    below: folders to search, all by default.  Hidden files, such as `._` files of macOS, are skipped.
    Raises `UsageError` for two files of one name, since the table does not tell which one it means.
    """
    found: dict[str, str] = {}
    starts = [path for name in below if (path := find_entry(folder, name)) and path.is_dir()] or [folder]
    for start in starts:
        for location, _ in list_location(start, build_keep(endings)):
            name, relative = Path(location).name.casefold(), Path(location).relative_to(folder).as_posix()
            if found.setdefault(name, relative) != relative:
                raise UsageError(
                    f"{folder} holds two files {Path(location).name}, in {os.path.dirname(found[name])} and in "
                    f"{os.path.dirname(relative)}; keep one of the copies"
                )
    return found


def build_keep(endings: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that tells whether a name, in any case, has one of these endings."""
    return lambda name: name.lower().endswith(endings)


def locate_films(
    frame: pd.DataFrame, column: str, files: dict[str, str], ending: str, expected: str, add_unlisted: bool = False
) -> pd.DataFrame:
    """Add the column "path" to a table whose `column` holds file names, with or without the `ending`.

    expected: folder in which a film missing from `files` is listed, to be quarantined.
    add_unlisted: append a row for each file that no row names, blank but for name and path.
    """
    full = [name if name.casefold().endswith(ending) else name + ending for name in frame[column].str.strip()]
    blank = frame[column].map(is_blank)
    paths = [
        "" if no else files.get(name.casefold(), f"{expected}/{name}") for name, no in zip(full, blank, strict=True)
    ]
    frame = frame.assign(path=paths)
    if add_unlisted:
        named = set(paths)
        rest = sorted(path for path in files.values() if path not in named)
        added = pd.DataFrame({"path": rest, column: [_strip_ending(path, ending) for path in rest]}, dtype=object)
        frame = pd.concat([frame, added], ignore_index=True).fillna("")
    return frame


def _strip_ending(path: str, ending: str) -> str:
    name = PurePosixPath(path).name
    return name[: -len(ending)] if name.lower().endswith(ending) else name
