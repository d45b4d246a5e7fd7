"""Parse phantom:PATIENTS[@SIZE][#SEED], which names generated films in place of a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chess_cxr.records import UsageError

_PREFIX = "phantom:"
_PLACE = re.compile(_PREFIX + r"(\d{1,6})(?:@(\d{1,5}))?(?:#(\d{1,9}))?")
_SIZES = (64, 4096)


@dataclass(frozen=True)
class PhantomPlace:
    """Number of generated patients, side of their films in pixels, and seed."""

    patients: int
    size: int
    seed: int


def is_phantom(place: str) -> bool:
    """Whether a place names generated films."""
    return place.startswith(_PREFIX)


def parse_phantom(place: str, size: int = 256) -> PhantomPlace:
    """Parse "phantom:PATIENTS[@SIZE][#SEED]", such as phantom:300@256#7; defaults are `size` and seed 0.

    Raises `UsageError` for any other text, no patients, or a size outside 64 to 4096 pixels.
    """
    found = _PLACE.fullmatch(place)
    if found is None or not int(found[1]):
        raise UsageError(f"{place!r} is not phantom:PATIENTS[@SIZE][#SEED], such as phantom:300@256#7")
    side = int(found[2] or size)
    if not _SIZES[0] <= side <= _SIZES[1]:
        raise UsageError(f"a generated film of {side} pixels is outside {_SIZES[0]} to {_SIZES[1]}")
    return PhantomPlace(int(found[1]), side, int(found[3] or 0))
