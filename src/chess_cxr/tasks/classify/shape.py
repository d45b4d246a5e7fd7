"""The shape of a classifier's head, and the probabilities that its scores stand for; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, softmax

from chess_cxr.tasks.classify.config import ClassifyTask

HeadName = Literal["linear", "mlp", "attentive"]
MOST_QUERIES = 64


@dataclass(frozen=True)
class HeadShape:
    """The shape of a classifier's head.

    features: number of inputs.  labels: L, or the K ordered classes.  third_class: whether findings have scores for
    absent, present and uncertain.  queries: of attentive pooling.
    """

    name: HeadName
    task: ClassifyTask
    features: int
    labels: int
    third_class: bool = False
    queries: int = 1


def find_probabilities(score: np.ndarray, shape: HeadShape) -> np.ndarray:
    """Turn scores into probabilities, float32 [B, L], as `objective.compute_probabilities` does."""
    exact = score.astype(np.float64)
    if shape.task == "multiclass":
        found = softmax(exact, 1)
    elif shape.task == "ordinal":
        above_BK, edge_B1 = expit(exact), np.ones((len(exact), 1))
        found = np.concatenate([edge_B1, above_BK], 1) - np.concatenate([above_BK, 0 * edge_B1], 1)
    else:
        found = expit(exact[..., 1] - exact[..., 0] if shape.third_class else exact)
    probability_BL: np.ndarray = found.astype(np.float32)
    return probability_BL
