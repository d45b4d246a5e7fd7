import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score, roc_curve

from chess_cxr.benchmarking.predictions import EvaluatedFilms, PredictionSet, TaskFilms
from chess_cxr.benchmarking.roc_curves import MEAN, POINTS, build_roc_statistic, compute_roc_curves

NAMES = ("a", "b", "c")


def make_task(label: np.ndarray, kind: str) -> TaskFilms:
    number = np.arange(len(label))
    patient = np.array([f"p{place // 2}" for place in number])
    films = EvaluatedFilms(number.astype(str), patient, label, {})
    return TaskFilms("made up", "made up", kind, NAMES, films, films, 10)  # type: ignore[arg-type]


def make_set(score_MC: np.ndarray, draw: int = 0) -> PredictionSet:
    score = score_MC.astype(np.float32)
    return PredictionSet("made up", "ours", "linear", "100 %", 1.0, draw, draw, 10, 10, score, score)


@pytest.fixture
def findings() -> tuple[TaskFilms, np.ndarray]:
    rng = np.random.default_rng(4)
    label = (rng.random((150, 3)) < 0.3).astype(float)
    score = np.round(rng.random((150, 3)) + 0.4 * label, 1)  # with many ties
    label[rng.random(label.shape) < 0.2] = np.nan
    return make_task(label, "multilabel"), score


def interpolate_slowly(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Sensitivity at each rate: the highest of the curve there, on the straight lines between its corners."""
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    rates = np.linspace(0, 1, POINTS)
    found = []
    for rate in rates:
        at = [value for where, value in zip(false, true, strict=True) if np.isclose(where, rate)]
        if at:
            found.append(max(at))
            continue
        right = next(place for place, where in enumerate(false) if where > rate)
        share = (rate - false[right - 1]) / (false[right] - false[right - 1])
        found.append(true[right - 1] + share * (true[right] - true[right - 1]))
    return np.array(found)


def test_each_curve_is_that_of_scikit_learn_on_the_known_films(findings: tuple[TaskFilms, np.ndarray]) -> None:
    task, score = findings
    table = compute_roc_curves(task, [make_set(score)], replicates=20)
    for column, name in enumerate(NAMES):
        known = ~np.isnan(task.test.label[:, column])
        slow = interpolate_slowly(task.test.label[known, column], score[known, column])
        rows = table[table["name"] == name]
        assert rows["false_positive_rate"].tolist() == pytest.approx(np.linspace(0, 1, POINTS))
        assert rows["sensitivity"].tolist() == pytest.approx(slow)
        area = roc_auc_score(task.test.label[known, column], score[known, column])
        assert auc(rows["false_positive_rate"], rows["sensitivity"]) == pytest.approx(area, abs=0.02)


def test_the_mean_curve_is_the_mean_over_classes_and_draws(findings: tuple[TaskFilms, np.ndarray]) -> None:
    task, score = findings
    other = np.round(1 - score / 2, 1)
    both = compute_roc_curves(task, [make_set(score), make_set(other, 1)], replicates=20)
    single = [compute_roc_curves(task, [make_set(one)], replicates=20) for one in (score, other)]
    for name in (MEAN, *NAMES):
        halves = [table[table["name"] == name]["sensitivity"].to_numpy() for table in single]
        assert both[both["name"] == name]["sensitivity"].tolist() == pytest.approx(np.mean(halves, axis=0))
    by_class = [both[both["name"] == name]["sensitivity"].to_numpy() for name in NAMES]
    assert both[both["name"] == MEAN]["sensitivity"].tolist() == pytest.approx(np.mean(by_class, axis=0))


def test_a_weighted_curve_is_that_of_the_films_repeated(findings: tuple[TaskFilms, np.ndarray]) -> None:
    task, score = findings
    weight = np.random.default_rng(0).integers(0, 4, len(score))
    rows = np.repeat(np.arange(len(score)), weight)
    weighted = build_roc_statistic(task, score)(weight[None].astype(float))
    repeated = build_roc_statistic(make_task(task.test.label[rows], "multilabel"), score[rows])(np.ones((1, len(rows))))
    assert weighted.keys() == repeated.keys()
    for key, value_R in weighted.items():
        assert value_R == pytest.approx(repeated[key])


def test_bands_hold_the_curve_and_narrow_with_more_patients() -> None:
    widths = []
    for films in (60, 600):
        rng = np.random.default_rng(1)
        label = rng.integers(0, 3, films)
        score = rng.dirichlet([1, 1, 1], films) + 0.3 * np.eye(3)[label]
        table = compute_roc_curves(make_task(label, "multiclass"), [make_set(score)], replicates=100)
        inner = table[(table["name"] == "a") & table["false_positive_rate"].between(0.1, 0.6)]
        assert (inner["low"] <= inner["sensitivity"]).all() and (inner["sensitivity"] <= inner["high"]).all()
        widths.append((inner["high"] - inner["low"]).mean())
    assert widths[1] < 0.6 * widths[0]


def test_a_finding_that_no_film_shows_has_no_curve_and_counts_in_no_mean() -> None:
    rng = np.random.default_rng(2)
    label = (rng.random((40, 3)) < 0.5).astype(float)
    label[:, 1], label[:, 2] = 0.0, np.nan
    table = compute_roc_curves(make_task(label, "multilabel"), [make_set(rng.random((40, 3)))], replicates=20)
    assert set(table["name"]) == {MEAN, "a"}
    first, mean = (table[table["name"] == name]["sensitivity"].tolist() for name in ("a", MEAN))
    assert first == mean
