"""Detect representation collapse from a run's numbers: embeddings or features that are alike for all films."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseLimits:
    """Limits beyond which films can no longer be told apart.

    Embeddings (which the loss compares) can collapse while BatchNorm keeps the features apart, and some methods report
    no embeddings: the alarm judges both separately.
    embedding_std: sqrt(D) times the standard deviation of unit vectors, 0 … 1; at 0.05 different films have a cosine
    of 0.9975.  In twelve small MoCo runs, good ones at usual rates never fell below 0.067 (one with AdamW at 0.1 fell
    to 0.053), the two that never learned stayed below 0.043, and two that began at 0.04 recovered within 200 steps,
    hence the alarm's `first_step`.
    positive_similarity: of the two views of a film; below it, a small spread has another cause.
    feature_std, effective_rank, uniformity: features have collapsed if they are beyond two of these three.  On real
    films, five untrained timm networks had at least 0.08, at least 3.0 and at most -0.08.
    judgements: number of consecutive judgements that must agree.
    """

    embedding_std: float = 0.05
    positive_similarity: float = 0.98
    feature_std: float = 0.03
    effective_rank: float = 1.5
    uniformity: float = -0.02
    judgements: int = 3


class CollapseAlarm:
    """Reads a run's numbers step by step, and warns once of a collapse.

    first_step: ignores steps before it, as an untrained network may look collapsed.
    is_ringing: whether it has warned; for runs that stop on collapse.
    """

    def __init__(self, limits: CollapseLimits | None = None, first_step: int = 0) -> None:
        self.is_ringing = False
        self._limits, self._first_step = limits or CollapseLimits(), first_step
        self._in_a_row = {"embeddings": 0, "features": 0}

    def judge(self, step: int, values: Mapping[str, float]) -> str:
        """Judge the numbers of a step, named as in `metrics.jsonl`; return a warning, or ""."""
        if self.is_ringing or step < self._first_step:
            return ""
        for place, signs in find_collapse(values, self._limits).items():
            self._in_a_row[place] = self._in_a_row[place] + 1 if signs else 0
            if self._in_a_row[place] >= self._limits.judgements:
                self.is_ringing = True
                return (
                    f"collapse: at step {step} the {place} of all films are alike ({signs}); "
                    "lower the learning rate or lengthen the warm-up, and begin a new run"
                )
        return ""


def find_collapse(values: Mapping[str, float], limits: CollapseLimits) -> dict[str, str]:
    """Return the signs of collapse of "embeddings" and "features", "" for none; leaves out what was not measured."""
    found: dict[str, str] = {}
    spread, similarity = values.get("embedding_std"), values.get("positive_similarity", 1.0)
    if spread is not None:
        collapsed = spread < limits.embedding_std and similarity > limits.positive_similarity
        found["embeddings"] = f"embedding_std {spread:.3f}" if collapsed else ""
    if "probe/broken_share" in values:
        found["features"] = f"{values['probe/broken_share']:.0%} are not finite"
    elif "probe/effective_rank" in values:
        signs = []
        if (rank := values["probe/effective_rank"]) < limits.effective_rank:
            signs.append(f"effective rank {rank:.1f}")
        if (spread := values.get("probe/feature_std", math.inf)) < limits.feature_std:
            signs.append(f"feature_std {spread:.3f}")
        if (uniformity := values.get("probe/uniformity", -math.inf)) > limits.uniformity:
            signs.append(f"uniformity {uniformity:.3f}")
        found["features"] = ", ".join(signs) if len(signs) > 1 else ""
    return found
