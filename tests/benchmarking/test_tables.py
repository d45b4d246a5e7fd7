"""Tables of a benchmark, from predictions made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmark_results import resample
from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, Failure, PredictionSet, TaskFilms
from chess_cxr.benchmarking.tables import (
    BenchmarkTables,
    build_benchmark_tables,
    list_set_keys,
)
from chess_cxr.evaluation.intervals import paired_bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic

FILMS, PATIENTS = 60, 30
STRENGTH = {"good": 2.0, "fair": 1.0, "poor": 0.2}


def make_results() -> BenchmarkResults:
    """Three encoders of different worth on a task of each kind; the draw 1 of "poor" is missing."""
    generator = np.random.default_rng(0)
    kinds = make_task("kinds", "multiclass", ("a", "b", "c"), generator.integers(0, 3, FILMS))
    findings = generator.integers(0, 2, (FILMS, 2)).astype(float)
    findings[:7, 1] = math.nan
    signs = make_task("signs", "multilabel", ("x", "y"), findings)
    sets = []
    for task in (kinds, signs):
        for encoder, strength in STRENGTH.items():
            for subset, draws, films in (("10 %", 2, 9), ("100 %", 1, 90)):
                sets += [
                    make_set(generator, task, encoder, strength, subset, draw, films)
                    for draw in range(draws)
                    if (encoder, draw) != ("poor", 1)
                ]
    failure = Failure("kinds", "poor", "linear", "10 %", 1, "no memory")
    about = {encoder: f"{encoder} features" for encoder in STRENGTH}
    return BenchmarkResults({"kinds": kinds, "signs": signs}, tuple(sets), (failure,), about, "fair", 0, 200)


def make_task(name: str, kind: str, names: tuple[str, ...], label: np.ndarray) -> TaskFilms:
    uid = np.array([f"{number:032x}" for number in range(FILMS)])
    patient = np.array([f"p{number % PATIENTS}" for number in range(FILMS)])
    films = EvaluatedFilms(uid, patient, label, {"sex": np.full(FILMS, "F")})
    none = EvaluatedFilms(uid[:0], patient[:0], label[:0], {"sex": uid[:0]})
    return TaskFilms(name, "made-up films", kind, names, none, films, 90)  # type: ignore[arg-type]


def make_set(
    generator: np.random.Generator, task: TaskFilms, encoder: str, strength: float, subset: str, draw: int, films: int
) -> PredictionSet:
    label = task.test.label
    truth = np.eye(3)[label.astype(int)] if task.kind == "multiclass" else np.nan_to_num(label.astype(float), nan=0.5)
    score = np.exp(strength * truth + generator.normal(size=truth.shape))
    score = score / score.sum(axis=1, keepdims=True) if task.kind == "multiclass" else score / (1 + score)
    empty = np.empty((0, score.shape[1]), np.float32)
    where = (task.name, encoder, "linear", subset)
    return PredictionSet(*where, films / 90, draw, draw, films, films // 3, empty, score.astype(np.float32))


@pytest.fixture(scope="module")
def results() -> BenchmarkResults:
    return make_results()


@pytest.fixture(scope="module")
def tables(results: BenchmarkResults) -> BenchmarkTables:
    return build_benchmark_tables(results, resample(results))


def test_there_is_one_row_a_prediction_set_with_its_metrics(results: BenchmarkResults, tables: BenchmarkTables) -> None:
    assert len(tables.sets) == len(results.sets) == 16
    one = results.select_draws("signs", "good", "linear", "10 %")[1]
    row = tables.sets.query("task == 'signs' and encoder == 'good' and subset == '10 %' and draw == 1").iloc[0]
    label = results.tasks["signs"].test.label
    known = ~np.isnan(label[:, 1])
    assert row["auroc/y"] == pytest.approx(roc_auc_score(label[known, 1], one.test_MC[known, 1]))
    assert math.isnan(row["accuracy"]) and row["n_test_patients"] == PATIENTS and row["encoder_is"] == "good features"
    assert row["brier/x"] == pytest.approx(np.mean((label[:, 0] - one.test_MC[:, 0].astype(float)) ** 2))


def test_rows_come_by_task_subset_from_small_to_large_and_encoder(results: BenchmarkResults) -> None:
    keys = list_set_keys(results)
    assert [key.task for key in keys] == ["kinds"] * 6 + ["signs"] * 6
    assert [key.subset for key in keys[:6]] == ["10 %"] * 3 + ["100 %"] * 3
    assert [key.encoder for key in keys[:3]] == list(STRENGTH)


def test_the_summary_is_the_mean_over_draws(tables: BenchmarkTables) -> None:
    means = tables.sets.groupby(["task", "encoder", "subset"])["auroc"].mean()
    mine = tables.summary.query("metric == 'auroc'").set_index(["task", "encoder", "subset"])
    assert mine["value"].to_dict() == pytest.approx(means.to_dict())
    assert (mine["low"] <= mine["value"]).all() and (mine["value"] <= mine["high"]).all()
    assert mine.loc[("kinds", "poor", "10 %"), "draws"] == 1
    assert set(mine["interval_covers"]) == {"patients and draws", "patients"}


@pytest.mark.parametrize("task", ["kinds", "signs"])
def test_differences_are_paired_on_the_draws_that_both_have(
    results: BenchmarkResults, tables: BenchmarkTables, task: str
) -> None:
    films = results.tasks[task]
    build = build_multiclass_statistic if films.kind == "multiclass" else build_multilabel_statistic
    for encoder, draws in (("good", 2), ("poor", 1)):
        sides = [results.select_draws(task, name, "linear", "10 %")[:draws] for name in (encoder, "fair")]
        first, second = ([build(films.test.label, one.test_MC, films.class_names) for one in side] for side in sides)
        oracle = paired_bootstrap_draws_by_patient(films.test.patient_M, first, second, 200, 0)["auroc"]
        row = tables.differences.query(
            f"task == '{task}' and encoder == '{encoder}' and subset == '10 %' and metric == 'auroc'"
        ).iloc[0]
        assert (row["value"], row["low"], row["high"], row["p"]) == pytest.approx(
            (oracle.value, oracle.low, oracle.high, oracle.p)
        )
        assert row["draws"] == draws and row["reference"] == "fair"


def test_holm_counts_the_encoders_and_subsets_of_one_task_and_metric(tables: BenchmarkTables) -> None:
    for _, family in tables.differences.groupby(["task", "metric"]):
        assert len(family) == 4
        rising = family.sort_values("p", kind="stable")
        worst = 0.0
        for place, (p, corrected) in enumerate(zip(rising["p"], rising["p_holm"], strict=True)):
            worst = max(worst, min(1.0, p * (4 - place)))
            assert corrected == pytest.approx(worst)


def test_delong_stands_beside_single_areas_of_single_draws_only(tables: BenchmarkTables) -> None:
    given = tables.differences.dropna(subset="p_delong")
    assert set(given["metric"]) == {"auroc/a", "auroc/b", "auroc/c", "auroc/x", "auroc/y"}
    assert set(given["subset"]) == {"100 %"} and len(given) == 2 * 5
    good = given.query("encoder == 'good'")
    assert ((good["p_delong"] < 0.05) == (good["p"] < 0.05)).mean() > 0.5  # near each other, not the same test


def test_an_encoder_of_which_the_reference_is_missing_has_no_difference(results: BenchmarkResults) -> None:
    without = replace(results, sets=tuple(one for one in results.sets if (one.task, one.encoder) != ("kinds", "fair")))
    assert set(build_benchmark_tables(without, resample(without)).differences["task"]) == {"signs"}
    alone = replace(results, sets=tuple(one for one in results.sets if one.encoder == "good"))
    tables = build_benchmark_tables(alone, resample(alone))
    assert tables.differences.empty and len(tables.summary)


def test_failures_are_a_table_too(tables: BenchmarkTables) -> None:
    assert tables.failures.to_dict("records") == [
        {"task": "kinds", "encoder": "poor", "head": "linear", "subset": "10 %", "draw": 1, "reason": "no memory"}
    ]
