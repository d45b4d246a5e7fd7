import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chess_cxr.ingest.split import assign_split, assign_stratified_splits, find_given_splits
from chess_cxr.records import SPLITS, ChessError, SourceFilm, UsageError
from chess_cxr.sources.folder import read_folder

fractions = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))


def make_film(number: int, patient: str, split: str) -> SourceFilm:
    return SourceFilm(path=Path(f"{number}.png"), uid=str(number), patient=patient, split=split)


@given(st.lists(st.text(), min_size=1), st.integers(), fractions)
def test_no_patient_appears_in_two_splits(patients: list[str], seed: int, parts: tuple[float, float]) -> None:
    split_of: dict[str, str] = {}
    for patient in patients + patients[::-1]:
        split = assign_split(patient, seed, *parts)
        assert split_of.setdefault(patient, split) == split


@given(st.text(), st.integers(), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_test_set_keeps_the_patients_of_the_smaller_one(
    patient: str, seed: int, smaller: float, more: float
) -> None:
    if assign_split(patient, seed, 0.1, smaller) == "test":
        assert assign_split(patient, seed, 0.1, smaller + more) == "test"


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.0, 0.3), (0.3, 0.0), (0.0, 0.0), (0.05, 0.05)])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_splits_hold_the_fractions_asked_for(val: float, test: float, seed: int) -> None:
    count = Counter(assign_split(f"patient {i}", seed, val, test) for i in range(20_000))
    # Four standard deviations of a binomial draw.
    for split, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        assert abs(count[split] - 20_000 * share) <= 4 * (20_000 * share * (1 - share)) ** 0.5


def test_another_seed_draws_another_test_set() -> None:
    first, second = ([assign_split(str(i), seed, 0.1, 0.2) for i in range(100)] for seed in (0, 1))
    assert first != second


def test_splits_stay_as_they_were_drawn_by_earlier_versions() -> None:
    drawn = [assign_split(f"p{i}", 0, 0.1, 0.2) for i in range(12)]
    assert drawn == ["train", "val", "val", *["train"] * 6, "test", "train", "test"]


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.1, 1.0), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing_to_train_on_are_wrong_use(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="together below 1"):
        assign_split("p", 0, val, test)


def test_given_splits_are_found_by_patient() -> None:
    films = [make_film(1, "a", "train"), make_film(2, "a", ""), make_film(3, "b", "test"), make_film(4, "", "val")]
    assert find_given_splits(films) == {"a": "train", "b": "test"}


def test_a_patient_in_two_given_splits_is_an_error_that_says_how_many() -> None:
    films = [make_film(i, patient, split) for i, (patient, split) in enumerate([("a", "train"), ("a", "test")])]
    with pytest.raises(ChessError, match="^1 patient is in more than one given split"):
        find_given_splits(films)
    films += [make_film(i, "b", split) for i, split in enumerate(["val", "test", "train"], start=5)]
    with pytest.raises(ChessError, match="^2 patients are in more than one given split"):
        find_given_splits(films)


def test_films_of_unknown_patients_may_be_in_any_given_split() -> None:
    assert find_given_splits([make_film(1, "", "train"), make_film(2, "", "test")]) == {}


# ---------------------------------------------------------------- stratified

NIH_LABELS = "Atelectasis,Consolidation,Edema,Effusion,Infiltration,Pleural_Thickening,Pneumonia"  # 21 films or more


def make_labelled(patient: str, number: int, labels: Mapping[str, float], split: str = "") -> SourceFilm:
    return SourceFilm(Path(f"{number}.png"), f"{patient}/{number}", patient, split=split, labels=labels)


def read_labelled(folder: Path, columns: Mapping[str, str]) -> list[SourceFilm]:
    films = read_folder([folder], folder / "labels.csv", {**columns, "split": ""})
    return [film for film in films if film.patient and not any(map(math.isnan, film.labels.values()))]


def compute_deviation(films: Sequence[SourceFilm], split_of: Mapping[str, str]) -> float:
    """How far a label's prevalence in val and test is from that in all films, as a share of it; mean over labels."""
    label_NL = np.array([list(film.labels.values()) for film in films])
    split_N = np.array([split_of[film.patient] for film in films])
    whole = label_NL.mean(0)
    return float(np.mean([abs(label_NL[split_N == split].mean(0) - whole) / whole for split in ("val", "test")]))


@pytest.mark.real_films
@pytest.mark.parametrize(
    ("name", "columns", "times"), [("kermany3", {"class": "label"}, 15), ("nih_covid", {"labels": NIH_LABELS}, 4)]
)
def test_real_labels_are_balanced_far_better_than_by_chance(
    real_films: Path, name: str, columns: dict[str, str], times: int
) -> None:
    films = read_labelled(real_films / name, columns)
    chance, stratified = [], []
    for seed in range(20):
        chance.append(
            compute_deviation(films, {film.patient: assign_split(film.patient, seed, 0.1, 0.2) for film in films})
        )
        split_of = assign_stratified_splits(films, seed, 0.1, 0.2)
        stratified.append(compute_deviation(films, split_of))
        count = Counter(split_of.values())
        assert set(split_of) == {film.patient for film in films}
        assert abs(count["val"] - 0.1 * len(split_of)) < 1
        assert abs(count["test"] - 0.2 * len(split_of)) < 1
    assert np.mean(chance) > times * np.mean(stratified)
    assert max(stratified) < min(chance)


@pytest.mark.real_films
def test_a_real_table_is_split_the_same_whatever_the_order_of_its_films(real_films: Path) -> None:
    films = read_labelled(real_films / "nih_covid", {"labels": NIH_LABELS})
    split_of = assign_stratified_splits(films, 3, 0.1, 0.2)
    for order in range(5):
        random.Random(order).shuffle(films)
        assert assign_stratified_splits(films, 3, 0.1, 0.2) == split_of
    other = assign_stratified_splits(films, 4, 0.1, 0.2)
    assert np.mean([other[patient] != split for patient, split in split_of.items()]) > 0.2


label_rows = st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.0, 1.0, -1.0, math.nan]))
archives = st.lists(st.tuples(st.integers(0, 30), label_rows, st.sampled_from(["", "F", "M"])), max_size=60)


@given(archives, st.integers(), fractions, st.randoms())
def test_a_stratified_split_meets_its_fractions_in_any_archive(
    rows: list[tuple[int, dict[str, float], str]], seed: int, parts: tuple[float, float], shuffler: random.Random
) -> None:
    films = [replace(make_labelled(str(p), n, labels), sex=sex) for n, (p, labels, sex) in enumerate(rows)]
    split_of = assign_stratified_splits(films, seed, *parts)
    assert set(split_of) == {film.patient for film in films if not all(map(math.isnan, film.labels.values()))}
    count = Counter(split_of.values())
    for split, share in (("val", parts[0]), ("test", parts[1]), ("train", 1 - sum(parts))):
        assert abs(count[split] - share * len(split_of)) < 1 + 1e-9
        assert share or not count[split]
    shuffler.shuffle(films)
    assert assign_stratified_splits(films, seed, *parts) == split_of


def test_a_rare_label_is_in_every_split_that_is_due_one() -> None:
    films = [make_labelled(f"p{i}", i, {"rare": float(i < 10), "common": float(i % 2)}) for i in range(1000)]
    for seed in range(20):
        split_of = assign_stratified_splits(films, seed, 0.1, 0.2)
        assert Counter(split_of[f"p{i}"] for i in range(10)) == {"train": 7, "test": 2, "val": 1}


def test_sexes_and_ages_are_balanced_among_those_without_a_finding() -> None:
    films = [
        replace(make_labelled(f"p{i}", i, {"mass": 0.0}), sex="FM"[i % 10 == 0], age_years=30 + 40 * (i % 7 == 0))
        for i in range(2000)
    ]
    split_of = assign_stratified_splits(films, 1, 0.1, 0.2)
    for held in (lambda film: film.sex == "M", lambda film: film.age_years > 60):
        whole = np.mean([held(film) for film in films])
        for split in SPLITS:
            share = np.mean([held(film) for film in films if split_of[film.patient] == split])
            assert abs(share - whole) < 0.006


def test_patients_with_many_films_are_no_reason_for_an_uneven_split() -> None:
    films = [make_labelled(f"p{i}", n, {"mass": float(i % 3 == 0)}) for i in range(300) for n in range(1 + i % 20)]
    split_of = assign_stratified_splits(films, 0, 0.1, 0.2)
    held = Counter(split_of[film.patient] for film in films)
    assert abs(held["test"] / len(films) - 0.2) < 0.005
    assert abs(held["val"] / len(films) - 0.1) < 0.005


def test_a_given_split_is_kept_and_counted() -> None:
    films = [make_labelled(f"p{i}", i, {"mass": float(i % 2)}, "test" if i < 15 else "") for i in range(100)]
    split_of = assign_stratified_splits(films, 0, 0.1, 0.2)
    assert {split_of[f"p{i}"] for i in range(15)} == {"test"}
    assert Counter(split_of.values()) == {"train": 70, "test": 20, "val": 10}
    more = [replace(film, split="test" if number < 40 else "") for number, film in enumerate(films)]
    count = Counter(assign_stratified_splits(more, 0, 0.1, 0.2).values())
    assert (count["test"], count["train"] + count["val"]) == (40, 60)
    assert abs(count["train"] - 7 * count["val"]) < 8


def test_a_patient_in_two_given_splits_is_an_error_here_too() -> None:
    films = [make_labelled("a", 1, {"mass": 1.0}, "train"), make_labelled("a", 2, {"mass": 0.0}, "val")]
    with pytest.raises(ChessError, match="^1 patient is in more than one given split"):
        assign_stratified_splits(films, 0, 0.1, 0.2)


def test_patients_without_labels_are_left_to_the_plain_split() -> None:
    unknown = {"mass": math.nan}
    films = [make_labelled("a", 1, unknown), make_labelled("b", 2, {"mass": -1.0}), make_labelled("", 3, {"mass": 1.0})]
    films += [make_labelled("c", 4, unknown, "val"), make_labelled("d", 5, unknown), make_labelled("d", 6, {"mass": 0})]
    assert assign_stratified_splits(films, 0, 0.0, 0.0) == {"b": "train", "c": "val", "d": "train"}
    assert assign_stratified_splits([], 0, 0.1, 0.2) == {}
    with pytest.raises(UsageError, match="together below 1"):
        assign_stratified_splits(films, 0, 0.6, 0.6)


def test_counts_are_the_same_when_the_events_are_merged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    films = [
        make_labelled(f"p{i % 40}", i, {"mass": float(i % 3 == 0), "edema": float(i % 5 == 0)}) for i in range(200)
    ]
    whole = assign_stratified_splits(films, 0, 0.1, 0.2)
    monkeypatch.setattr("chess_cxr.ingest.split._EVENTS_TO_MERGE", 7)
    assert assign_stratified_splits(films, 0, 0.1, 0.2) == whole
