"""Write files and folders whole or not at all, lock them against other processes, read JSON."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chess_cxr.records import ChessError, UsageError

MOST_JSON_BYTES = 64 << 20
FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, and its folder if missing; readers and crashes see the old content or the new, never a part."""
    size = f"{len(content) / 1e6:.1f} MB" if len(content) >= 1e5 else f"{len(content) / 1e3:.1f} kB"
    with explain_full_disk(f"{path}: it needs {size} (nothing half-written)"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all into an existing folder; raises `OSError`."""
    growing = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write_flushed(growing, content, mode)
        growing.replace(path)
        flush_folder(path.parent)
    finally:
        growing.unlink(missing_ok=True)


def write_flushed(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file and flush its content to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def place_new(growing: Path, target: Path) -> None:
    """Move a flushed file to a free name; raises `FileExistsError`, which a hard link guarantees and a rename not."""
    try:
        os.link(growing, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise FileExistsError from None
        os.replace(growing, target)
    flush_folder(target.parent)


@contextmanager
def write_whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` if the block succeeds, and is removed otherwise.

    Contents are flushed to the disk first, then file names, then the name of the folder: a power cut leaves all of it
    or nothing.  Raises `UsageError` if `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    growing = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        with explain_full_disk(f"{out}; free some, or choose another --out"):
            growing.mkdir(parents=True)
            yield growing
            for folder, _, names in os.walk(growing, topdown=False):
                for name in names:
                    flush_file(Path(folder) / name)
                flush_folder(Path(folder))
            growing.rename(out)
            flush_folder(out.parent)
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def flush_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can."""
    with suppress(OSError):
        flush_file(path)


@contextmanager
def hold(place: Path, refusal: ChessError) -> Iterator[None]:
    """Lock a folder, or a lock file that is created, against other processes; a killed process loses its lock.

    Raises `refusal` if another process holds the lock.  File systems without locks let everybody in.
    """
    descriptor = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(what: str) -> Iterator[None]:
    """Turn a full disk, an exceeded quota or a file size limit into the line "no space left for `what`"."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise ChessError(f"no space left for {what}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if the file is missing, broken, larger than 64 MiB or holds something else."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON_BYTES:  # a pipe would never end
            return {}
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def compute_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
