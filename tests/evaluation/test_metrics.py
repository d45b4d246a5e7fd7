import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from chess_cxr.evaluation.metrics import (
    RankedScores,
    build_multiclass_statistic,
    build_multilabel_statistic,
    compute_multiclass,
    compute_multilabel,
)
from chess_cxr.records import UsageError

NAMES = ("bacteria", "normal", "virus")


def count_pairs(positive: list[bool], score: list[float]) -> float:
    """Area under the ROC curve the slow way: every film of the class against every other film."""
    wins = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i, here in enumerate(positive)
        if here
        for j, there in enumerate(positive)
        if not there
    ]
    return sum(wins) / len(wins) if wins else math.nan


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=25))
def test_auroc_counts_pairs_and_half_of_ties(films: list[tuple[bool, int]]) -> None:
    positive, score = [film[0] for film in films], [float(film[1]) for film in films]
    got = RankedScores(np.array(positive), np.array(score)).auroc(np.ones((1, len(films))))[0]
    assert got == pytest.approx(count_pairs(positive, score), nan_ok=True)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=20))
def test_a_weight_is_a_repeated_film(films: list[tuple[bool, int, int]]) -> None:
    positive, score = np.array([film[0] for film in films]), np.array([float(film[1]) for film in films])
    weight = np.array([film[2] for film in films])
    ranked = RankedScores(positive, score)
    again = np.repeat(np.arange(len(films)), weight)
    for area in ("auroc", "auprc"):
        got = getattr(ranked, area)(weight[None].astype(float))[0]
        if len(again) == 0:
            assert math.isnan(got)
            continue
        want = getattr(RankedScores(positive[again], score[again]), area)(np.ones((1, len(again))))[0]
        assert got == pytest.approx(want, nan_ok=True)


def draw_multiclass(seed: int, films: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, films)
    return label, np.round(generator.normal(size=(films, 3)) + np.eye(3)[label], 1)


def test_multiclass_metrics_agree_with_scikit_learn() -> None:
    label, score = draw_multiclass(0)
    found = compute_multiclass(label, score, NAMES)
    prediction = score.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(label, prediction))
    assert found["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(label, prediction))
    assert found["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(label, prediction, average="macro"))
    for c, name in enumerate(NAMES):
        assert found[f"auroc/{name}"] == pytest.approx(sklearn_metrics.roc_auc_score(label == c, score[:, c]))
    assert found["auroc"] == pytest.approx(np.mean([found[f"auroc/{name}"] for name in NAMES]))


def test_multilabel_metrics_agree_with_scikit_learn_on_the_known_films() -> None:
    generator = np.random.default_rng(1)
    label = (generator.random((150, 2)) < 0.3).astype(float)
    score = np.round(generator.normal(size=(150, 2)) + label, 1)
    label[generator.random((150, 2)) < 0.4] = np.nan
    found = compute_multilabel(label, score, ("Edema", "Mass"))
    for j, name in enumerate(("Edema", "Mass")):
        known = ~np.isnan(label[:, j])
        truth = label[known, j]
        assert found[f"auroc/{name}"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, score[known, j]))
        assert found[f"auprc/{name}"] == pytest.approx(sklearn_metrics.average_precision_score(truth, score[known, j]))


def test_a_finding_without_both_classes_is_nan_and_left_out_of_the_mean() -> None:
    label = [[1.0, 0.0, np.nan], [0.0, 0.0, np.nan], [1.0, np.nan, np.nan]]
    score = [[0.9, 0.1, 0.2], [0.2, 0.3, 0.4], [0.8, 0.5, 0.6]]
    found = compute_multilabel(label, score, ("a", "b", "c"))
    assert math.isnan(found["auroc/b"]) and math.isnan(found["auroc/c"]) and math.isnan(found["auprc/b"])
    assert found["auroc"] == found["auroc/a"] == 1.0


def test_a_class_without_films_is_left_out_of_the_means() -> None:
    found = compute_multiclass([0, 0, 1, 1], [[2, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], NAMES)
    assert math.isnan(found["auroc/virus"])
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_many_weightings_at_once_equal_one_at_a_time() -> None:
    label, score = draw_multiclass(2, films=60)
    weight = np.random.default_rng(3).integers(0, 3, size=(20, 60)).astype(float)
    together = build_multiclass_statistic(label, score, NAMES)(weight)
    for row in range(20):
        again = np.repeat(np.arange(60), weight[row].astype(int))
        alone = compute_multiclass(label[again], score[again], NAMES)
        assert {metric: value[row] for metric, value in together.items()} == pytest.approx(alone, nan_ok=True)


def test_multilabel_weightings_skip_unknown_films() -> None:
    label = np.array([[1.0], [0.0], [np.nan], [0.0]])
    statistic = build_multilabel_statistic(label, [[0.6], [0.4], [0.9], [0.7]], ("Edema",))
    assert statistic(np.array([[1.0, 1.0, 5.0, 1.0], [1.0, 3.0, 0.0, 1.0]]))["auroc"] == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([0, 1, 3], np.zeros((3, 3)), "whole numbers from 0 to 2"),
        ([0, 1, 0.5], np.zeros((3, 3)), "whole numbers"),
        ([0, 1, np.nan], np.zeros((3, 3)), "NaN"),
        ([0, 1], np.zeros((3, 3)), "2 labels but scores for 3 films"),
        ([0, 1, 2], np.zeros((3, 2)), "do not fit 3 names"),
        ([0, 1, 2], np.full((3, 3), np.nan), "diverged"),
        ([], np.zeros((0, 3)), "no films"),
        (["a", "b", "c"], np.zeros((3, 3)), "one class index a film"),
    ],
)
def test_bad_multiclass_input_is_refused_in_one_line(label: list[float], score: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compute_multiclass(label, score, NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"), [([[0.5]], "must be 1"), ([[1.0, 0.0]], "do not fit 1 finding"), ([1.0], "do not fit")]
)
def test_bad_findings_are_refused(label: list[object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compute_multilabel(label, [[0.5]], ("Edema",))


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="same name"):
        compute_multiclass([0, 1], np.eye(2), ("virus", "virus"))
