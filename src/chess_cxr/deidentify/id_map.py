"""Write the map from hashed uids to original paths, for the owner of the films only."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chess_cxr.files.whole import flush_file, flush_folder
from chess_cxr.records import UsageError
from chess_cxr.store import is_store

ID_MAP_COLUMNS = ("uid", "path")


@contextlib.contextmanager
def open_id_map(path: Path | None) -> Iterator[Callable[[Sequence[str]], object] | None]:
    """Yield a function that writes a row to the CSV file `path`; the file (mode 0600) appears if the block succeeds."""
    if path is None:
        yield None
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise UsageError(f"--id-map {path} cannot be written ({error.strerror}); choose another place") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ID_MAP_COLUMNS)
            yield writer.writerow
        flush_file(partial)
        os.replace(partial, path)
        flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_id_map(id_map: Path | None, out: Path | str, *beside: Path | str) -> None:
    """Raise `UsageError` if the map exists or would lie in `out` or replace one of the files `beside` it."""
    if id_map is None:
        return
    if (id_map.exists() or id_map.is_symlink()) and not (is_store(out) and _is_id_map(id_map)):
        raise UsageError(f"{id_map} exists already; choose another --id-map or remove it")
    if isinstance(out, str):
        return
    place, store = Path(os.path.realpath(id_map)), Path(os.path.realpath(out))
    if store in (place, *place.parents) or place in [Path(os.path.realpath(other)) for other in beside]:
        raise UsageError(f"--id-map {id_map} lies where the store is written; choose another place for it")


def _is_id_map(path: Path) -> bool:
    """Whether a file is such a map, which an ingest that was stopped at its very end may overwrite."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                return file.readline(100).rstrip() == ",".join(ID_MAP_COLUMNS)
    return False
