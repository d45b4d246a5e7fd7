"""Records of radiographs before and after their identifiers are hashed, parsers of their fields, and the errors."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
UNCERTAIN = -1.0  # a label that its source calls uncertain; each reader chooses a policy, see `resolve_uncertain`
FLAGS = ("inverted", "lateral", "not_chest", "low_contrast", "collimated", "burned_in", "small")
SCORES = ("inverted", "lateral", "not_chest", "contrast", "border")
MAX_AGE_YEARS = 130.0
_AGE = re.compile(r"^\D{0,3}(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", re.IGNORECASE)
_YEARS_IN = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_DATE = re.compile(r"^([12]\d{3})([-.]?)(\d{2})\2(\d{2})(?:[ T].*)?$", re.ASCII)
_LATERAL = frozenset({"LATERAL", "LAT", "L", "LL", "RL", "LLAT", "RLAT"})

OnCount = Callable[[int, int], None]  # called with the number of finished pieces and the total
OnProgress = Callable[[str, int, int], None]  # the same, after the name of the stage


class ChessError(Exception):
    """Failure whose cause the user can remove; the text is the whole message, one line."""

    exit_code = 1


class UsageError(ChessError):
    """Wrong command, configuration or input."""

    exit_code = 2


class Undecodable(ChessError):
    """Film that cannot be used; the text is a short reason without path or identifier."""


UNKNOWN_ENTRY = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's words for it


def choose_problem(problems: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first of pydantic's problems, or a misspelt entry, as its right name is then missing too."""
    return next((one for one in problems if one["type"] in UNKNOWN_ENTRY), problems[0])


def word_problem(error: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """Say what is wrong with an entry of a configuration, as pydantic describes it, in plain words.

    known: entries that there are, of which the one that is spelt alike is named.
    """
    if error["type"] in UNKNOWN_ENTRY:
        near = difflib.get_close_matches(str(error["loc"][-1]), list(known), n=1)
        return "there is no such entry" + (f"; perhaps {near[0]}" if near else "")
    return "is missing" if error["type"] == "missing" else str(error["msg"])


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional extra of this package.

    purpose: what needs the module, the subject of the error.  Raises `UsageError` naming the extra if it is missing.
    """
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs the package {package}: pip install 'chess-cxr[{extra}]'") from None


@dataclass(frozen=True)
class SourceFilm:
    """Film as its owner describes it, with ORIGINAL identifiers: a `SourceFilm` never leaves the ingest.

    Empty text and NaN mean "unknown"; the header of the file then fills the gap.
    path: local file or URL of an object.  study_date: YYYYMMDD.  site: hospital or data set, stored as it is.
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
    site: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FilmListing:
    """Films of a source in a fixed order, listed anew at each iteration so that millions need no memory.

    label_names: every label that a film may carry.  count: returns the number of films; may itself walk the source.
    described: False for a bare folder tree, whose films have only path and uid.
    notes: lines that tell the user how the source was read.
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
    """Film as everything after the ingest sees it; `uid`, `patient` and `study` are keyed hashes.

    view: "PA", "AP", "LATERAL" or "".  sex: "F", "M" or "".  split: one of `SPLITS` or "" (none given).
    age_years: 90 for everybody above 89.  year: of the study, NaN if unknown.
    study_day: days since a secret day of this patient; only differences between films of one patient are meaningful.
    spacing_mm: distance between pixel centres at the stored size, NaN if unknown.
    manufacturer: name of a closed list, "other" or "".
    flags: subset of `FLAGS`.  scores: values that the flags were judged by, named as in `SCORES`.
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


def build_listing(films: Sequence[SourceFilm]) -> FilmListing:
    """Build the listing of films held in memory; its labels stand in order of first appearance."""
    names = dict.fromkeys(name for film in films for name in film.labels)
    return FilmListing(tuple(names), lambda: iter(films), lambda: len(films))


def parse_age_years(text: str) -> float:
    """Parse an age such as "034Y" (DICOM AS), "18M", "62", "62.0" or "85 or more"; return years, NaN if unreadable."""
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
    """Return "PA", "AP", "LATERAL" or "" from a View Position (0018,5101) or the wording of a table."""
    words = re.sub(r"[^A-Z]+", " ", text.upper()).replace("POSTERO ANTERIOR", "PA").replace("ANTERO POSTERIOR", "AP")
    tokens = set(words.split())
    for view in ("PA", "AP"):
        if view in tokens:
            return view
    return "LATERAL" if tokens & _LATERAL and "DECUBITUS" not in tokens else ""


def parse_date(text: str) -> str:
    """Parse "20150203" (DICOM DA), "2015-02-03" or "2015.02.03", time or none behind it; return YYYYMMDD or ""."""
    found = _DATE.match(text.strip())
    if found is None:
        return ""
    try:
        return date(int(found[1]), int(found[3]), int(found[4])).strftime("%Y%m%d")
    except ValueError:
        return ""


def resolve_uncertain(label_NL: np.ndarray, policy: str = "ignore") -> np.ndarray:
    """Return labels as 1, 0 and NaN; `UNCERTAIN` becomes NaN ("ignore"), 1 ("ones") or 0 ("zeros")."""
    value = {"ignore": np.nan, "ones": 1.0, "zeros": 0.0}[policy]
    return np.where(label_NL == UNCERTAIN, value, label_NL)


def list_counts(counts: Mapping[str, int]) -> str:
    """Return "3 truncated, 1 blank", the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked)
