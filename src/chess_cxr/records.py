"""What one radiograph is, before and after its identifiers are hashed; the errors that users see."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
UNCERTAIN = -1.0  # a label that its source calls uncertain; what it counts as is decided by whoever reads it
FLAGS = ("inverted", "lateral", "not_chest", "low_contrast", "collimated", "burned_in", "small")
SCORES = ("inverted", "lateral", "not_chest", "contrast", "border")


class ChessError(Exception):
    """Work that failed for a reason the user can act on; its text is the whole message, one line."""

    exit_code = 1


class UsageError(ChessError):
    """The command, the configuration or the input was wrong from the start."""

    exit_code = 2


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import a module that only an optional extra of this package brings.

    purpose: what needs it, as the subject of the error.  Raises UsageError naming the extra where it is missing.
    """
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs the package {package}: pip install 'chess-cxr[{extra}]'") from None


@dataclass(frozen=True)
class SourceFilm:
    """One film as its owner names it.  Identifiers are the originals: a `SourceFilm` never leaves the ingest.

    Empty text and NaN mean "not known here"; what the file's own header says then fills the gap.
    path: a file of this machine, or the URL of an object.  study_date: YYYYMMDD.
    labels: 1.0 present, 0.0 absent, `UNCERTAIN`, NaN unknown.
    """

    path: Path | str
    uid: str
    patient: str = ""
    study: str = ""
    view: str = ""
    age_years: float = math.nan
    sex: str = ""
    split: str = ""
    study_date: str = ""
    manufacturer: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FilmListing:
    """The films of a source in an order that never changes, listed anew at each iteration: millions need no memory.

    label_names: every label that any of the films may carry.  count: how many films an iteration gives; may itself
    walk the source.  described: False for a bare tree, whose films carry nothing but path and uid.  notes: lines for
    the user on how the source was understood.
    """

    label_names: tuple[str, ...]
    list_films: Callable[[], Iterator[SourceFilm]]
    count: Callable[[], int]
    described: bool = True
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SourceFilm]:
        return self.list_films()


@dataclass(frozen=True)
class ImageRecord:
    """One film as everything after the ingest sees it; `uid`, `patient` and `study` are keyed hashes.

    view: "PA", "AP", "LATERAL" or "".  sex: "F", "M" or "".  split: one of `SPLITS` or "" (none given).
    age_years: 90 for everybody above 89.  year: of the study, NaN where unknown.
    study_day: the day of the study, counted from a secret day of each patient's own: only differences between films of
    one patient mean something.  spacing_mm: distance between pixel centres at the stored size, NaN where unknown.
    manufacturer: one of a closed list of names, "other" or "".
    flags: those of `FLAGS` that hold.  scores: what they were judged by, named as in `SCORES`.
    labels: 1.0 present, 0.0 absent, `UNCERTAIN`, NaN unknown.
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
    year: float = math.nan
    study_day: float = math.nan
    manufacturer: str = ""
    flags: frozenset[str] = frozenset()
    scores: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)


def list_label_names(films: Iterable[SourceFilm]) -> list[str]:
    """Return every label name that occurs, in order of first appearance."""
    return list(dict.fromkeys(name for film in films for name in film.labels))


class Undecodable(ChessError):
    """A film that cannot be used; its text is a short reason that holds no path and no identifier."""


_AGE = re.compile(r"^\D{0,3}(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", re.IGNORECASE)
_YEARS_IN = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_LATERAL = frozenset({"LATERAL", "LAT", "L", "LL", "RL", "LLAT", "RLAT"})
MAX_AGE_YEARS = 130.0


def parse_age_years(text: str) -> float:
    """Return the age in years from "034Y" (DICOM AS), "18M", "62", "62.0" or "85 or more"; NaN if there is none."""
    found = _AGE.match(text.strip())
    if found is None or text.strip().startswith("-"):
        return math.nan
    age_years = float(found[1]) * _YEARS_IN[found[2].upper()]
    return age_years if age_years <= MAX_AGE_YEARS else math.nan


def parse_sex(text: str) -> str:
    """Return "F", "M" or "" from any usual spelling."""
    word = text.strip().upper()
    if word in {"F", "FEMALE", "W", "WOMAN"}:
        return "F"
    return "M" if word in {"M", "MALE", "MAN"} else ""


def parse_view(text: str) -> str:
    """Return "PA", "AP", "LATERAL" or "" from a View Position (0018,5101) or a table's wording."""
    words = re.sub(r"[^A-Z]+", " ", text.upper()).replace("POSTERO ANTERIOR", "PA").replace("ANTERO POSTERIOR", "AP")
    tokens = set(words.split())
    for view in ("PA", "AP"):
        if view in tokens:
            return view
    return "LATERAL" if tokens & _LATERAL and "DECUBITUS" not in tokens else ""


def resolve_uncertain(label_NL: np.ndarray, policy: str = "ignore") -> np.ndarray:
    """Return labels as 1, 0 and NaN: what is `UNCERTAIN` becomes NaN ("ignore"), 1 ("ones") or 0 ("zeros")."""
    value = {"ignore": np.nan, "ones": 1.0, "zeros": 0.0}[policy]
    return np.where(label_NL == UNCERTAIN, value, label_NL)
