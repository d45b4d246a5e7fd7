"""Score a classifier on the films, or the studies, of a test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from chess_cxr.evaluation.aggregation import aggregate_studies
from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic, build_ordinal_statistic
from chess_cxr.evaluation.subgroups import compute_age_bands, compute_subgroups
from chess_cxr.store import Store
from chess_cxr.tasks.classify.fit_operating import clean_row, measure_operating
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.operating import Operating
from chess_cxr.tasks.result import TaskResult

_STATISTICS = {
    "multiclass": build_multiclass_statistic,
    "multilabel": build_multilabel_statistic,
    "ordinal": build_ordinal_statistic,
}


@dataclass(frozen=True, kw_only=True)
class ClassifierResult(TaskResult):
    """Metrics of a classifier on the test split, with 95 % intervals by patient.

    task: "binary" for a single finding.  films: number of labelled films by split.  test_units: number and kind of what
    was scored, such as "22 films".  notes: what a reader of the numbers should know.
    calibration: log-loss of val and test films, and calibration metrics of scaled test films; {} without scaling.
    operating_points, subgroups: rows of tables, see `tasks.classify.operating` and `evaluation.subgroups`.
    prevalence: by label and split, films with and without it.  deployment: what is missing for use at work.
    """

    labels: tuple[str, ...]
    task: str
    data_set: str
    films: dict[str, int]
    test_patients: int
    test_units: str = "films"
    notes: tuple[str, ...] = ()
    calibration: dict[str, Any] = field(default_factory=dict)
    operating_points: list[dict[str, Any]] = field(default_factory=list)
    subgroups: list[dict[str, Any]] = field(default_factory=list)
    prevalence: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    deployment: tuple[str, ...] = ()

    def list_metrics(self) -> list[str]:
        """Return a line for each metric."""
        return [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]

    def describe_basis(self) -> str:
        """Describe the films of the three splits."""
        test = f"{self.data_set}, test split: {self.test_units} of {self.test_patients} patients"
        return f"{test}; trained on {self.films['train']} films, val {self.films['val']}"

    def list_notes(self) -> Sequence[str]:
        """Return the notes, and what is missing for use at work."""
        return *self.notes, *self.deployment


@dataclass(frozen=True)
class TestScores:
    """Metrics of the test films or studies.  units: number and kind of what was scored, such as "22 films"."""

    metrics: dict[str, Interval]
    patients: int
    units: str


def score_test(
    chosen: LabelledRows, score_ML: np.ndarray, aggregate: Literal["none", "max", "mean"], seed: int
) -> TestScores:
    """Score probabilities of the test split's M films, or of their studies if `aggregate` joins them."""
    test = chosen.split == "test"
    label, patient, units = chosen.label[test], chosen.patient[test], f"{test.sum()} films"
    if aggregate != "none":
        joined = aggregate_studies(score_ML, label, chosen.study[test], patient, aggregate)
        units = f"{len(joined.label)} studies ({aggregate} of {len(label)} films)"
        score_ML, label, patient = joined.score_SC, joined.label, joined.patient_S
    statistic = _STATISTICS[chosen.task](label, score_ML, chosen.names, probabilities=True)
    return TestScores(bootstrap_draws_by_patient(patient, [statistic], seed=seed), len(np.unique(patient)), units)


def measure_deployment(
    store: Store, chosen: LabelledRows, operating: Operating, scores: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """Return what a result says of calibration, operating points, subgroups and prevalence.

    scores: uncalibrated probabilities [M, L] of val and test films.
    """
    return {
        "calibration": _measure_calibration(operating, chosen, scores, seed),
        "operating_points": measure_operating(operating, chosen, scores),
        "subgroups": measure_subgroups(store, chosen, scores["test"], seed),
        "prevalence": _count_labels(chosen),
        "deployment": operating.notes,
    }


def _measure_calibration(
    operating: Operating, chosen: LabelledRows, scores: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    if not any(operating.calibrated):
        return {}
    val, test = chosen.split == "val", chosen.split == "test"
    after = score_test(chosen, operating.calibrate(scores["test"]), "none", seed).metrics
    return {
        "method": "temperature" if operating.kind == "multiclass" else "platt",
        "labels": [name for name, known in zip(chosen.names, operating.calibrated, strict=True) if known],
        "val_films": int(val.sum()),
        "val_log_loss": _compare_loss(operating, chosen, val, scores["val"]),
        "test_films": int(test.sum()),
        "test_log_loss": _compare_loss(operating, chosen, test, scores["test"]),
        "test_metrics": {k: v for k, v in after.items() if k.startswith(("brier", "ece"))},
    }


def _compare_loss(
    operating: Operating, chosen: LabelledRows, films_N: np.ndarray, score_ML: np.ndarray
) -> dict[str, float]:
    label_ML = chosen.label_NL[films_N]
    pairs = (("before", score_ML), ("after", operating.calibrate(score_ML)))
    return {name: compute_log_loss(label_ML, probability, operating.kind) for name, probability in pairs}


def compute_log_loss(
    label_ML: np.ndarray, probability_ML: np.ndarray, kind: Literal["multiclass", "multilabel"]
) -> float:
    """Return the mean log-loss in nats: of films for classes, of all known pairs of film and label for findings."""
    clipped_ML = np.clip(np.asarray(probability_ML, np.float64), 1e-7, 1 - 1e-7)
    if kind == "multiclass":
        return float(-np.log(clipped_ML[label_ML == 1]).mean())
    known_ML = ~np.isnan(label_ML)
    return float(-np.log(np.where(label_ML == 1, clipped_ML, 1 - clipped_ML)[known_ML]).mean())


def measure_subgroups(store: Store, chosen: LabelledRows, score_ML: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Return the AUROC of subgroups of the test films by sex, age band and view, where the store knows two or more."""
    films = store.films.iloc[chosen.rows[chosen.split == "test"]]
    texts = {
        "sex": films["sex"].to_numpy(str),
        "age": compute_age_bands(films["age_years"].to_numpy(np.float64)),
        "view": films["view"].to_numpy(str),
    }
    groups = {name: text_M for name, text_M in texts.items() if len(set(text_M) - {""}) > 1}
    test = chosen.split == "test"
    table = compute_subgroups(
        chosen.label[test], [score_ML], chosen.names, chosen.kind, chosen.patient[test], groups, seed=seed
    )
    return [clean_row(row) for row in table.to_dict("records")]


def _count_labels(chosen: LabelledRows) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {name: {} for name in chosen.names}
    for split in ("train", "val", "test"):
        label_ML = chosen.label_NL[chosen.split == split]
        for name, label_M in zip(chosen.names, label_ML.T, strict=True):
            counts[name][split] = {"with": int((label_M == 1).sum()), "without": int((label_M == 0).sum())}
    return counts
