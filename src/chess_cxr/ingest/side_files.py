"""Files that an ingest writes beside its store: the lock and the quarantine, the list of films left out."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from chess_cxr.files.locations import is_url, write_location
from chess_cxr.files.whole import hold
from chess_cxr.records import ChessError


@contextlib.contextmanager
def lock_store(out: Path | str) -> Iterator[None]:
    """Lock a store against a second ingest on this machine; object stores cannot be locked."""
    if is_url(out):
        yield
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    refusal = ChessError(f"another ingest is writing {out}; wait for it or choose another --out")
    with lock.open("w") as mine, hold(lock, refusal):
        # The previous holder may have removed the file after we opened it and before we locked it.
        if not (lock.exists() and os.path.samestat(os.fstat(mine.fileno()), lock.stat())):
            raise refusal
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def find_quarantine(out: Path | str) -> Path | str:
    """Return the location of the quarantine of the store `out`."""
    name = f"{str(out).rstrip('/')}.quarantine.csv"
    return Path(name) if isinstance(out, Path) else name


def write_quarantine(out: Path | str, rows: Iterable[tuple[str, str]]) -> None:
    """Write uid and reason of each film left out of the store `out`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows((("uid", "reason"), *rows))
    write_location(find_quarantine(out), text.getvalue().encode())
