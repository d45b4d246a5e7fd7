"""A benchmark's predictions as tables: every set, the mean over draws, the differences to the reference.

The intervals and p-values are those of `intervals`: patients and draws are resampled together, and a difference is
taken on the same patients and the same draws.  Every number is of the split that is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from chess_cxr.benchmarking.predictions import BenchmarkResults, Failure, PredictionSet, TaskFilms, TaskKind
from chess_cxr.evaluation.delong import compare_areas
from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import DrawReplicates, Interval, average_draws, subtract_draws
from chess_cxr.evaluation.metrics import (
    Statistic,
    build_multiclass_statistic,
    build_multilabel_statistic,
)

HEADLINES: Mapping[TaskKind, tuple[str, ...]] = {"multiclass": ("accuracy", "auroc"), "multilabel": ("auroc", "auprc")}


@dataclass(frozen=True)
class SetKey:
    """One row and column of a table: whose mean over draws it is."""

    task: str
    encoder: str
    head: str
    subset: str


Replicates = Mapping[SetKey, Mapping[str, DrawReplicates]]


@dataclass(frozen=True)
class BenchmarkTables:
    """sets: one row a prediction set.  summary: one a (task, encoder, head, subset, metric).  differences: the same,
    to the reference.  failures: one row a cell that could not be computed.
    """

    sets: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    failures: pd.DataFrame


def build_benchmark_tables(results: BenchmarkResults, parts: Replicates) -> BenchmarkTables:
    """Build all tables of a benchmark.  parts: its resampled metrics, draw by draw in the order of `results`."""
    return BenchmarkTables(
        sets=build_set_table(results, parts),
        summary=build_summary_table(results, parts),
        differences=build_difference_table(results, parts),
        failures=pd.DataFrame(
            [vars(failure) for failure in results.failures], columns=[field.name for field in fields(Failure)]
        ),
    )


def list_set_keys(results: BenchmarkResults) -> tuple[SetKey, ...]:
    """Return what there is a mean over draws of: by task, head, subset from small to large, and encoder."""
    there = {SetKey(one.task, one.encoder, one.head, one.subset) for one in results.sets}
    return tuple(
        key
        for task in results.tasks
        for head in dict.fromkeys(one.head for one in results.sets)
        for subset in results.list_subsets(task)
        for encoder in results.encoders
        if (key := SetKey(task, encoder, head, subset)) in there
    )


def build_statistic(kind: TaskKind, label: ArrayLike, score_MC: ArrayLike, names: Sequence[str]) -> Statistic:
    """Return the statistic of all metrics that a benchmark reports, for one set of probabilities."""
    build = build_multiclass_statistic if kind == "multiclass" else build_multilabel_statistic
    return build(label, score_MC, names, operating_points=True, probabilities=True)


def build_set_table(results: BenchmarkResults, replicates: Replicates) -> pd.DataFrame:
    """Return one row for each prediction set: where it comes from, and each metric on all test films."""
    rows = []
    for key in list_set_keys(results):
        task = results.tasks[key.task]
        for place, one in enumerate(_select(results, key)):
            values = {metric: float(part.value_D[place]) for metric, part in replicates[key].items()}
            rows.append(
                vars(key)
                | {"fraction": one.fraction, "draw": one.draw, "seed": one.seed, "kind": task.kind}
                | {"n_train_films": one.n_train_films, "n_train_patients": one.n_train_patients}
                | _describe_films(task)
                | {"encoder_is": results.encoders[key.encoder], "synthetic": results.synthetic}
                | {"seconds": one.seconds, "strength": one.strength, "notes": "; ".join(one.notes)}
                | values
            )
    return pd.DataFrame(rows)


def build_summary_table(results: BenchmarkResults, replicates: Replicates) -> pd.DataFrame:
    """Return one row for each task, encoder, head, subset and metric: the mean over draws with its interval.

    interval_covers says whether training draws vary too, or (one draw) test patients alone.  undefined counts the
    replicates without a value.
    """
    rows = []
    for key in list_set_keys(results):
        about = _describe(results, key)
        for metric, part in replicates[key].items():
            interval = average_draws(part, results.seed, results.level)
            ends = clip_ends(interval, metric, results.tasks[key.task].kind)
            rows.append(about | {"metric": metric, "value": interval.value} | ends | {"undefined": interval.undefined})
    return pd.DataFrame(rows)


def clip_ends(interval: Interval, metric: str, kind: TaskKind) -> dict[str, float]:
    """Return the ends of an interval, where a metric can have values: 0 to 1, of Brier's score of classes to 2."""
    most = 2.0 if metric == "brier" and kind == "multiclass" else 1.0
    return {"low": max(interval.low, 0.0), "high": min(interval.high, most)}


def build_difference_table(results: BenchmarkResults, replicates: Replicates) -> pd.DataFrame:
    """Return every other encoder minus the reference, on the draws and resampled patients that both have, with p.

    p is two-sided, of the bootstrap; p_holm is p corrected (Holm 1979) for all encoders, heads and subsets of one task
    and metric, and for all floors apart from them.  p_delong: of DeLong's test, with patients as clusters, for the area
    of one class or finding where there is a single draw.
    """
    rows = []
    for key in list_set_keys(results):
        other = SetKey(key.task, results.reference, key.head, key.subset)
        if key.encoder == results.reference or other not in replicates:
            continue
        mine, theirs = _select(results, key), _select(results, other)
        shared = sorted({one.draw for one in mine} & {one.draw for one in theirs})
        if not shared:
            continue
        about = _describe(results, key) | {"reference": results.reference, "draws": len(shared)}
        about |= {"floor": key.encoder in results.floors}
        for metric, part in replicates[key].items():
            gap = subtract_draws(
                _keep_draws(part, mine, shared),
                _keep_draws(replicates[other][metric], theirs, shared),
                results.seed,
                results.level,
            )
            row = about | {"metric": metric, "value": gap.value, "low": gap.low, "high": gap.high}
            row |= {"undefined": gap.undefined, "p": gap.p}
            rows.append(row | {"p_delong": _compare_one_area(results, mine, theirs, metric)})
    table = pd.DataFrame(rows)
    if not table.empty:
        family = table.groupby(["task", "metric", "floor"], sort=False)["p"]
        table["p_holm"] = family.transform(lambda p: correct_holm(p.to_numpy()))
    return table


def _compare_one_area(
    results: BenchmarkResults, mine: tuple[PredictionSet, ...], theirs: tuple[PredictionSet, ...], metric: str
) -> float:
    """Return DeLong's p of one class's or finding's areas, NaN for other metrics and where there are several draws."""
    name = metric.removeprefix("auroc/")
    task = results.tasks[mine[0].task]
    if name == metric or len(mine) > 1 or len(theirs) > 1:
        return math.nan
    column = task.class_names.index(name)
    label = task.test.label.astype(np.float64)
    known_M = np.ones(len(label), bool) if task.kind == "multiclass" else ~np.isnan(label[:, column])
    positive_M = label == column if task.kind == "multiclass" else label[:, column] == 1.0
    return compare_areas(
        positive_M[known_M],
        mine[0].test_MC[known_M, column],
        theirs[0].test_MC[known_M, column],
        task.test.patient_M[known_M],
    ).p


def _keep_draws(part: DrawReplicates, sets: tuple[PredictionSet, ...], shared: list[int]) -> DrawReplicates:
    places = [place for place, one in enumerate(sets) if one.draw in shared]
    return DrawReplicates(part.value_D[places], part.value_DR[places])


def _select(results: BenchmarkResults, key: SetKey) -> tuple[PredictionSet, ...]:
    return results.select_draws(key.task, key.encoder, key.head, key.subset)


def _describe(results: BenchmarkResults, key: SetKey) -> dict[str, object]:
    sets = _select(results, key)
    films = float(np.mean([one.n_train_films for one in sets]))
    return (
        vars(key)
        | {"fraction": films / results.tasks[key.task].train_total, "n_train_films": films}
        | {"n_train_patients": float(np.mean([one.n_train_patients for one in sets]))}
        | {"draws": len(sets)}
        | _describe_films(results.tasks[key.task])
        | {"seed": results.seed, "replicates": results.replicates, "level": results.level}
        | {"interval_covers": "patients and draws" if len(sets) > 1 else "patients"}
    )


def _describe_films(task: TaskFilms) -> dict[str, object]:
    test = task.test
    return {
        "data_set": task.data_set,
        "split": task.split,
        "n_test": len(test.uid_M),
        "n_test_patients": len(np.unique(test.patient_M)),
    }
