"""A benchmark small enough for a test, with every kind of thing that its page shows."""

from dataclasses import replace

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, Failure, PredictionSet, TaskFilms
from chess_cxr.benchmarking.tables import SetKey, build_benchmark_tables, build_statistic, list_set_keys
from chess_cxr.evaluation.intervals import DrawReplicates, replicate_draws

STRENGTH = {"ours": 1.6, "ImageNet": 1.2, "scratch": 0.1}
SUBSETS = (("10 %", 0.1, 2), ("50 %", 0.5, 2), ("100 %", 1.0, 1))


def make_films(rng: np.random.Generator, kind: str, count: int, names: tuple[str, ...], start: int) -> EvaluatedFilms:
    number = np.arange(count)
    if kind == "multiclass":
        label: np.ndarray = number % len(names)
    else:
        label = (rng.random((count, len(names))) < 0.3).astype(float)
        label[rng.random(label.shape) < 0.1] = np.nan
    groups = {
        "sex": np.where(number % 5 == 0, "", np.where(rng.random(count) < 0.5, "F", "M")),
        "age_band": np.where(rng.random(count) < 0.03, "80+", np.where(rng.random(count) < 0.5, "0-17", "18-39")),
        "view": np.full(count, "PA"),
        "site": np.where(rng.random(count) < 0.4, "north", "south"),
    }
    uid = np.array([f"{start + place:032x}" for place in number])
    return EvaluatedFilms(uid, np.array([f"{(start + place) // 2:016x}" for place in number]), label, groups)


def make_task(name: str, kind: str, names: tuple[str, ...], test_films: int = 120) -> TaskFilms:
    rng = np.random.default_rng(len(name))
    val, test = (make_films(rng, kind, count, names, start) for count, start in ((80, 0), (test_films, 1000)))
    return TaskFilms(name, f"{name} films", kind, names, val, test, 400, (f"{name} is a made-up task.",))  # type: ignore[arg-type]


def make_scores(rng: np.random.Generator, task: TaskFilms, films: EvaluatedFilms, strength: float) -> np.ndarray:
    classes = len(task.class_names)
    known = np.eye(classes)[films.label.astype(int)] if task.kind == "multiclass" else np.nan_to_num(films.label, nan=0)
    logit = 2.2 * (strength * (known - 0.4) + rng.normal(size=known.shape))
    odds = np.exp(logit)
    share = odds / odds.sum(axis=1, keepdims=True) if task.kind == "multiclass" else odds / (1 + odds)
    return np.asarray(share, np.float32)


def make_results(encoders: dict[str, float] = STRENGTH, replicates: int = 200) -> BenchmarkResults:
    tasks = [
        make_task("pneumonia", "multiclass", ("bacteria", "normal", "virus")),
        make_task("findings", "multilabel", ("Effusion", "Edema", "Mass")),
    ]
    rng = np.random.default_rng(3)
    sets = [
        PredictionSet(
            task.name, encoder, "linear", subset, fraction, draw, draw, round(400 * fraction), round(300 * fraction),
            make_scores(rng, task, task.val, strength * (0.5 + fraction / 2)),
            make_scores(rng, task, task.test, strength * (0.5 + fraction / 2)),
            ("Mass: too few patients to choose a strength",) if draw else (), 0.5,
        )
        for task in tasks
        for encoder, strength in encoders.items()
        for subset, fraction, draws in SUBSETS
        for draw in range(draws)
    ]  # fmt: skip
    failures = (Failure("findings", "CheSS", "linear", "", -1, "the weights are not there: see the documentation"),)
    named = {name: f"an encoder of strength {strength:g}" for name, strength in encoders.items()}
    return BenchmarkResults(
        {task.name: task for task in tasks}, tuple(sets), failures, named | {"CheSS": "the published checkpoint"},
        "ours", replicates=replicates,
    )  # fmt: skip


def resample(results: BenchmarkResults) -> dict[SetKey, dict[str, DrawReplicates]]:
    """Every metric of every set on the same resamples of the patients, as the cells of a benchmark have it."""
    parts = {}
    for key in list_set_keys(results):
        task, sets = results.tasks[key.task], results.select_draws(*vars(key).values())
        statistics = [build_statistic(task.kind, task.test.label, one.test_MC, task.class_names) for one in sets]
        parts[key] = replicate_draws(task.test.patient_M, statistics, results.replicates, results.seed)
    return parts


def make_tables(results: BenchmarkResults) -> dict[str, pd.DataFrame]:
    return dict(vars(build_benchmark_tables(results, resample(results))))


def make_thumbnails(results: BenchmarkResults) -> dict[str, np.ndarray]:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    return {uid: np.tile(ramp, (48, 1)) for task in results.tasks.values() for uid in task.test.uid_M.tolist()}


def drop_sets(results: BenchmarkResults, **unwanted: str) -> BenchmarkResults:
    """The same benchmark without the sets that have these values."""
    kept = [one for one in results.sets if any(getattr(one, name) != value for name, value in unwanted.items())]
    return replace(results, sets=tuple(kept))
