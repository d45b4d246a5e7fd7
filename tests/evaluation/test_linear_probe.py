import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from chess_cxr.evaluation.linear_probe import DEFAULT_STRENGTH, STRENGTHS, fit_linear_probe, tell_edges
from chess_cxr.evaluation.logistic import Targets, compute_film_losses, solve_logistic, turn_features
from chess_cxr.evaluation.metrics import compute_multiclass
from chess_cxr.records import UsageError

NAMES = ("bacteria", "normal", "virus")


def make_films(films: int, features: int, seed: int = 0, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features on very different scales, whose first directions tell three classes apart."""
    generator = np.random.default_rng(seed)
    label = np.arange(films) % 3
    mixing = np.random.default_rng(99).normal(size=(8, features))
    hidden = generator.normal(size=(films, 8))
    hidden[:, :3] += gap * np.eye(3)[label]
    feature = (hidden @ mixing + 0.3 * generator.normal(size=(films, features))) * np.geomspace(0.01, 100, features)
    return feature.astype(np.float32) + 5, label


def fit_scikit(feature: np.ndarray, label: np.ndarray, strength: float) -> tuple[np.ndarray, LogisticRegression]:
    """scikit-learn on standardised features; its C is one over the penalty of the summed loss."""
    scaled = StandardScaler().fit_transform(feature.astype(np.float64))
    model = LogisticRegression(C=1 / (strength * scaled.size), tol=1e-10, max_iter=20000)
    return scaled, model.fit(scaled, label)


@pytest.mark.parametrize(("films", "features"), [(150, 20), (45, 80)])
@pytest.mark.parametrize("strength", [0.1, 1e-2, 1e-4])
def test_the_softmax_probe_agrees_with_scikit_learn(films: int, features: int, strength: float) -> None:
    feature, label = make_films(films, features)
    probe = fit_linear_probe(feature, label, np.arange(films), names=NAMES, strengths=[strength])
    scaled, model = fit_scikit(feature, label, strength)
    assert probe.predict_scores(feature) == pytest.approx(model.predict_proba(scaled), abs=1e-3)
    ours = probe.coefficient_DC.T / np.sqrt(features)
    assert ours == pytest.approx(model.coef_, abs=1e-3 * np.abs(model.coef_).max())


def test_each_finding_agrees_with_scikit_learn_on_its_known_films() -> None:
    feature, label = make_films(160, 30)
    finding = np.stack([label == 0, label == 2, np.arange(160) % 11 == 0], axis=1).astype(float)
    finding[np.random.default_rng(1).random(finding.shape) < 0.3] = np.nan
    probe = fit_linear_probe(feature, finding, np.arange(160), names=("a", "b", "c"), strengths=[1e-3])
    scaled = (feature - probe.mean_D) * probe.scale_D
    found = probe.predict_scores(feature)
    for j in range(3):
        known = ~np.isnan(finding[:, j])
        model = LogisticRegression(C=1 / (1e-3 * known.sum()), tol=1e-10, max_iter=20000)
        model.fit(scaled[known], finding[known, j])
        assert found[:, j] == pytest.approx(model.predict_proba(scaled)[:, 1], abs=1e-3)


def test_the_solver_reaches_the_minimum_of_the_objective_written_out() -> None:
    feature, label = make_films(40, 4)
    scaled = (feature - feature.mean(0)) / feature.std(0) / 2
    target = np.eye(3)[label]

    def objective(theta: np.ndarray) -> float:
        score = scaled @ theta[:12].reshape(4, 3) + theta[12:]
        loss = np.log(np.exp(score).sum(axis=1)) - (score * target).sum(axis=1)
        return float(loss.mean() + 0.01 / 2 * (theta[:12] ** 2).sum())

    slow = optimize.minimize(objective, np.zeros(15), method="BFGS")
    probe = fit_linear_probe(feature, label, np.arange(40), names=NAMES, strengths=[0.01])
    ours = objective(np.concatenate([probe.coefficient_DC.ravel(), probe.intercept_C]))
    assert ours == pytest.approx(slow.fun, abs=1e-6)


def test_fits_side_by_side_equal_fits_alone() -> None:
    feature, label = make_films(90, 30)
    turned = turn_features((feature - feature.mean(0)) / feature.std(0) / np.sqrt(30))
    fold = np.arange(90) // 3 % 3
    weight = (fold[:, None] != np.arange(3)) / 60.0
    together = solve_logistic(turned, Targets(False, np.eye(3)[label], weight[:, :, None]), np.full(3, 1e-3))
    for g in range(3):
        alone = Targets(False, np.eye(3)[label], weight[:, [g], None])
        fit = solve_logistic(turned, alone, np.full(3, 1e-3))
        assert together.compute_scores(turned.coordinate_NK)[:, g] == pytest.approx(
            fit.compute_scores(turned.coordinate_NK)[:, 0], abs=2e-3
        )


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_slope_of_the_loss_agrees_with_finite_differences(multilabel: bool) -> None:
    generator = np.random.default_rng(0)
    label = np.eye(3)[generator.integers(0, 3, 5)]
    targets = Targets(multilabel, label, np.ones((5, 2, 1)))
    score = generator.normal(size=(5, 2, 3)) * 3
    _, slope = compute_film_losses(targets, score)
    for place in np.ndindex(score.shape):
        step = np.zeros_like(score)
        step[place] = 1e-5
        up, down = (compute_film_losses(targets, score + sign * step)[0].sum() for sign in (1, -1))
        assert slope[place] == pytest.approx((up - down) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (20, 20)])
def test_turning_keeps_every_distance_and_can_be_undone(shape: tuple[int, int]) -> None:
    feature = np.random.default_rng(0).normal(size=shape)
    feature -= feature.mean(0)
    turned = turn_features(feature)
    assert turned.coordinate_NK @ turned.direction_DK.T == pytest.approx(feature, abs=1e-5)
    assert turned.direction_DK.T @ turned.direction_DK == pytest.approx(np.eye(len(turned.spread_K)), abs=1e-8)


def test_the_strength_is_the_one_of_least_held_out_loss() -> None:
    feature, label = make_films(60, 100, gap=0.7)
    probe = fit_linear_probe(feature, label, np.arange(60), names=NAMES)
    losses = {strength: loss[0] for strength, loss in probe.validation}
    assert probe.strength_C.tolist() == [min(losses, key=lambda strength: losses[strength])] * 3
    assert set(losses) <= set(STRENGTHS) and len(losses) >= 3


def test_held_out_losses_are_those_of_models_that_never_saw_the_patient() -> None:
    feature, label = make_films(60, 30, gap=0.5)
    patient = np.arange(60) // 3 * 3 + label  # every patient has one film here
    twin_feature, twin_label = np.repeat(feature, 4, axis=0), np.repeat(label, 4)
    by_patient = fit_linear_probe(
        twin_feature, twin_label, np.repeat(patient, 4), names=NAMES, strengths=[1e-6, 1e-5, 1e-4]
    )
    by_film = fit_linear_probe(twin_feature, twin_label, np.arange(240), names=NAMES, strengths=[1e-6, 1e-5, 1e-4])
    assert by_film.validation[-1][1][0] < 0.5 * by_patient.validation[-1][1][0]


def test_noise_gets_the_strongest_penalty() -> None:
    feature = np.random.default_rng(3).normal(size=(90, 200))
    probe = fit_linear_probe(feature, np.arange(90) % 3, np.arange(90), names=NAMES)
    assert probe.strength_C[0] == STRENGTHS[0]


def test_separable_classes_are_learned_without_running_away() -> None:
    feature, label = make_films(60, 40, gap=30.0)
    probe = fit_linear_probe(feature, label, np.arange(60), names=NAMES)
    other, truth = make_films(300, 40, seed=5, gap=30.0)
    assert compute_multiclass(truth, probe.predict_scores(other), NAMES)["accuracy"] == 1.0
    assert np.abs(probe.coefficient_DC).max() < 1e4


def test_a_constant_feature_changes_nothing() -> None:
    feature, label = make_films(60, 10)
    extra = np.full((60, 1), np.float32(0.1))
    probe = fit_linear_probe(np.hstack([feature, extra]), label, np.arange(60), names=NAMES, strengths=[1e-2])
    assert probe.scale_D[-1] == 0.0
    other = make_films(9, 10, seed=2)[0]
    moved = [probe.predict_scores(np.hstack([other, np.full((9, 1), value)])) for value in (0.1, 1e6)]
    assert moved[0] == pytest.approx(moved[1])


def test_features_that_are_all_constant_give_the_class_shares() -> None:
    probe = fit_linear_probe(np.ones((40, 5)), np.arange(40) % 4 // 2, np.arange(40), names=("a", "b"))
    assert probe.predict_scores(np.zeros((2, 5))) == pytest.approx(np.full((2, 2), 0.5), abs=1e-4)


def test_a_class_without_a_training_film_keeps_its_column_at_zero() -> None:
    feature, label = make_films(60, 10, gap=3.0)
    keep = label != 1
    probe = fit_linear_probe(feature[keep], label[keep], np.arange(60)[keep], names=NAMES)
    score = probe.predict_scores(feature)
    assert (score[:, 1] == 0).all() and score.sum(axis=1) == pytest.approx(1.0)
    assert probe.notes == ("normal: no training film, probability 0",)
    assert (score.argmax(axis=1) == label)[keep].mean() > 0.8


def test_a_single_class_is_predicted_with_certainty() -> None:
    feature, _ = make_films(10, 4)
    probe = fit_linear_probe(feature, np.full(10, 2), np.arange(10), names=NAMES)
    assert (probe.predict_scores(feature) == [0, 0, 1]).all()
    assert len(probe.notes) == 2


def test_findings_of_one_value_or_none_get_one_score_and_a_note() -> None:
    feature, label = make_films(60, 10)
    finding = np.stack([label == 0, np.zeros(60), np.ones(60), np.full(60, np.nan)], axis=1).astype(float)
    probe = fit_linear_probe(feature, finding, np.arange(60), names=("a", "b", "c", "d"))
    score = probe.predict_scores(feature)
    assert np.ptp(score[:, 0]) > 0.3
    assert (np.ptp(score[:, 1:], axis=0) == 0).all()
    assert score[0, 1] < 0.05 and score[0, 2] > 0.95 and score[0, 3] == 0.5
    assert [note.split(" in ")[0] for note in probe.notes] == ["b: only absent", "c: only present", "d: unknown"]


def test_findings_choose_their_own_strengths() -> None:
    feature, label = make_films(240, 30)
    noise = np.random.default_rng(0).random(240) < 0.5
    probe = fit_linear_probe(
        feature, np.stack([label == 0, noise], axis=1).astype(float), np.arange(240), names=("signal", "noise")
    )
    assert probe.strength_C[0] < probe.strength_C[1] == STRENGTHS[0]


def test_too_few_patients_take_the_default_strength_and_say_so() -> None:
    feature, _ = make_films(6, 4)
    probe = fit_linear_probe(feature, [0, 0, 1, 1, 2, 2], ["a", "a", "b", "b", "c", "c"], names=NAMES)
    assert probe.strength_C.tolist() == [DEFAULT_STRENGTH] * 3
    assert probe.validation == ()
    assert "too few patients" in probe.notes[0]


def test_a_finding_of_one_patient_takes_the_default_while_others_choose() -> None:
    feature, label = make_films(60, 10)
    finding = np.stack([label == 0, np.arange(60) == 7], axis=1).astype(float)
    probe = fit_linear_probe(feature, finding, np.arange(60), names=("common", "single"))
    assert probe.strength_C[1] == DEFAULT_STRENGTH
    assert [note.split(":")[0] for note in probe.notes] == ["single"]
    losses = {strength: loss for strength, loss in probe.validation}
    assert probe.strength_C[0] == min(losses, key=lambda strength: losses[strength][0])
    assert all(np.isnan(loss[1]) for loss in losses.values())


def test_one_patient_alone_can_be_fitted() -> None:
    feature, label = make_films(9, 4)
    probe = fit_linear_probe(feature, label, ["a"] * 9, names=NAMES)
    assert probe.strength_C[0] == DEFAULT_STRENGTH


def test_the_same_arguments_give_the_same_probe() -> None:
    feature, label = make_films(60, 90)
    probes = [fit_linear_probe(feature, label, np.arange(60), names=NAMES, seed=4) for _ in range(2)]
    assert np.array_equal(probes[0].coefficient_DC, probes[1].coefficient_DC)


def test_features_on_any_scale_give_the_same_scores() -> None:
    feature, label = make_films(60, 20)
    scores = []
    for factor in (1.0, 1e4):
        probe = fit_linear_probe(feature * factor, label, np.arange(60), names=NAMES, strengths=[1e-3])
        scores.append(probe.predict_scores(feature * factor))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(
    ("feature", "label", "message"),
    [
        (np.full((3, 2), np.nan), [0, 1, 2], "NaN or infinity"),
        (np.zeros((3, 0)), [0, 1, 2], "one row per film"),
        (np.zeros((4, 2)), [0, 1, 2], "4 rows of features, 3 labels, 3 patients"),
        (np.zeros((3, 2)), [0, 1, 3], "whole numbers from 0 to 2"),
        (np.zeros((3, 2)), [[0.0, 1.0]] * 3, "do not fit 3 finding names"),
    ],
)
def test_bad_input_is_refused(feature: np.ndarray, label: list[object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_linear_probe(feature, label, ["a", "b", "c"], names=NAMES)


@pytest.mark.parametrize("strengths", [[], [0.0], [-1.0, 1.0], [np.inf]])
def test_impossible_strengths_are_refused(strengths: list[float]) -> None:
    feature, label = make_films(9, 4)
    with pytest.raises(UsageError, match="strength"):
        fit_linear_probe(feature, label, np.arange(9), names=NAMES, strengths=strengths)


def test_features_of_another_encoder_are_refused() -> None:
    feature, label = make_films(9, 4)
    probe = fit_linear_probe(feature, label, np.arange(9), names=NAMES)
    with pytest.raises(UsageError, match="fitted on 4 features, not on 5"):
        probe.predict_scores(np.zeros((2, 5)))


def test_a_strength_at_the_end_of_its_grid_is_warned_of() -> None:
    feature, label = make_films(90, 12)
    noise = np.random.default_rng(1).permutation(label)
    probe = fit_linear_probe(feature, noise, np.arange(90), names=NAMES)
    assert probe.strength_C[0] == max(STRENGTHS)
    assert tell_edges(probe, NAMES) == ("all classes: the chosen strength 0.032 lies at the strong end of its grid",)
    findings = np.column_stack([noise == 0, label == 1]).astype(float)
    fitted = fit_linear_probe(feature, findings, np.arange(90), names=("a", "b"))
    wanted = ["a"] + (["b"] if fitted.strength_C[1] in (max(STRENGTHS), min(STRENGTHS)) else [])
    assert [note.partition(":")[0] for note in tell_edges(fitted, ("a", "b"))] == wanted
    one = fit_linear_probe(feature[:2], label[:2], np.zeros(2), names=NAMES)
    assert tell_edges(one, NAMES) == ()  # nothing was chosen
