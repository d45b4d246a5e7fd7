"""The files that an ingest writes beside its store: the lock, the list of films left out, and the map of the uids."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from chess_cxr.locations import is_url, write_location
from chess_cxr.records import ChessError, UsageError
from chess_cxr.store import is_store

ID_MAP_COLUMNS = ("uid", "path")


@contextlib.contextmanager
def lock_store(out: Path | str) -> Iterator[None]:
    """Keep a second ingest on this machine from writing the same store; object stores have no such lock."""
    if is_url(out):
        yield
        return
    import fcntl

    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our opening and our locking it.
            held = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError:  # a file system without locks: of two writers the last goes on, as in an object store
            held = True
        if not held:
            raise ChessError(f"another ingest is writing {out}; wait for it or choose another --out")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def find_quarantine(out: Path | str) -> Path | str:
    """Return where the list of the films that are left out of the store `out` is written."""
    if isinstance(out, Path):
        return out.with_name(f"{out.name}.quarantine.csv")
    return f"{out.rstrip('/')}.quarantine.csv"


def write_quarantine(out: Path | str, rows: Iterable[tuple[str, str]]) -> None:
    """Write uid and reason of each film that is left out of the store `out`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows((("uid", "reason"), *rows))
    write_location(find_quarantine(out), text.getvalue().encode())


def check_id_map(id_map: Path | None, out: Path | str) -> None:
    """Raise `UsageError` where the map would meet the store, what is written beside it or anything that exists."""
    if id_map is None:
        return
    if (id_map.exists() or id_map.is_symlink()) and not (is_store(out) and _is_id_map(id_map)):
        raise UsageError(f"{id_map} exists already; choose another --id-map or remove it")
    if isinstance(out, str):
        return
    place, store = Path(os.path.realpath(id_map)), Path(os.path.realpath(out))
    if store in (place, *place.parents) or place == Path(os.path.realpath(find_quarantine(out))):
        raise UsageError(f"--id-map {id_map} lies where the store is written; choose another place for it")


def _is_id_map(path: Path) -> bool:
    """Whether it is a map: one that an ingest wrote which was stopped at its very end may be written again."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                return file.readline(100).rstrip() == ",".join(ID_MAP_COLUMNS)
    return False


@contextlib.contextmanager
def open_id_map(path: Path | None) -> Iterator[Callable[[Sequence[str]], object] | None]:
    """Yield what writes one row to the CSV file `path`; it appears (mode 0600) only if all inside succeeds."""
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
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
