"""Score a classifier on the films, or the studies, of a test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chess_cxr.evaluation.aggregation import aggregate_studies
from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic, build_ordinal_statistic
from chess_cxr.tasks.classify.labels import LabelledRows
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
    """

    labels: tuple[str, ...]
    task: str
    data_set: str
    films: dict[str, int]
    test_patients: int
    test_units: str = "films"
    notes: tuple[str, ...] = ()

    def list_metrics(self) -> list[str]:
        """Return a line for each metric."""
        return [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]

    def describe_basis(self) -> str:
        """Describe the films of the three splits."""
        test = f"{self.data_set}, test split: {self.test_units} of {self.test_patients} patients"
        return f"{test}; trained on {self.films['train']} films, val {self.films['val']}"

    def list_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes


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
