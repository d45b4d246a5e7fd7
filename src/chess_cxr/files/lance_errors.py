"""Replace errors of Lance, which quote its source code, by one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from chess_cxr.files.whole import FULL_DISK
from chess_cxr.records import ChessError

# Meaning of Lance's errors, by words in their texts.
_WHY = {
    "status code: 404": "there is no such bucket",
    "status code: 403": "no permission to write there",
    "permission denied": "no permission to write there",
    "read-only file system": "the file system is read-only",
    "no such file": "another ingest or program removes its files",
    "conflict": "another ingest writes there too",
    "error sending request": "it does not answer",
}


@dataclass
class Writing:
    """Number of rows written so far, and the exception of whoever yields them, which Lance would wrap."""

    written: int = 0
    error: BaseException | None = None


@contextlib.contextmanager
def explain_errors(location: Path | str, state: Writing | None = None) -> Iterator[None]:
    """Replace errors of writing: by the error of the rows, a full disk or one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if state is not None and state.error:
            raise state.error from None
        if _is_full_disk(error):
            raise OSError(errno.ENOSPC, "no space left", str(location)) from None
        raise ChessError(
            f"{location} cannot be written: {_say_why(error)}; run the same command again to continue"
        ) from None


@contextlib.contextmanager
def explain_damage(location: Path | str) -> Iterator[None]:
    """Replace errors of reading by one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ChessError(f"{location} cannot be read ({type(error).__name__}): parts are missing or damaged") from None


def _say_why(error: Exception) -> str:
    text = str(error).lower()
    return next((said for words, said in _WHY.items() if words in text), f"{type(error).__name__} in the store")


def _is_full_disk(error: Exception) -> bool:
    """Whether an error means a full disk, which Lance reports in its text only."""
    words = ("no space left", "file too large", "quota")
    return getattr(error, "errno", None) in FULL_DISK or any(word in str(error).lower() for word in words)
