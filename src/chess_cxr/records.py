"""What one radiograph is, before and after its identifiers are hashed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "val", "test")


class ChessError(Exception):
    """Work that failed for a reason the user can act on; its text is the whole message, one line."""

    exit_code = 1


class UsageError(ChessError):
    """The command, the configuration or the input was wrong from the start."""

    exit_code = 2


@dataclass(frozen=True)
class SourceFilm:
    """One film as its owner names it.  Identifiers are the originals: a `SourceFilm` never leaves the ingest.

    Empty text and NaN mean "not known here"; what the file's own header says then fills the gap.
    """

    path: Path
    uid: str
    patient: str = ""
    study: str = ""
    view: str = ""
    age_years: float = math.nan
    sex: str = ""
    split: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRecord:
    """One film as everything after the ingest sees it; `uid`, `patient` and `study` are keyed hashes.

    view: "PA", "AP", "LATERAL" or "".  sex: "F", "M" or "".  split: one of `SPLITS` or "" (none given).
    spacing_mm: distance between pixel centres at the stored size, NaN where unknown.
    labels: 1.0 present, 0.0 absent, NaN unknown.
    """

    uid: str
    patient: str
    study: str = ""
    view: str = ""
    age_years: float = math.nan
    sex: str = ""
    spacing_mm: float = math.nan
    site: str = ""
    split: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


def list_label_names(films: Iterable[SourceFilm]) -> list[str]:
    """Return every label name that occurs, in order of first appearance."""
    return list(dict.fromkeys(name for film in films for name in film.labels))
