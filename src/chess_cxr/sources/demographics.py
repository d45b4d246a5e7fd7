"""How archives and tables write age, sex and view, turned into one form."""

from __future__ import annotations

import math
import re

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
