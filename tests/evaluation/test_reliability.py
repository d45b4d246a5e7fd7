import math

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from chess_cxr.evaluation.metrics import compute_multiclass, compute_multilabel
from chess_cxr.evaluation.reliability import compute_reliability, fit_platt, fit_temperature
from chess_cxr.records import UsageError

NAMES = ("bacteria", "normal", "virus")


def draw_classes(seed: int, films: int = 1500, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from true probabilities, and the probabilities of a model `sharpness` times too sure of them."""
    generator = np.random.default_rng(seed)
    score = generator.normal(size=(films, 3))
    true = special.softmax(score, axis=1)
    label = (true.cumsum(axis=1) < generator.random((films, 1))).sum(axis=1)
    return label, special.softmax(sharpness * score, axis=1).astype(np.float32)


def draw_findings(seed: int, films: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Two findings; the first is given three times too sharply and too often, the second as it is; some unknown."""
    generator = np.random.default_rng(seed)
    score = generator.normal(-0.5, 1.5, size=(films, 2))
    label = (generator.random((films, 2)) < special.expit(score)).astype(float)
    label[generator.random((films, 2)) < 0.2] = np.nan
    return label, special.expit(score * [3.0, 1.0] + [2.0, 0.0]).astype(np.float32)


def test_a_model_three_times_too_sure_gets_temperature_three() -> None:
    label, probability = draw_classes(0)
    found = fit_temperature(label, probability, NAMES, "multiclass")
    assert found.temperature == pytest.approx(3.0, rel=0.1) and not found.notes
    assert found.after < found.before


def test_the_temperature_is_the_one_of_a_grid() -> None:
    label, probability = draw_classes(1, films=120)
    logs = np.log(probability.astype(np.float64).clip(1e-7, 1 - 1e-7))
    grid = np.linspace(0.5, 8, 3000)
    losses = [-np.log(special.softmax(logs / t, axis=1)[np.arange(120), label]).mean() for t in grid]
    found = fit_temperature(label, probability, NAMES, "multiclass")
    assert found.temperature == pytest.approx(grid[np.argmin(losses)], abs=0.01)
    assert found.after == pytest.approx(min(losses), abs=1e-6)
    assert found.before == pytest.approx(log_loss(label, special.softmax(logs, axis=1), labels=[0, 1, 2]))


def test_scaling_on_validation_films_betters_the_calibration_of_others() -> None:
    scaling = fit_temperature(*draw_classes(2, films=300), NAMES, "multiclass")
    label, probability = draw_classes(3)
    before = compute_multiclass(label, probability, NAMES, probabilities=True)
    after = compute_multiclass(label, scaling.apply(probability), NAMES, probabilities=True)
    assert before["ece"] > 0.15 and after["ece"] < 0.07 and after["brier"] < before["brier"]
    assert after["accuracy"] == before["accuracy"]
    assert scaling.apply(probability).sum(axis=1) == pytest.approx(1.0)


def test_one_temperature_serves_all_findings() -> None:
    generator = np.random.default_rng(4)
    score = generator.normal(size=(3000, 2))
    label = (generator.random((3000, 2)) < special.expit(score)).astype(float)
    found = fit_temperature(label, special.expit(2 * score), ("Edema", "Mass"), "multilabel")
    assert found.temperature == pytest.approx(2.0, rel=0.1)


def test_platt_scaling_is_the_logistic_regression_of_the_soft_targets() -> None:
    label, probability = draw_findings(5, films=200)
    found = fit_platt(label, probability, ("Edema", "Mass"))
    for j in range(2):
        known = ~np.isnan(label[:, j])
        score, truth = special.logit(probability[known, j].astype(np.float64).clip(1e-7, 1 - 1e-7)), label[known, j]
        positives, negatives = truth.sum(), (1 - truth).sum()
        soft = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        weighted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        weighted.fit(
            np.r_[score, score][:, None], np.r_[np.ones(len(score)), np.zeros(len(score))], np.r_[soft, 1 - soft]
        )
        assert found.slope_C[j] == pytest.approx(weighted.coef_[0, 0], rel=1e-3)
        assert found.offset_C[j] == pytest.approx(weighted.intercept_[0], abs=1e-3)


def test_platt_scaling_mends_each_finding_by_itself_and_turns_no_order() -> None:
    scaling = fit_platt(*draw_findings(6), ("Edema", "Mass"))
    assert scaling.slope_C == pytest.approx([1 / 3, 1.0], rel=0.15) and math.isnan(scaling.temperature)
    label, probability = draw_findings(7)
    before = compute_multilabel(label, probability, ("Edema", "Mass"), probabilities=True)
    after = compute_multilabel(label, scaling.apply(probability), ("Edema", "Mass"), probabilities=True)
    assert before["ece/Edema"] > 0.1 and after["ece/Edema"] < 0.06
    assert after["auroc"] == pytest.approx(before["auroc"])


def test_a_finding_without_both_labels_is_left_as_it_is() -> None:
    label, probability = draw_findings(8, films=50)
    label[:, 1] = 0.0
    found = fit_platt(label, probability, ("Edema", "Mass"))
    assert "Mass" in found.notes[0] and len(found.notes) == 1
    assert found.apply(probability)[:, 1] == pytest.approx(probability[:, 1], abs=1e-6)


def test_scores_that_point_the_wrong_way_are_flattened_not_turned() -> None:
    label, probability = draw_findings(9, films=300)
    found = fit_platt(1 - label, probability, ("Edema", "Mass"))
    assert found.slope_C.tolist() == [0.0, 0.0] and len(found.notes) == 2
    assert found.apply(probability)[:, 0] == pytest.approx(np.nanmean(1 - label[:, 0]), abs=0.01)


def test_films_that_a_model_separates_give_a_finite_scaling_and_a_note() -> None:
    probability = special.softmax(np.eye(3) + 0.2, axis=1)
    found = fit_temperature([0, 1, 2], probability, NAMES, "multiclass")
    assert found.temperature == pytest.approx(1 / 20, rel=0.01) and "end of its range" in found.notes[0]
    line = fit_platt([[0.0], [0.0], [1.0], [1.0]], [[0.1], [0.2], [0.8], [0.9]], ("Edema",))
    assert np.isfinite(line.apply([[0.0], [1.0]])).all() and 0 < line.slope_C[0] < 20


def test_no_known_label_changes_nothing() -> None:
    found = fit_temperature([[math.nan]], [[0.3]], ("Edema",), "multilabel")
    assert found.apply([[0.3]]) == pytest.approx(0.3) and "no validation film" in found.notes[0]


def test_certain_probabilities_of_single_precision_are_no_infinity() -> None:
    probability = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    found = fit_temperature([0, 1, 1], probability, ("a", "b"), "multiclass")
    assert math.isfinite(found.before) and np.isfinite(found.apply(probability)).all()
    # Two of three are right: the best that such a model can say of each is 2/3.
    assert found.apply(probability)[0, 0] == pytest.approx(2 / 3, abs=1e-3)


def test_the_points_of_a_plot_are_those_of_a_loop() -> None:
    label, probability = draw_findings(10, films=400)
    patient = np.arange(400) // 2
    table = compute_reliability(label, probability, ("Edema", "Mass"), patient, "multilabel", bins=5)
    assert len(table) == 10 and list(table["name"].unique()) == ["Edema", "Mass"]
    known = ~np.isnan(label[:, 0])
    assert table[table["name"] == "Edema"]["films"].sum() == known.sum()
    for row in table[table["name"] == "Edema"].itertuples():
        films = known & (probability[:, 0] >= row.lowest) & (probability[:, 0] <= row.highest)
        assert row.films == films.sum() and row.patients == len(set(patient[films]))
        assert row.rate == pytest.approx(label[films, 0].mean())
        assert row.confidence == pytest.approx(probability[films, 0].mean())
        assert row.low <= row.rate <= row.high


def test_the_predicted_class_has_one_curve() -> None:
    label, probability = draw_classes(11, films=600)
    table = compute_reliability(label, probability, NAMES, np.arange(600), "multiclass", bins=6)
    assert set(table["name"]) == {"predicted class"} and table["films"].tolist() == [100] * 6
    hit = probability.argmax(axis=1) == label
    assert (table["rate"] * table["films"]).sum() == pytest.approx(hit.sum())
    assert (table["confidence"] > table["high"]).sum() >= 4


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="rows sum to 1"):
        fit_temperature([0], [[0.2, 0.2]], ("a", "b"), "multiclass")
    with pytest.raises(UsageError, match="2 labels but probabilities of 1 films"):
        fit_temperature([0, 1], [[0.2, 0.8]], ("a", "b"), "multiclass")
    with pytest.raises(UsageError, match="do not fit 3 scaled"):
        fit_temperature(*draw_classes(0, 20), NAMES, "multiclass").apply([[0.5, 0.5]])
    with pytest.raises(UsageError, match="do not make a plot"):
        compute_reliability([0], [[0.2, 0.8]], ("a", "b"), [1, 2], "multiclass")
