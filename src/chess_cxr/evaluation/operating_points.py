"""Operating points: choose thresholds on validation films, evaluate them on test films and at other sites.

A film is flagged if its score reaches the threshold.  A threshold lies half-way between the lowest flagged score and
the next one below, so that rounding a score cannot change a decision.  Intervals cover the choice of test films, for a
fixed threshold.

Shape suffixes: M films, C classes or findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.intervals import average_draws, interval_of_rate, replicate_draws
from chess_cxr.evaluation.metrics import Statistic, TaskKind, check_classes, check_findings, check_scores
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known
from chess_cxr.records import UsageError

LEAST_FILMS = 10  # of either label; with fewer, a single film changes a share much


@dataclass(frozen=True)
class ThresholdRule:
    """A rule to choose a threshold.

    "youden": largest sensitivity + specificity.  "sensitivity": largest specificity with at least the sensitivity
    `target`.  "specificity": largest sensitivity with at least the specificity `target`.
    """

    kind: Literal["youden", "sensitivity", "specificity"]
    target: float = math.nan

    def __str__(self) -> str:
        return "Youden" if self.kind == "youden" else f"{self.kind} {self.target:g}"


RULES = (ThresholdRule("youden"), ThresholdRule("sensitivity", 0.9), ThresholdRule("specificity", 0.9))


def choose_threshold(positive_K: ArrayLike, score_K: ArrayLike, rule: ThresholdRule) -> float:
    """Return a rule's threshold on these films; among equally good ones, the one that flags fewest.

    Infinity flags nothing.  NaN without both labels.  Raises UsageError for an unknown rule.
    """
    if rule.kind not in ("youden", "sensitivity", "specificity"):
        raise UsageError(f"no rule named {rule.kind!r} for a threshold: youden, sensitivity or specificity")
    if rule.kind != "youden" and not 0.0 < rule.target <= 1.0:
        raise UsageError(f"the target {rule.kind} of a threshold must be above 0 and at most 1, not {rule.target}")
    positive, score = np.asarray(positive_K, dtype=bool), np.asarray(score_K, dtype=np.float64)
    if positive.all() or not positive.any():
        return math.nan
    distinct_G, place = np.unique(-score, return_inverse=True)
    flagged_G = np.r_[0, np.cumsum(np.bincount(place[positive], minlength=len(distinct_G)))]
    alarms_G = np.r_[0, np.cumsum(np.bincount(place[~positive], minlength=len(distinct_G)))]
    sensitivity_G = flagged_G / flagged_G[-1]
    specificity_G = 1.0 - alarms_G / alarms_G[-1]
    if rule.kind == "youden":
        chosen = int(np.argmax(np.round(sensitivity_G + specificity_G, 12)))
    elif rule.kind == "sensitivity":
        chosen = int(np.argmax(sensitivity_G >= rule.target - 1e-12))
    else:
        # among the thresholds that are specific enough, the first with the largest sensitivity
        enough = np.flatnonzero(specificity_G >= rule.target - 1e-12)
        chosen = int(enough[np.argmax(sensitivity_G[enough])])
    if chosen == 0:
        return math.inf
    lowest = -distinct_G[chosen - 1]
    return float(lowest if chosen == len(distinct_G) else (lowest - distinct_G[chosen]) / 2)


def compute_operating_points(
    val_label: ArrayLike,
    val_score_MC: ArrayLike,
    test_label: ArrayLike,
    test_score_MC: ArrayLike,
    test_patient_M: ArrayLike,
    class_names: Sequence[str],
    kind: TaskKind,
    *,
    rules: Sequence[ThresholdRule] = RULES,
    level: float = 0.95,
) -> pd.DataFrame:
    """Choose thresholds on validation films and evaluate them on test films: one row per class and rule.

    Labels are class indices [M] (each class against the rest) or findings [M, L] of 1, 0 and NaN.
    Columns: name, rule, asked (target, NaN for Youden), threshold; val_positives, val_negatives, val_sensitivity,
    val_specificity; test_positives, test_negatives; sensitivity and specificity on the test films, each with _low and
    _high (`intervals.interval_of_rate`); flagged (share of test films); shortfall (target minus achieved value); missed
    (whether the target lies above the interval of the achieved value); warning.
    """
    val = _Films(val_label, val_score_MC, class_names, kind)
    test = _Films(test_label, test_score_MC, class_names, kind, test_patient_M)
    rows = []
    for column, name in enumerate(class_names):
        chosen, counted = val.select(column), test.select(column)
        for rule in rules:
            threshold = choose_threshold(chosen.positive_K, chosen.score_K, rule)
            found = _count(counted, threshold, level)
            asked_of = found.get(rule.kind, math.nan)
            missed = bool(rule.target > found.get(f"{rule.kind}_high", math.nan))
            before = _count(chosen, threshold, level)
            rows.append(
                {"name": name, "rule": str(rule), "asked": rule.target, "threshold": threshold}
                | {"val_positives": chosen.positives, "val_negatives": chosen.negatives}
                | {"val_sensitivity": before["sensitivity"], "val_specificity": before["specificity"]}
                | {"test_positives": counted.positives, "test_negatives": counted.negatives}
                | found
                | {"shortfall": rule.target - asked_of, "missed": missed, "level": level}
                | {"warning": _warn(("validation", chosen), ("test", counted))}
            )
    return pd.DataFrame(rows)


def compute_transfer_costs(
    val_label: ArrayLike,
    val_score_MC: ArrayLike,
    val_site_M: ArrayLike,
    test_label: ArrayLike,
    test_score_MC: ArrayLike,
    test_site_M: ArrayLike,
    test_patient_M: ArrayLike,
    class_names: Sequence[str],
    kind: TaskKind,
    *,
    rules: Sequence[ThresholdRule] = RULES,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Apply the threshold of each site's validation films to the test films of every site: one row per pair of sites.

    Labels and scores as in `compute_operating_points`; leaves out films of unknown site ("").
    Columns: name, rule, asked, from_site, to_site, threshold, own_threshold (of to_site's validation films; NaN without
    them); test_positives, test_negatives; sensitivity, specificity, each with _low and _high; flagged;
    sensitivity_change and specificity_change (from_site's threshold minus to_site's own, on the same films), each with
    _low and _high from a bootstrap over patients; warning.
    """
    val = _Films(val_label, val_score_MC, class_names, kind, site_M=val_site_M)
    test = _Films(test_label, test_score_MC, class_names, kind, test_patient_M, test_site_M)
    rows = []
    for column, name in enumerate(class_names):
        for rule in rules:
            chosen = {
                site: (films, choose_threshold(films.positive_K, films.score_K, rule))
                for site, films in val.split(column)
            }
            for to_site, films in test.split(column):
                own = chosen[to_site][1] if to_site in chosen else math.nan
                for from_site, (chosen_from, threshold) in chosen.items():
                    change = _compare_thresholds(films, threshold, own, replicates, seed, level)
                    rows.append(
                        {"name": name, "rule": str(rule), "asked": rule.target}
                        | {"from_site": from_site, "to_site": to_site, "threshold": threshold, "own_threshold": own}
                        | {"test_positives": films.positives, "test_negatives": films.negatives}
                        | _count(films, threshold, level)
                        | change
                        | {"level": level, "replicates": replicates, "seed": seed}
                        | {"warning": _warn(("validation", chosen_from), ("test", films))}
                    )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Column:
    """The films with a known label of one class."""

    positive_K: NDArray[np.bool_]
    score_K: FloatArray
    patient_K: NDArray[np.generic]

    @property
    def positives(self) -> int:
        return int(self.positive_K.sum())

    @property
    def negatives(self) -> int:
        return len(self.positive_K) - self.positives


class _Films:
    """Labels and scores of one split, class by class."""

    def __init__(
        self,
        label: ArrayLike,
        score_MC: ArrayLike,
        names: Sequence[str],
        kind: TaskKind,
        patient_M: ArrayLike | None = None,
        site_M: ArrayLike | None = None,
    ) -> None:
        self._score = check_scores(score_MC, names)
        if kind == "multiclass":
            self._label = np.eye(len(names))[check_classes(label, names)]
        else:
            self._label = check_findings(label, names)
        films = len(self._score)
        self._patient = np.arange(films) if patient_M is None else np.asarray(patient_M)
        self._site = np.full(films, "") if site_M is None else np.asarray(site_M)
        if not films == len(self._label) == len(self._patient) == len(self._site):
            others = f"{len(self._label)} labels, {len(self._patient)} patients and {len(self._site)} sites"
            raise UsageError(f"scores of {films} films do not fit {others}")

    def select(self, column: int, among_M: NDArray[np.bool_] | None = None) -> _Column:
        known = ~np.isnan(self._label[:, column])
        rows = known if among_M is None else known & among_M
        return _Column(self._label[rows, column] == 1.0, self._score[rows, column], self._patient[rows])

    def split(self, column: int) -> Iterator[tuple[str, _Column]]:
        """Yield each known site with its films."""
        for site in np.unique(self._site):
            if site != "":
                yield str(site), self.select(column, self._site == site)


def _count(films: _Column, threshold: float, level: float) -> dict[str, float]:
    flagged_K = films.score_K >= threshold
    if math.isnan(threshold):
        names = ("sensitivity", "sensitivity_low", "sensitivity_high", "specificity", "specificity_low")
        return dict.fromkeys((*names, "specificity_high", "flagged"), math.nan)
    found: dict[str, float] = {}
    for name, rows, hit_K in (
        ("sensitivity", films.positive_K, flagged_K),
        ("specificity", ~films.positive_K, ~flagged_K),
    ):
        interval = interval_of_rate(hit_K[rows], films.patient_K[rows], level)
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found | {"flagged": float(flagged_K.mean()) if len(flagged_K) else math.nan}


def _compare_thresholds(
    films: _Column, threshold: float, own: float, replicates: int, seed: int, level: float
) -> dict[str, float]:
    names = ("sensitivity_change", "specificity_change")
    if math.isnan(threshold) or math.isnan(own) or not films.positives or not films.negatives:
        return {f"{name}{end}": math.nan for name in names for end in ("", "_low", "_high")}
    parts = replicate_draws(films.patient_K, [_build_change(films, threshold, own)], replicates, seed)
    found: dict[str, float] = {}
    for name in names:
        interval = average_draws(parts[name], seed, level)
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def _build_change(films: _Column, threshold: float, own: float) -> Statistic:
    more_K = (films.score_K >= threshold).astype(np.float64) - (films.score_K >= own)
    positive_K = films.positive_K.astype(np.float64)

    def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
        present_R, absent_R = weight_RN @ positive_K, weight_RN @ (1 - positive_K)
        return {
            "sensitivity_change": divide_known(weight_RN @ (more_K * positive_K), present_R),
            "specificity_change": divide_known(weight_RN @ (-more_K * (1 - positive_K)), absent_R),
        }

    return statistic


def _warn(*splits: tuple[str, _Column]) -> str:
    few = [
        f"{films.positives} {name} films with and {films.negatives} without it"
        for name, films in splits
        if min(films.positives, films.negatives) < LEAST_FILMS
    ]
    return f"only {' and '.join(few)}: too few to choose or judge a threshold" if few else ""
