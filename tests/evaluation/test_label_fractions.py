from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.evaluation.label_fractions import assign_folds, draw_label_fraction
from chess_cxr.records import UsageError

FRACTIONS = (0.01, 0.05, 0.1, 0.3, 1.0)


def make_films(seed: int = 0, patients: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label_P = generator.choice(3, size=patients, p=[0.7, 0.25, 0.05])
    patient = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
    order = generator.permutation(len(patient))
    return np.array([f"p{code}" for code in patient[order]]), label_P[patient[order]]


@pytest.mark.parametrize("one_film_per_patient", [False, True])
def test_a_smaller_fraction_lies_inside_a_larger_one(one_film_per_patient: bool) -> None:
    patient, label = make_films()
    subsets = [
        set(draw_label_fraction(patient, label, fraction=f, seed=3, one_film_per_patient=one_film_per_patient).tolist())
        for f in FRACTIONS
    ]
    for small, large in zip(subsets, subsets[1:], strict=False):
        assert small < large


def test_patients_come_whole() -> None:
    patient, label = make_films()
    for fraction in FRACTIONS:
        index = draw_label_fraction(patient, label, fraction=fraction, seed=1)
        assert set(patient[index]).isdisjoint(np.delete(patient, index))


def test_a_fraction_counts_patients_and_the_whole_is_everything() -> None:
    patient, label = make_films()
    tenth = draw_label_fraction(patient, label, fraction=0.1)
    assert len(np.unique(patient[tenth])) == 40
    assert draw_label_fraction(patient, label, fraction=1.0).tolist() == list(range(len(patient)))


def test_every_subset_holds_every_class_even_the_smallest() -> None:
    patient, label = make_films()
    for seed in range(20):
        index = draw_label_fraction(patient, label, fraction=0.001, seed=seed)
        assert sorted(np.unique(label[index])) == [0, 1, 2]
        assert len(np.unique(patient[index])) == 3


def test_class_shares_of_patients_stay_close_to_the_whole() -> None:
    patient, label = make_films()
    first = np.unique(patient, return_index=True)[1]
    shares = np.bincount(label[first]) / len(first)
    for count in (20, 57, 200):
        index = draw_label_fraction(patient, label, fraction=count / 400, seed=5)
        drawn = np.unique(patient[index], return_index=True)[1]
        assert np.abs(np.bincount(label[index][drawn]) - shares * count).max() <= 1.5


def test_seeds_decide_the_draw() -> None:
    patient, label = make_films()
    draws = [draw_label_fraction(patient, label, fraction=0.05, seed=seed).tolist() for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3


def test_the_order_of_the_films_does_not_decide_which_classes_come_first() -> None:
    patient, label = make_films()
    picked = [draw_label_fraction(patient, label, fraction=0.01, seed=seed) for seed in range(100)]
    assert len(np.unique(np.concatenate(picked))) > 0.4 * len(patient)


def test_one_film_per_patient_gives_as_many_patients_as_films() -> None:
    patient, label = make_films()
    index = draw_label_fraction(patient, label, films=31, one_film_per_patient=True)
    assert len(index) == len(np.unique(patient[index])) == 31
    assert sorted(np.unique(label[index])) == [0, 1, 2]


def test_a_number_of_films_is_reached_with_the_fewest_patients() -> None:
    patient, label = make_films()
    index = draw_label_fraction(patient, label, films=50, seed=2)
    assert 50 <= len(index) < 55
    short = draw_label_fraction(patient, label, fraction=(len(np.unique(patient[index])) - 1) / 400, seed=2)
    assert len(short) < 50


def test_rare_findings_are_represented_first() -> None:
    generator = np.random.default_rng(0)
    finding = (generator.random((500, 3)) < [0.5, 0.1, 0.01]).astype(float)
    finding[generator.random((500, 3)) < 0.1] = np.nan
    finding[17, 2] = 1.0
    for seed in range(10):
        index = draw_label_fraction(np.arange(500), finding, fraction=0.01, seed=seed)
        assert (np.nansum(finding[index], axis=0) > 0).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "either"),
        ({"fraction": 0.5, "films": 3}, "either"),
        ({"fraction": 0.0}, "label fraction"),
        ({"fraction": 1.5}, "label fraction"),
        ({"films": 0}, "cannot draw"),
        ({"films": 4}, "cannot draw 4 films from 3"),
    ],
)
def test_impossible_requests_are_refused(request_: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_label_fraction(["a", "b", "c"], [0, 1, 0], **request_)


def test_labels_and_patients_must_agree() -> None:
    with pytest.raises(UsageError, match="2 labels do not fit 3 films"):
        draw_label_fraction(["a", "b", "c"], [0, 1], fraction=1.0)


def test_folds_keep_patients_whole_and_deal_every_class_evenly() -> None:
    patient, label = make_films()
    fold = assign_folds(patient, label, 5, seed=1)
    for name in np.unique(patient):
        assert len(np.unique(fold[patient == name])) == 1
    for c in range(3):
        counts = [len(np.unique(patient[(label == c) & (fold == f)])) for f in range(5)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.real_films
def test_one_percent_of_real_films_holds_every_class(real_films: Path) -> None:
    table = pd.read_csv(real_films / "kermany3" / "labels.csv").query("split == 'train'")
    index = draw_label_fraction(table["patient"], table["label"].astype("category").cat.codes, fraction=0.01)
    drawn = table.iloc[index]
    assert drawn["patient"].nunique() == 17
    assert drawn["label"].nunique() == 3
    assert not set(drawn["patient"]) & set(table.drop(drawn.index)["patient"])
