"""Score a classifier on the films, or the studies, of a test split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from chess_cxr.evaluation.aggregation import aggregate_studies
from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient, describe_intervals
from chess_cxr.evaluation.metrics import (
    build_multiclass_statistic,
    build_multilabel_statistic,
    build_ordinal_statistic,
)
from chess_cxr.tasks.classify.labels import LabelledRows

_STATISTICS = {
    "multiclass": build_multiclass_statistic,
    "multilabel": build_multilabel_statistic,
    "ordinal": build_ordinal_statistic,
}


@dataclass(frozen=True)
class ClassifierResult:
    """What a classifier does on the test split: every metric with its interval by patient.

    task: "binary" for a single finding.  films: labelled films by split.  test_units: what was scored, such as "films".
    notes: what a reader of the numbers has to know beside them.
    """

    metrics: dict[str, Interval]
    labels: tuple[str, ...]
    task: str
    encoder: str
    data_set: str
    films: dict[str, int]
    test_patients: int
    seed: int
    test_units: str = "films"
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"] = describe_intervals(self.metrics)
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]
        basis = f"{self.data_set}, test split: {self.test_units} of {self.test_patients} patients"
        trained = f"trained on {self.films['train']} films, val {self.films['val']}"
        return "\n".join([*lines, f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})", *self.notes])


@dataclass(frozen=True)
class TestScores:
    """What the test films, or studies, say.  units: what was scored, such as "22 films"."""

    metrics: dict[str, Interval]
    patients: int
    units: str


def score_test(
    chosen: LabelledRows, score_ML: np.ndarray, aggregate: Literal["none", "max", "mean"], seed: int
) -> TestScores:
    """Score probabilities of the test split's M films, joined by study where `aggregate` says how."""
    test = chosen.split == "test"
    label, patient, units = chosen.label[test], chosen.patient[test], f"{test.sum()} films"
    if aggregate != "none":
        joined = aggregate_studies(score_ML, label, chosen.study[test], patient, aggregate)
        units = f"{len(joined.label)} studies ({aggregate} of {len(label)} films)"
        score_ML, label, patient = joined.score_SC, joined.label, joined.patient_S
    statistic = _STATISTICS[chosen.task](label, score_ML, chosen.names, probabilities=True)
    return TestScores(bootstrap_draws_by_patient(patient, [statistic], seed=seed), len(np.unique(patient)), units)
