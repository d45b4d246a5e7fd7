"""Which patient is trained on, which one chooses, which one tests: decided by patient before anything else."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chess_cxr.records import ChessError, SourceFilm, UsageError

AGE_BANDS_YEARS = (1, 6, 18, 40, 60, 75)
# What a split is filled by.  Patients are held to their number in any case; labels go before the rest.
_TRAIT_WEIGHTS = {"label": 1.0, "film": 0.5, "sex": 0.2, "age": 0.2}
_EVENTS_TO_MERGE = 1 << 20
_MAX_TRAITS = 1 << 20


def assign_split(patient: str, seed: int, val: float, test: float) -> str:
    """Return the split of a patient: a pure function of the original identifier and the seed.

    It does not depend on the key of the hashes, on the other patients or on their order, so an archive
    that grows keeps its splits.  val, test: fractions of patients to expect in [0, 1), together below 1.
    """
    check_fractions(val, test)
    position = int.from_bytes(_compute_digest(patient, seed)[:8], "big") / 2**64
    if position < test:
        return "test"
    return "val" if position < test + val else "train"


def _compute_digest(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode("utf-8", "surrogateescape")).digest()


def check_fractions(val: float, test: float) -> None:
    """Raise `UsageError` unless the fractions leave something to train on."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(f"val {val:g} and test {test:g} must be fractions from 0 that leave something to train on")


# ---------------------------------------------------------------- given


@dataclass
class _Given:
    """The splits that the owner gave, by patient; torn are the patients in more than one of them."""

    split_of: dict[str, str] = field(default_factory=dict)
    torn: set[str] = field(default_factory=set)

    def note(self, film: SourceFilm) -> None:
        if film.patient and film.split and self.split_of.setdefault(film.patient, film.split) != film.split:
            self.torn.add(film.patient)

    def check(self) -> dict[str, str]:
        if self.torn:
            raise_torn(len(self.torn))
        return self.split_of


def find_given_splits(films: Iterable[SourceFilm]) -> dict[str, str]:
    """Return the split that the owner gave each patient known by name.

    Raises `ChessError` if a patient is in two of them: whatever were measured on it would be wrong.
    """
    given = _Given()
    for film in films:
        given.note(film)
    return given.check()


def raise_torn(patients: int) -> None:
    """Raise the `ChessError` for patients found in more than one split."""
    raise ChessError(
        f"{patients} patient{'s are' if patients > 1 else ' is'} in more than one given split; "
        "correct the split column, or leave it out to have the films split by patient"
    )


# ---------------------------------------------------------------- stratified


def assign_stratified_splits(films: Iterable[SourceFilm], seed: int, val: float, test: float) -> dict[str, str]:
    """Return the split of each patient with a known label, and of each whose split is given.

    Every label, where present, gets its share in every split, the rarest seen to first; then films, sex and age bands.
    One patient after the other, those of equal standing in an order drawn from the seed, goes where most is wanting of
    what its films show: the greedy idea of iterative stratification (Sechidis et al. 2011), with all traits of a
    patient weighed at once by the chi-square distance between what a split holds and what it should.

    It is reproducible, whatever the order of the films, and needs memory by patient, not by film.  Unlike
    `assign_split` it depends on all the patients: give the splits of the first time to keep them in an archive that
    grows.

    val, test: fractions of all these patients, in [0, 1), together below 1; they are met to one patient, unless given
    splits exceed them.  Given splits are kept.  Raises `ChessError` for a patient in two of them.
    """
    check_fractions(val, test)
    table, given = _count_traits(films)
    patients = sorted({*table.labelled, *given})
    digests = [_compute_digest(patient, seed) for patient in patients]
    order = sorted(range(len(patients)), key=digests.__getitem__)
    return _divide([patients[i] for i in order], table, given, {"train": 1 - val - test, "test": test, "val": val})


@dataclass
class _TraitTable:
    """How many films of each patient show each trait, as one sorted number a pair and its count.

    A trait is a kind (of `_TRAIT_WEIGHTS`) and a name.
    """

    traits: dict[tuple[str, str], int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    labelled: set[str] = field(default_factory=set)
    pairs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def merge(self, events: array[int]) -> None:
        """Count new events, each of them `patient * _MAX_TRAITS + trait`."""
        pairs = np.concatenate([self.pairs, np.frombuffer(events, np.int64)])
        counts = np.concatenate([self.counts, np.ones(len(events), np.int64)])
        self.pairs, place = np.unique(pairs, return_inverse=True)
        self.counts = np.bincount(place, counts, len(self.pairs)).astype(np.int64)

    def get_rows(self, patients: Sequence[str], traits: Sequence[tuple[str, str]]) -> Iterator[dict[int, int]]:
        """Yield the films of each patient by trait, numbered as in `traits`."""
        number = {self.traits[trait]: place for place, trait in enumerate(traits)}
        for patient in patients:
            base = self.patients[patient] * _MAX_TRAITS
            first, last = np.searchsorted(self.pairs, (base, base + _MAX_TRAITS))
            shown = (self.pairs[first:last] - base).tolist()
            row = {number[trait]: count for trait, count in zip(shown, self.counts[first:last].tolist(), strict=True)}
            yield dict(sorted(row.items()))


def _list_traits(film: SourceFilm) -> Iterator[tuple[str, str]]:
    yield ("film", "")
    yield from (("label", name) for name, value in film.labels.items() if value == 1)
    if film.sex:
        yield ("sex", film.sex)
    if not math.isnan(film.age_years):
        yield ("age", str(sum(film.age_years >= years for years in AGE_BANDS_YEARS)))


def _count_traits(films: Iterable[SourceFilm]) -> tuple[_TraitTable, dict[str, str]]:
    table, given, events = _TraitTable(), _Given(), array("q")
    for film in films:
        if not film.patient:
            continue
        given.note(film)
        if any(not math.isnan(value) for value in film.labels.values()):
            table.labelled.add(film.patient)
        base = table.patients.setdefault(film.patient, len(table.patients)) * _MAX_TRAITS
        events.extend(base + table.traits.setdefault(trait, len(table.traits)) for trait in _list_traits(film))
        if len(events) >= _EVENTS_TO_MERGE:
            table.merge(events)
            events = array("q")
    table.merge(events)
    return table, given.check()


def _divide(
    patients: Sequence[str], table: _TraitTable, given: Mapping[str, str], fractions: Mapping[str, float]
) -> dict[str, str]:
    """Give every patient its split; `patients` stand in the order of the draw."""
    traits = sorted(table.traits)
    weights = [_TRAIT_WEIGHTS[kind] for kind, _ in traits]
    rows = list(table.get_rows(patients, traits))
    total = [0] * len(traits)
    holders = [0] * len(traits)
    for row in rows:
        for trait, films in row.items():
            total[trait] += films
            holders[trait] += 1
    split_of = {patient: given[patient] for patient in patients if patient in given}
    held = {split: [0] * len(traits) for split in ("train", "val", "test")}
    for patient, row in zip(patients, rows, strict=True):
        if patient in given:
            _add(held[given[patient]], row)
    room = _compute_room(len(patients), list(split_of.values()), fractions)
    labels = {number for number, (kind, _) in enumerate(traits) if kind == "label"}

    film = traits.index(("film", "")) if traits else 0

    def rank(place: int) -> tuple[int, int]:
        """Rarest label first; then most films, so that the small ones level out what the large ones leave uneven."""
        row = rows[place]
        return min((holders[trait] for trait in row if trait in labels), default=len(patients) + 1), -row[film]

    for place in sorted(range(len(patients)), key=rank):
        if patients[place] in given:
            continue
        row = rows[place]
        split = min(
            (split for split in room if room[split]),
            key=lambda split: _compute_excess(row, held[split], total, weights, fractions[split]),
        )
        split_of[patients[place]] = split
        room[split] -= 1
        _add(held[split], row)
    return split_of


def _add(held: list[int], row: Mapping[int, int]) -> None:
    for trait, films in row.items():
        held[trait] += films


def _compute_excess(
    row: Mapping[int, int], held: Sequence[int], total: Sequence[int], weights: Sequence[float], fraction: float
) -> float:
    """Return half of what the patient adds to the split's chi-square distance from its share."""
    excess = 0.0
    for trait, films in row.items():
        share = total[trait] * fraction
        excess += weights[trait] * films * (held[trait] + films / 2 - share) / share
    return excess


def _compute_room(patients: int, given: Sequence[str], fractions: Mapping[str, float]) -> dict[str, int]:
    """Return how many patients without a given split each split takes, by largest remainder."""
    wanted = {split: max(0.0, patients * share - given.count(split)) for split, share in fractions.items()}
    free = patients - len(given)
    if not free:
        return dict.fromkeys(wanted, 0)
    scaled = {split: free * wish / sum(wanted.values()) for split, wish in wanted.items()}
    room = {split: int(wish) for split, wish in scaled.items()}
    by_remainder = sorted(scaled, key=lambda split: room[split] - scaled[split])
    for split in by_remainder[: free - sum(room.values())]:
        room[split] += 1
    return room
