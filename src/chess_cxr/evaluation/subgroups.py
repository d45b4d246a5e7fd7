"""Metrics by subgroup of the test patients, and gaps between each subgroup and the rest, with intervals and warnings.

Subgroup and rest are scored on the same resamples of the patients, so gaps are paired.  p-values are corrected (Holm
1979) over the groups of an attribute; two groups make only one test, without correction.  Absence of a significant gap
is no proof of equality: see the column `warning`.

Shape suffixes: M films, C classes or findings, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import average_draws, replicate_draws, subtract_draws
from chess_cxr.evaluation.metrics import (
    Statistic,
    TaskKind,
    build_multiclass_statistic,
    build_multilabel_statistic,
    check_classes,
    check_findings,
)
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, mean_known
from chess_cxr.records import UsageError

AGE_EDGES = (18, 40, 60, 80)
CHILD_EDGES = (1, 3, 6, 12, 18)
LEAST_FILMS = 10  # of either label, and least number of patients: with fewer there is a value but no test
WIDEST = 0.2  # a wider interval gets a warning

# metrics that are means over classes against the rest
_BY_CLASS = ("auroc", "auprc", "sensitivity_at", "specificity_at")


def compute_age_bands(age_years: ArrayLike, edges: Sequence[int] = AGE_EDGES) -> NDArray[np.str_]:
    """Return the age band of each film: "0-17", "18-39", ... "80+" for the default edges; "" if the age is NaN.

    edges: rising whole years at which a new band begins (`CHILD_EDGES` for a children's hospital).  Raises UsageError
    for other edges or an age below 0.
    """
    if list(edges) != sorted({int(edge) for edge in edges}) or not edges or min(edges) < 1:
        raise UsageError(f"edges of age bands are rising whole years from 1, not {list(edges)}")
    age = np.asarray(age_years, dtype=np.float64)
    if np.any(age < 0):
        raise UsageError("an age cannot be below 0; an unknown age is NaN")
    starts = (0, *edges)
    names = [f"{low}-{high - 1}" if high - 1 > low else f"{low}" for low, high in zip(starts, edges, strict=False)]
    names.append(f"{edges[-1]}+")
    band = np.array(names)[np.searchsorted(edges, age, side="right").clip(max=len(edges))]
    return np.where(np.isnan(age), "", band)


def compute_subgroups(
    label: ArrayLike,
    score_DMC: Sequence[ArrayLike],
    class_names: Sequence[str],
    kind: TaskKind,
    patient_M: ArrayLike,
    groups: Mapping[str, ArrayLike],
    *,
    metric: str = "auroc",
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Score each subgroup and the rest: one row for each attribute and group.

    label: class indices [M] or findings [M, L].  score_DMC: one [M, C] per training draw; [scores] for one model.
    groups: attribute -> text of each film; films with "" (unknown) are neither in a group nor in the rest.
    metric: any of `metrics.compute_multiclass` or `compute_multilabel`, such as "accuracy", "auroc", "auroc/Edema".
    A mean of areas covers the same classes in group and rest: those with `LEAST_FILMS` films with and without the class
    in both.
    Columns: attribute, group, metric, classes (those of the mean), films, patients, positives and negatives (fewest
    films of the group with and without one of these classes), value, low, high; rest (its value), gap (value - rest),
    gap_low, gap_high, p, p_holm; level, replicates, undefined (replicates without a gap), seed; warning.
    warning is "" or a reason to distrust the numbers: no class with `LEAST_FILMS` films, or fewer patients, in the
    group or the rest (then p is NaN), or an interval wider than `WIDEST`.
    """
    label_array = check_classes(label, class_names) if kind == "multiclass" else check_findings(label, class_names)
    patient, names = np.asarray(patient_M), tuple(class_names)
    scores = tuple(np.asarray(score) for score in score_DMC)
    if not scores:
        raise UsageError("there is no set of scores to compare by subgroup")
    rows: list[dict[str, object]] = []
    for attribute, texts in groups.items():
        group_M = np.asarray(texts)
        if not len(group_M) == len(patient) == len(label_array):
            raise UsageError(f"{attribute}: {len(group_M)} texts and {len(patient)} patients, {len(label_array)} films")
        found = []
        for name in np.unique(group_M[group_M != ""]):
            inside, outside = group_M == name, (group_M != name) & (group_M != "")
            split = _Split(label_array, scores, names, kind, patient, inside, outside, metric)
            row = {"attribute": attribute, "group": str(name), "metric": metric, **split.describe()}
            found.append(row | split.score(replicates, seed, level) | {"seed": seed})
        p = np.array([row["p"] for row in found], dtype=np.float64)
        corrected = p if len(p) <= 2 else correct_holm(p)
        rows += [row | {"p_holm": float(value)} for row, value in zip(found, corrected, strict=True)]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Split:
    """A group and the rest of the films whose group is known."""

    label: NDArray[np.generic]
    score_DMC: tuple[NDArray[np.generic], ...]
    class_names: tuple[str, ...]
    kind: TaskKind
    patient_M: NDArray[np.generic]
    inside_M: NDArray[np.bool_]
    outside_M: NDArray[np.bool_]
    metric: str

    @cached_property
    def counts_SLC(self) -> NDArray[np.intp]:
        """Number of films inside and outside the group, with and without each class: [2, 2, C]."""
        if self.kind == "multiclass":
            label_MC = np.eye(len(self.class_names))[self.label.astype(np.intp)]
        else:
            label_MC = self.label.astype(np.float64)
        sides = (self.inside_M, self.outside_M)
        return np.array([[(label_MC[side] == value).sum(axis=0) for value in (1.0, 0.0)] for side in sides])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that the metric averages; () for a metric that is not a mean over classes."""
        if not self.metric.startswith(_BY_CLASS):
            return ()
        if "/" in self.metric:
            return (self.metric.split("/", 1)[1],)
        fewest_C = self.counts_SLC.min(axis=(0, 1))
        enough = fewest_C >= LEAST_FILMS if (fewest_C >= LEAST_FILMS).any() else fewest_C > 0
        return tuple(name for name, there in zip(self.class_names, enough, strict=True) if there)

    def describe(self) -> dict[str, object]:
        """Return the group's classes, and its numbers of films, patients, positives and negatives."""
        columns = [self.class_names.index(name) for name in self.classes if name in self.class_names]
        with_C, without_C = self.counts_SLC[0][:, columns]
        return {
            "classes": ", ".join(self.classes),
            "films": int(self.inside_M.sum()),
            "patients": self._count_patients(self.inside_M),
            "positives": int(with_C.min()) if columns else math.nan,
            "negatives": int(without_C.min()) if columns else math.nan,
        }

    def score(self, replicates: int, seed: int, level: float) -> dict[str, object]:
        """Return value, rest and gap with intervals, p-value and warning."""
        statistics = [self._build_statistic(score) for score in self.score_DMC]
        parts = replicate_draws(self.patient_M, statistics, replicates, seed)
        value, rest = (average_draws(parts[side], seed, level) for side in ("inside", "outside"))
        gap = subtract_draws(parts["inside"], parts["outside"], seed, level)
        few = self._tell_few()
        wide = [name for name, one in (("value", value), ("gap", gap)) if one.high - one.low > WIDEST]
        too_wide = f"the interval of the {' and the '.join(wide)} is wider than {WIDEST}: too few films to tell"
        return {
            **{"value": value.value, "low": value.low, "high": value.high, "rest": rest.value},
            **{"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": math.nan if few else gap.p},
            **{"level": level, "replicates": replicates, "undefined": gap.undefined},
            "warning": few or (too_wide if wide else ""),
        }

    def _tell_few(self) -> str:
        patients = [self._count_patients(side) for side in (self.inside_M, self.outside_M)]
        if min(patients) < LEAST_FILMS:
            where = "here" if patients[0] < LEAST_FILMS else "in the rest"
            return f"only {min(patients)} patients {where}: too few to say anything"
        if not self.metric.startswith(_BY_CLASS):
            return ""
        columns = [self.class_names.index(name) for name in self.classes]
        fewest = int(self.counts_SLC[:, :, columns].min()) if columns else 0
        if fewest >= LEAST_FILMS:
            return ""
        return f"only {fewest} films with, or without, a class here or in the rest: too few to say anything"

    def _count_patients(self, side_M: NDArray[np.bool_]) -> int:
        return len(np.unique(self.patient_M[side_M]))

    def _build_statistic(self, score_MC: NDArray[np.generic]) -> Statistic:
        sides = {
            "inside": (np.flatnonzero(self.inside_M), self._build_side(score_MC, self.inside_M)),
            "outside": (np.flatnonzero(self.outside_M), self._build_side(score_MC, self.outside_M)),
        }

        def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
            return {
                side: self._take(build(weight_RN.T[rows].T), len(weight_RN)) for side, (rows, build) in sides.items()
            }

        return statistic

    def _build_side(self, score_MC: NDArray[np.generic], side_M: NDArray[np.bool_]) -> Statistic:
        if not side_M.any():
            return lambda weight_RN: {}
        build = build_multiclass_statistic if self.kind == "multiclass" else build_multilabel_statistic
        return build(
            self.label[side_M],
            score_MC[side_M],
            self.class_names,
            operating_points="_at_" in self.metric,
            probabilities=self.metric.startswith(("brier", "ece")),
        )

    def _take(self, values: Mapping[str, FloatArray], replicates: int) -> FloatArray:
        """Return the metric of one side: NaN if the side is empty or no class is on both sides."""
        base = self.metric.split("/", 1)[0]
        names = [f"{base}/{name}" for name in self.classes] if self.metric.startswith(_BY_CLASS) else [self.metric]
        if not values or not names:
            return np.full(replicates, math.nan)
        missing = [name for name in names if name not in values]
        if missing:
            raise UsageError(f"no metric named {missing[0]!r} for subgroups; there are {', '.join(values)}")
        return mean_known(np.stack([values[name] for name in names]), axis=0)
