"""Scaling of probabilities by a slope and an offset per class on the log scale; `evaluation.reliability` fits them.

Shape suffixes: M films, C classes or L findings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from chess_cxr.records import UsageError

if TYPE_CHECKING:
    from chess_cxr.evaluation.metrics import TaskKind
    from chess_cxr.evaluation.ranked_scores import FloatArray

_LEAST = 1e-7  # distance from 0 and 1 to which probabilities are clipped before taking logarithms


@dataclass(frozen=True)
class Scaling:
    """A scaling of probabilities, fitted by the log-loss of validation films.

    slope_C: 1 / temperature.  before, after: mean log-loss of the validation films in nats (for findings: over all
    known pairs of film and finding).  notes: warnings for the reader, one sentence each.
    """

    kind: TaskKind
    slope_C: FloatArray
    offset_C: FloatArray
    before: float
    after: float
    notes: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """The temperature, if all classes share one; NaN otherwise."""
        slopes = set(self.slope_C.tolist())
        return 1 / slopes.pop() if len(slopes) == 1 and min(slopes) > 0 else math.nan

    def apply(self, probability_MC: ArrayLike) -> FloatArray:
        """Return scaled probabilities, float64 [M, C]; raises UsageError for another number of classes."""
        probability = np.asarray(probability_MC, dtype=np.float64)
        if probability.ndim != 2 or probability.shape[1] != len(self.slope_C):
            classes = len(self.slope_C)
            raise UsageError(f"probabilities of shape {probability.shape} do not fit {classes} scaled classes")
        score_MC = self.slope_C * take_logs(probability, self.kind) + self.offset_C
        scaled: FloatArray = special.softmax(score_MC, axis=1) if self.kind == "multiclass" else special.expit(score_MC)
        return scaled


def take_logs(probability_MC: FloatArray, kind: TaskKind) -> FloatArray:
    """Return logarithms of classes, logits of findings."""
    clipped = np.clip(probability_MC, _LEAST, 1 - _LEAST)
    logs: FloatArray = np.log(clipped) if kind == "multiclass" else special.logit(clipped)
    return logs
