import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from chess_cxr.evaluation.calibration_error import ECE_BINS, assign_bins
from chess_cxr.evaluation.metrics import (
    LEVELS,
    Statistic,
    build_binary_statistic,
    build_multiclass_statistic,
    build_multilabel_statistic,
    build_ordinal_statistic,
    compute_multiclass,
    compute_multilabel,
    evaluate_once,
)
from chess_cxr.evaluation.ranked_scores import RankedScores
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
        assert found[f"auprc/{name}"] == pytest.approx(sklearn_metrics.average_precision_score(label == c, score[:, c]))
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
        (["a", "b", "c"], np.zeros((3, 3)), "one class index per film"),
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


def flag_by_hand(positive: list[bool], score: list[float]) -> list[tuple[float, float]]:
    """(sensitivity, specificity) of every threshold, and of flagging nothing."""
    chosen = []
    for threshold in [*set(score), math.inf]:
        flagged = [value >= threshold for value in score]
        hits = sum(f and p for f, p in zip(flagged, positive, strict=True))
        alarms = sum(f and not p for f, p in zip(flagged, positive, strict=True))
        chosen.append((hits / sum(positive), 1 - alarms / (len(positive) - sum(positive))))
    return chosen


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25))
def test_sensitivity_and_specificity_are_the_best_of_all_thresholds(films: list[tuple[bool, int, int]]) -> None:
    positive, score = np.array([film[0] for film in films]), np.array([float(film[1]) for film in films])
    weight = np.array([film[2] for film in films])
    tally = RankedScores(positive, score).tally(weight[:, None].astype(np.float32))
    again = np.repeat(np.arange(len(films)), weight)
    both = positive[again].any() and not positive[again].all()
    points = flag_by_hand(positive[again].tolist(), score[again].tolist()) if both else []
    for level in (0.5, 0.9, 1.0):
        want = [sens for sens, spec in points if spec >= level - 1e-9]
        assert tally.find_sensitivity(level)[0] == pytest.approx(max(want) if want else math.nan, nan_ok=True)
        want = [spec for sens, spec in points if sens >= level - 1e-9]
        assert tally.find_specificity(level)[0] == pytest.approx(max(want) if want else math.nan, nan_ok=True)


def test_a_specificity_that_is_met_exactly_counts() -> None:
    score = np.arange(30) / 30
    for negatives in range(1, 30):
        positive = np.arange(30) >= negatives
        tally = RankedScores(positive, score).tally(np.ones((30, 1)))
        for quiet in range(1, negatives + 1):
            assert tally.find_sensitivity(quiet / negatives)[0] == 1.0


def test_operating_points_are_named_by_level_and_class() -> None:
    label, score = draw_multiclass(4)
    found = compute_multiclass(label, score, NAMES, operating_points=True)
    assert LEVELS == (0.8, 0.9, 0.95)
    for level in ("0.8", "0.9", "0.95"):
        for metric in (f"sensitivity_at_specificity_{level}", f"specificity_at_sensitivity_{level}"):
            assert found[metric] == pytest.approx(np.mean([found[f"{metric}/{name}"] for name in NAMES]))
    points = flag_by_hand((label == 1).tolist(), score[:, 1].tolist())
    want = max(sens for sens, spec in points if spec >= 0.9)
    assert found["sensitivity_at_specificity_0.9/normal"] == pytest.approx(want)
    assert not any("_at_" in metric for metric in compute_multiclass(label, score, NAMES))


def draw_probabilities(seed: int, films: int = 300) -> tuple[np.ndarray, np.ndarray]:
    label, score = draw_multiclass(seed, films)
    power = np.exp(2 * score)
    return label, power / power.sum(axis=1, keepdims=True)


def expect_by_hand(confidence: np.ndarray, hit: np.ndarray) -> float:
    bins = assign_bins(confidence)
    return sum((bins == b).mean() * abs(confidence[bins == b].mean() - hit[bins == b].mean()) for b in np.unique(bins))


def test_calibration_of_classes_agrees_with_scikit_learn_and_the_definition() -> None:
    label, probability = draw_probabilities(5)
    found = compute_multiclass(label, probability, NAMES, probabilities=True)
    want = sklearn_metrics.brier_score_loss(label, probability, labels=[0, 1, 2], scale_by_half=False)
    assert found["brier"] == pytest.approx(want)
    hit = probability.argmax(axis=1) == label
    assert found["ece"] == pytest.approx(expect_by_hand(probability.max(axis=1), hit))
    assert "brier" not in compute_multiclass(label, probability, NAMES)


def test_calibration_of_findings_leaves_unknown_films_out() -> None:
    generator = np.random.default_rng(6)
    probability = generator.random((200, 2))
    label = (generator.random((200, 2)) < probability**2).astype(float)
    label[generator.random((200, 2)) < 0.3] = np.nan
    found = compute_multilabel(label, probability, ("Edema", "Mass"), probabilities=True)
    for j, name in enumerate(("Edema", "Mass")):
        known = ~np.isnan(label[:, j])
        truth, chance = label[known, j], probability[known, j]
        assert found[f"brier/{name}"] == pytest.approx(sklearn_metrics.brier_score_loss(truth, chance))
        assert found[f"ece/{name}"] == pytest.approx(expect_by_hand(chance, truth))
    assert found["ece"] == pytest.approx((found["ece/Edema"] + found["ece/Mass"]) / 2)
    # P(present) is p squared: the distance between both is 1/2 - 1/3.
    assert found["ece"] == pytest.approx(1 / 6, abs=0.06)


def test_bins_hold_as_many_films_each_and_equal_values_together() -> None:
    even = assign_bins(np.random.default_rng(0).random(150))
    assert np.bincount(even).tolist() == [10] * ECE_BINS
    assert assign_bins(np.full(40, 0.7)).tolist() == [0] * 40
    tied = np.r_[np.full(80, 1.0), np.linspace(0.1, 0.9, 20)]
    assert len(set(assign_bins(tied, 10)[:80])) == 1
    assert len(set(assign_bins(np.array([0.3, 0.1, 0.2])))) == 3


def test_probabilities_of_a_sure_and_right_model_have_no_error() -> None:
    found = compute_multiclass([0, 1, 2], np.eye(3), NAMES, probabilities=True)
    assert found["brier"] == found["ece"] == 0.0
    wrong = compute_multiclass([1, 2, 0], np.eye(3), NAMES, probabilities=True)
    assert wrong["brier"] == 2.0 and wrong["ece"] == 1.0


def test_scores_that_are_no_probabilities_are_not_calibrated() -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        compute_multiclass([0, 1], [[2.0, -1.0], [0.0, 1.0]], ("a", "b"), probabilities=True)
    with pytest.raises(UsageError, match="rows sum to 1"):
        compute_multiclass([0, 1], [[0.5, 0.2], [0.3, 0.3]], ("a", "b"), probabilities=True)
    with pytest.raises(UsageError, match="from 0 to 1"):
        build_binary_statistic([0, 1], [0.5, 1.5], probabilities=True)


def test_one_finding_is_a_multilabel_task_with_one_column() -> None:
    generator = np.random.default_rng(7)
    label = generator.choice([0.0, 1.0, np.nan], 120)
    score = generator.random(120)
    want = compute_multilabel(label[:, None], score[:, None], ("nodule",), operating_points=True, probabilities=True)
    statistic = build_binary_statistic(label, score, "nodule", operating_points=True, probabilities=True)
    assert evaluate_once(statistic, 120) == want
    assert want["auroc"] == want["auroc/nodule"]
    with pytest.raises(UsageError, match="one label and one score per film"):
        build_binary_statistic(label[:, None], score)


def test_ordinal_metrics_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(8)
    label = generator.integers(0, 4, 150)
    score = -np.abs(np.arange(4) - (label + generator.normal(0, 1.2, 150))[:, None])
    grades = ("none", "mild", "moderate", "severe")
    found = evaluate_once(build_ordinal_statistic(label, score, grades), 150)
    prediction = score.argmax(axis=1)
    want = sklearn_metrics.cohen_kappa_score(label, prediction, weights="quadratic")
    assert found["weighted_kappa"] == pytest.approx(want)
    assert found["rank_error"] == pytest.approx(sklearn_metrics.mean_absolute_error(label, prediction))
    assert {k: v for k, v in found.items() if k not in ("weighted_kappa", "rank_error")} == (
        compute_multiclass(label, score, grades)
    )


def test_one_rank_alone_has_no_kappa() -> None:
    found = evaluate_once(build_ordinal_statistic([1, 1], [[0, 1, 0], [0, 1, 0]], NAMES), 2)
    assert math.isnan(found["weighted_kappa"]) and found["rank_error"] == 0.0


def test_one_film_has_an_accuracy_and_no_area() -> None:
    found = compute_multiclass([1], [[0.1, 0.8, 0.1]], NAMES, operating_points=True, probabilities=True)
    assert found["accuracy"] == 1.0 and found["brier"] == pytest.approx(0.06)
    assert all(math.isnan(value) for metric, value in found.items() if metric.startswith(("auroc", "auprc", "sens")))


def test_constant_scores_find_nothing_at_a_high_specificity() -> None:
    found = evaluate_once(build_binary_statistic([1, 0, 1, 0, 0], [0.5] * 5, operating_points=True), 5)
    assert found["auroc"] == 0.5 and found["auprc"] == pytest.approx(0.4)
    assert found["sensitivity_at_specificity_0.9"] == 0.0 and found["specificity_at_sensitivity_0.9"] == 0.0


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel", "binary"])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_every_metric_of_many_weightings_is_that_of_repeated_films(kind: str, precision: type) -> None:
    label, probability = draw_probabilities(9, films=60)
    findings = np.where(np.random.default_rng(1).random((60, 3)) < 0.2, np.nan, np.eye(3)[label])

    def build(films: np.ndarray) -> Statistic:
        extras = {"operating_points": True, "probabilities": True}
        if kind == "multilabel":
            return build_multilabel_statistic(findings[films], probability[films], NAMES, **extras)
        if kind == "binary":
            return build_binary_statistic(findings[films, 0], probability[films, 0], **extras)
        make = build_multiclass_statistic if kind == "multiclass" else build_ordinal_statistic
        return make(label[films], probability[films], NAMES, **extras)

    weight = np.random.default_rng(3).integers(0, 3, size=(20, 60)).astype(precision)
    together = build(np.arange(60))(weight)
    for row in range(20):
        again = np.repeat(np.arange(60), weight[row].astype(int))
        alone = build(again)(np.ones((1, len(again))))
        assert set(alone) == set(together)
        for metric in alone:
            if not metric.startswith("ece"):  # whose bins are those of all films
                assert together[metric][row] == pytest.approx(alone[metric][0], nan_ok=True, rel=1e-5), metric


def test_areas_of_whole_weights_are_exact_in_single_precision() -> None:
    generator = np.random.default_rng(10)
    positive, score = generator.random(5000) < 0.3, np.round(generator.normal(size=5000), 2)
    weight = generator.integers(0, 5, (8, 5000))
    ranked = RankedScores(positive, score)
    assert (ranked.auroc(weight.astype(np.float32)) == ranked.auroc(weight.astype(np.float64))).all()


def test_the_layout_of_weights_does_not_matter() -> None:
    label, probability = draw_probabilities(11, films=80)
    statistic = build_multiclass_statistic(label, probability, NAMES, probabilities=True)
    weight = np.random.default_rng(0).integers(0, 3, (7, 80)).astype(np.float64)
    for other in (np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2]):
        assert {k: v.tolist() for k, v in statistic(other).items()} == {
            k: v.tolist() for k, v in statistic(weight).items()
        }
