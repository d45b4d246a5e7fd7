"""Divide patients among train, val and test, before anything else is done with their films."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chess_cxr.records import ChessError, SourceFilm, UsageError

AGE_BANDS_YEARS = (1, 6, 18, 40, 60, 75)
# Weights of the traits that are balanced.  The number of patients is met in any case; labels count most.
_TRAIT_WEIGHTS = {"label": 1.0, "film": 0.5, "sex": 0.2, "age": 0.2}
_EVENTS_TO_MERGE = 1 << 20
_MAX_TRAITS = 1 << 20


def assign_split(patient: str, seed: int, val: float, test: float) -> str:
    """Return the split of a patient: a pure function of the original identifier and the seed.

    The key of the hashes, the other patients and their order play no part, so an archive that grows keeps its splits.
    val, test: expected fractions of patients, in [0, 1), together below 1.
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
        raise UsageError(f"val {val:g} and test {test:g} must be 0 or more, and together below 1")


# ---------------------------------------------------------------- given


@dataclass
class _Given:
    """Splits given by the source, by patient; torn: patients in more than one."""

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
    """Return the split that the source gives each named patient.

    Raises `ChessError` if a patient is in two splits, which would make every result wrong.
    """
    given = _Given()
    for film in films:
        given.note(film)
    return given.check()


def raise_torn(patients: int) -> None:
    """Raise the `ChessError` for patients found in more than one split."""
    raise ChessError(
        f"{patients} patient{'s are' if patients > 1 else ' is'} in more than one given split; "
        "correct the split column, or leave it out to have the films split by patient (a store that was begun must be "
        "removed)"
    )


# ---------------------------------------------------------------- stratified


def assign_stratified_splits(films: Iterable[SourceFilm], seed: int, val: float, test: float) -> dict[str, str]:
    """Return the split of each patient with a known label or a given split.

    Balances every label between the splits, the rarest first, then films, sex and age bands.  Patients are placed one
    by one, ties in an order drawn from the seed, each in the split that most lacks the traits of its films.  This is
    greedy iterative stratification (Sechidis et al. 2011), but weighs all traits of a patient at once, by the
    chi-square distance of a split from its share.

    The result does not depend on the order of the films; memory grows with patients, not films.  Unlike `assign_split`
    it depends on all patients: pass the first splits as given ones to keep them while an archive grows.

    val, test: fractions of these patients, in [0, 1), together below 1; met to one patient unless given splits exceed
    them.  Given splits are kept.  Raises `ChessError` for a patient in two given splits.
    """
    check_fractions(val, test)
    table, given = _count_traits(films)
    patients = sorted({*table.labelled, *given})
    digests = [_compute_digest(patient, seed) for patient in patients]
    order = sorted(range(len(patients)), key=digests.__getitem__)
    return _divide([patients[i] for i in order], table, given, {"train": 1 - val - test, "test": test, "val": val})


@dataclass
class _TraitTable:
    """Number of films of each patient that show each trait.

    pairs: patient and trait packed into one number, sorted; counts: their films.  A trait is a kind (of
    `_TRAIT_WEIGHTS`) and a name.
    """

    traits: dict[tuple[str, str], int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    labelled: set[str] = field(default_factory=set)
    pairs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def merge(self, events: array[int]) -> None:
        """Count new events, each `patient * _MAX_TRAITS + trait`."""
        pairs = np.concatenate([self.pairs, np.frombuffer(events, np.int64)])
        counts = np.concatenate([self.counts, np.ones(len(events), np.int64)])
        self.pairs, place = np.unique(pairs, return_inverse=True)
        self.counts = np.bincount(place, counts, len(self.pairs)).astype(np.int64)

    def select(self, patients: Sequence[str]) -> _Shown:
        """Return the traits of these patients' films, in their order."""
        traits = sorted(self.traits)
        number_of_trait = np.empty(len(traits), np.int64)
        number_of_trait[[self.traits[trait] for trait in traits]] = np.arange(len(traits))
        place_of_patient = np.full(len(self.patients), -1)
        place_of_patient[[self.patients[patient] for patient in patients]] = np.arange(len(patients))
        place, trait = place_of_patient[self.pairs // _MAX_TRAITS], number_of_trait[self.pairs % _MAX_TRAITS]
        order = np.lexsort((trait, place))[np.count_nonzero(place < 0) :]
        starts = np.searchsorted(place[order], np.arange(len(patients) + 1))
        return _Shown(traits, starts, trait[order].astype(np.int32), self.counts[order].astype(np.int32))


@dataclass(frozen=True)
class _Shown:
    """Traits of patients, one row a pair, sorted by trait; the rows of patient p are `starts[p]` to `starts[p + 1]`."""

    traits: list[tuple[str, str]]
    starts: np.ndarray
    trait: np.ndarray
    films: np.ndarray

    def get_row(self, place: int) -> dict[int, int]:
        rows = slice(self.starts[place], self.starts[place + 1])
        return dict(zip(self.trait[rows].tolist(), self.films[rows].tolist(), strict=True))

    def rank(self) -> np.ndarray:
        """Return the places of the patients, those with the rarest label first, then those with most films.

        Patients with few films come last and level out what the others leave uneven.
        """
        if not len(self.trait):
            return np.empty(0, np.int64)
        holders = np.bincount(self.trait, minlength=len(self.traits))
        kinds = np.array([kind for kind, _ in self.traits])
        rarity = np.where(kinds == "label", holders, len(self.starts))[self.trait]
        films = np.where(kinds == "film", self.films.max(), 0)[self.trait]
        films = np.minimum(films, self.films)
        rarest, most = np.minimum.reduceat(rarity, self.starts[:-1]), np.maximum.reduceat(films, self.starts[:-1])
        return np.lexsort((-most, rarest))


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
    """Assign every patient a split; `patients` stand in the order of the draw."""
    shown = table.select(patients)
    weights = [_TRAIT_WEIGHTS[kind] for kind, _ in shown.traits]
    total = np.bincount(shown.trait, shown.films, len(weights)).tolist()
    split_of = {patient: given[patient] for patient in patients if patient in given}
    held = {split: [0] * len(weights) for split in fractions}
    for place, patient in enumerate(patients):
        if patient in given:
            _add(held[given[patient]], shown.get_row(place))
    room = _compute_room(len(patients), list(split_of.values()), fractions)
    for place in shown.rank().tolist():
        if patients[place] in given:
            continue
        row = shown.get_row(place)
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
    row: Mapping[int, int], held: Sequence[int], total: Sequence[float], weights: Sequence[float], fraction: float
) -> float:
    """Return half the increase of a split's chi-square distance from its share if the patient joins it."""
    excess = 0.0
    for trait, films in row.items():
        share = total[trait] * fraction
        excess += weights[trait] * films * (held[trait] + films / 2 - share) / share
    return excess


def _compute_room(patients: int, given: Sequence[str], fractions: Mapping[str, float]) -> dict[str, int]:
    """Return the number of further patients that each split takes, by largest remainder."""
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
