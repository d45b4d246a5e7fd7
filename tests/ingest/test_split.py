from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chess_cxr.ingest.split import assign_split, find_given_splits
from chess_cxr.records import ChessError, SourceFilm, UsageError

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
    with pytest.raises(UsageError, match="fractions"):
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
