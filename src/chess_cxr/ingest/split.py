"""Which patient is trained on, which one chooses, which one tests: decided by patient before anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from chess_cxr.records import ChessError, SourceFilm, UsageError


def assign_split(patient: str, seed: int, val: float, test: float) -> str:
    """Return the split of a patient: a pure function of the original identifier and the seed.

    It does not depend on the key of the hashes, on the other patients or on their order, so an archive
    that grows keeps its splits.  val, test: fractions of patients to expect in [0, 1), together below 1.
    """
    check_fractions(val, test)
    digest = hashlib.sha256(f"{seed}\0{patient}".encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "val" if position < test + val else "train"


def check_fractions(val: float, test: float) -> None:
    """Raise `UsageError` unless the fractions leave something to train on."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(f"val {val:g} and test {test:g} must be fractions from 0 that leave something to train on")


def find_given_splits(films: Iterable[SourceFilm]) -> dict[str, str]:
    """Return the split that the owner gave each patient known by name.

    Raises `ChessError` if a patient is in two of them: whatever were measured on it would be wrong.
    """
    given: dict[str, str] = {}
    torn: set[str] = set()
    for film in films:
        if film.patient and film.split and given.setdefault(film.patient, film.split) != film.split:
            torn.add(film.patient)
    if torn:
        raise_torn(len(torn))
    return given


def raise_torn(patients: int) -> None:
    """Raise the `ChessError` for patients found in more than one split."""
    raise ChessError(
        f"{patients} patient{'s are' if patients > 1 else ' is'} in more than one given split; "
        "correct the split column, or leave it out to have the films split by patient"
    )
