"""Calibration and operating points: fitted on val films alone, worth something on test films."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from chess_cxr.evaluation.operating_points import LEAST_FILMS
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.classify.fit_operating import fit_operating, measure_operating
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.operating import (
    POINTS,
    build_uncalibrated,
    check_point,
    describe_operating,
    parse_operating,
)
from chess_cxr.tasks.classify.score import compute_log_loss

FILMS = 1200
NAMES = ("a", "b", "c")


def build_rows(label: np.ndarray, task: str, names: tuple[str, ...] = NAMES) -> LabelledRows:
    """Two films a patient; a third of the patients each train, val and test."""
    number = np.arange(len(label))
    target = label if task == "multilabel" else np.eye(len(names))[label]
    split = np.array(["train", "val", "test"])[number // 2 % 3]
    patient = np.array([f"p{n // 2}" for n in number])
    return LabelledRows(
        number, label, names, patient, split, task, patient, target, np.zeros(len(names)),  # type: ignore[arg-type]
    )  # fmt: skip


def draw_findings() -> tuple[LabelledRows, np.ndarray, np.ndarray]:
    """Findings, their true probabilities, and those of a model that is three times too sure and too afraid."""
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 1.2, (FILMS, 3)) + [-1, 0, 1]
    label = (rng.random((FILMS, 3)) < special.expit(logit)).astype(np.float64)
    label[rng.random((FILMS, 3)) < 0.2] = np.nan
    return build_rows(label, "multilabel"), special.expit(logit), special.expit(3 * logit + 1)


def draw_classes() -> tuple[LabelledRows, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 1, (FILMS, 3))
    truth = special.softmax(logit, axis=1)
    label = (rng.random(FILMS)[:, None] > truth.cumsum(1)).sum(1)
    return build_rows(label, "multiclass"), truth, special.softmax(4 * logit, axis=1)


DRAW = {"multilabel": draw_findings, "multiclass": draw_classes}


def share(chosen: LabelledRows, score: np.ndarray) -> dict[str, np.ndarray]:
    return {split: score[chosen.split == split] for split in ("val", "test")}


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_a_model_that_is_too_sure_loses_less_on_test_films_after_calibration(task: str) -> None:
    chosen, truth, score = DRAW[task]()
    scores, test = share(chosen, score), chosen.split == "test"
    operating = fit_operating(chosen, scores["val"])
    assert operating.calibrated == (True,) * 3 and operating.notes == ()
    label = chosen.label_NL[test]
    before, after, ideal = (
        compute_log_loss(label, it, chosen.kind)
        for it in (scores["test"], operating.calibrate(scores["test"]), truth[test])
    )
    assert after < 0.8 * before and after < 1.02 * ideal
    assert operating.calibrate(scores["test"]).dtype == np.float32
    if task == "multiclass":
        assert len(set(operating.slope)) == 1 and operating.slope[0] == pytest.approx(1 / 4, rel=0.2)
        np.testing.assert_allclose(operating.calibrate(scores["test"]).sum(1), 1, atol=1e-6)
    else:
        assert operating.slope == pytest.approx((1 / 3,) * 3, rel=0.25)


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_nothing_but_val_films_chooses(task: str) -> None:
    chosen, _, score = DRAW[task]()
    scores, elsewhere = share(chosen, score), chosen.split != "val"
    turned = chosen.label.copy()
    turned[elsewhere] = 1 - turned[elsewhere] if task == "multilabel" else (turned[elsewhere] + 1) % 3
    one, other = fit_operating(chosen, scores["val"]), fit_operating(replace(chosen, label=turned), scores["val"])
    assert one == other
    moved = chosen.label.copy()
    moved[~elsewhere] = 1 - moved[~elsewhere] if task == "multilabel" else (moved[~elsewhere] + 1) % 3
    assert fit_operating(replace(chosen, label=moved), scores["val"]).slope != one.slope


def test_a_threshold_reaches_its_target_on_val_films_and_the_next_higher_one_misses_it() -> None:
    chosen, _, score = draw_findings()
    scores, val = share(chosen, score), chosen.split == "val"
    operating = fit_operating(chosen, scores["val"])
    probability, label = operating.calibrate(scores["val"]), chosen.label[val]
    for column in range(3):
        positive, negative = (np.sort(probability[label[:, column] == value, column]) for value in (1, 0))
        sensitive, specific = (operating.thresholds[point][column] for point in ("sensitivity_90", "specificity_90"))
        assert sensitive is not None and specific is not None
        assert (positive >= sensitive).mean() >= 0.9
        assert (positive > positive[positive >= sensitive][0]).mean() < 0.9
        assert (negative < specific).mean() >= 0.9
        youden = operating.thresholds["youden"][column]
        assert youden is not None
        gains = [(positive >= at).mean() + (negative < at).mean() for at in (*positive, *negative)]
        assert (positive >= youden).mean() + (negative < youden).mean() == pytest.approx(max(gains))


def test_rows_say_what_the_thresholds_give_on_test_films() -> None:
    chosen, _, score = draw_findings()
    scores, test = share(chosen, score), chosen.split == "test"
    operating = fit_operating(chosen, scores["val"])
    rows = measure_operating(operating, chosen, scores)
    assert [(row["label"], row["point"]) for row in rows] == [(name, point) for name in NAMES for point in POINTS]
    for row in rows:
        column = NAMES.index(row["label"])
        probability, label = operating.calibrate(scores["test"])[:, column], chosen.label[test][:, column]
        assert row["threshold"] == operating.thresholds[row["point"]][column]
        assert row["sensitivity"] == pytest.approx((probability[label == 1] >= row["threshold"]).mean())
        assert row["specificity"] == pytest.approx((probability[label == 0] < row["threshold"]).mean())
        assert row["sensitivity_low"] < row["sensitivity"] < row["sensitivity_high"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_label_with_too_few_val_films_is_left_as_it_is_and_says_how_many_are_enough() -> None:
    chosen, _, score = draw_findings()
    label, val = chosen.label.copy(), np.flatnonzero(chosen.split == "val")
    present = val[label[val, 0] == 1]
    label[present[LEAST_FILMS - 1 :], 0] = np.nan
    few = fit_operating(replace(chosen, label=label), share(chosen, score)["val"])
    assert few.calibrated == (False, True, True)
    assert all(row[0] is None and row[1] is not None for row in few.thresholds.values())
    [note] = few.notes
    assert note.startswith("not calibrated, no threshold: a (9 with and ") and "10 without a label are enough" in note
    changed = few.calibrate(score)
    assert np.array_equal(changed[:, 0], score[:, 0].astype(np.float32)) and not np.allclose(changed[:, 1], score[:, 1])
    label[present[LEAST_FILMS - 1], 0] = 1
    assert fit_operating(replace(chosen, label=label), share(chosen, score)["val"]).calibrated == (True,) * 3


def test_without_val_films_nothing_is_scaled() -> None:
    chosen, _, score = draw_findings()
    split = np.where(chosen.split == "val", "train", chosen.split)
    none = fit_operating(replace(chosen, split=split), np.empty((0, 3)))
    assert none.calibrated == (False,) * 3 and not any(none.thresholds) and "no val film" in none.notes[0]
    assert np.array_equal(none.calibrate(score), score.astype(np.float32))
    assert measure_operating(none, chosen, share(chosen, score)) == []


def test_classes_share_a_temperature_where_a_rare_one_has_no_threshold() -> None:
    chosen, _, score = draw_classes()
    split = chosen.split.copy()
    rare = np.flatnonzero((chosen.label == 2) & (split == "val"))
    split[rare[4:]] = "train"
    operating = fit_operating(replace(chosen, split=split), score[split == "val"])
    assert operating.calibrated == (True,) * 3
    assert [row is None for row in operating.thresholds["youden"]] == [False, False, True]
    assert operating.notes[0].startswith("no threshold: c (4 with and ")


def test_what_is_written_is_what_is_read() -> None:
    chosen, _, score = draw_findings()
    operating = fit_operating(chosen, share(chosen, score)["val"])
    block = json.loads(json.dumps(describe_operating(operating), allow_nan=False))
    assert parse_operating(block, NAMES, "multilabel") == operating
    assert parse_operating(None, NAMES, "multilabel") == build_uncalibrated(NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": [1, 1]}, {"slope": [1e300] * 3}, {"slope": [float("nan")] * 3}, {"offset": "abc"},
        {"calibrated": [1, 1, 1]}, {"thresholds": {"other": [0.5] * 3}}, {"thresholds": {"youden": [2, 0, 0]}},
        {"thresholds": []}, {"notes": [3]}, {"notes": None},
    ],
    ids=str,
)  # fmt: skip
def test_odd_operating_points_are_refused(change: dict[str, object]) -> None:
    block = describe_operating(build_uncalibrated(NAMES))
    with pytest.raises(ChessError, match="none that exist"):
        parse_operating(block | change, NAMES, "multilabel")


def test_an_unknown_point_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="no operating point named 'best'; there are youden, sensitivity_90, specificity_90"
    ):
        check_point("best")
