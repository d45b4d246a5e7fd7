"""How a classifier is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chess_cxr.records import UsageError

Mode = Literal["linear", "mlp", "attentive", "full"]
ClassifyTask = Literal["multiclass", "multilabel", "ordinal"]
Imbalance = Literal["none", "inverse", "effective", "focal", "logit_adjustment"]
Policy = Literal["ignore", "ones", "zeros", "smooth_ones", "smooth_zeros", "third_class"]
Policies = str | Mapping[str, str] | Sequence[str]  # of all findings, by finding, or as FINDING=POLICY texts


@dataclass(frozen=True)
class FinetuneConfig:
    """How a classifier is trained.

    All modes but linear train by steps, score held-out films 20 times on the way and keep the best weights: val films,
    or a fifth of the training patients where there is no val film.

    Args:
        mode: linear fits a logistic probe to cached features; mlp and attentive train a small network on cached
            features or feature maps; full trains all weights.
        steps: optimisation steps, not in linear mode.
        batch: films a step.
        learning_rate: of AdamW; by default 1e-3 for mlp and attentive, 3e-4 for full.
        weight_decay: of AdamW.
        layer_decay: learning rate of each stage of the encoder as a share of the one above, in full mode.
        patience: evaluations on held-out films without improvement after which training stops; 0 for never.
        task: auto takes one class a film where every film has exactly one, independent findings elsewhere.
        uncertain: what uncertain labels teach: ignore, ones, zeros, smooth_ones, smooth_zeros or third_class, for all
            findings, or FINDING=POLICY pairs.
        imbalance: how classes of different size are weighted; not in linear mode.
        aggregate: score studies by the largest or mean probability of their films.
        precision: of the arithmetic of training steps, not in linear mode; weights and results are float32 always.
        checkpoint_every: steps between checkpoints, not in linear mode.
        threads: batches prepared at a time, not in linear mode.
        seed: of everything random.
    """

    mode: Mode = "linear"
    steps: int = 300
    batch: int = 32
    learning_rate: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 0.9
    patience: int = 5
    task: Literal["auto", "multiclass", "multilabel", "ordinal"] = "auto"
    uncertain: tuple[str, ...] = ("ignore",)
    imbalance: Imbalance = "none"
    aggregate: Literal["none", "max", "mean"] = "none"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_every: int = 100
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Take what version 0.1 took: no task for auto, one policy or a mapping of policies."""
        if self.task is None:
            object.__setattr__(self, "task", "auto")
        if isinstance(self.uncertain, str):
            object.__setattr__(self, "uncertain", (self.uncertain,))
        elif isinstance(self.uncertain, Mapping):
            object.__setattr__(self, "uncertain", tuple(f"{name}={it}" for name, it in self.uncertain.items()))


def parse_policies(texts: Sequence[str]) -> str | dict[str, str]:
    """Parse the policy of all findings, or FINDING=POLICY texts."""
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    pairs: dict[str, str] = {}
    for text in texts:
        finding, found, policy = text.rpartition("=")
        if not found or not finding or finding in pairs:
            raise UsageError(f"{text!r} should be FINDING=POLICY, each finding once, such as Edema=ones")
        pairs[finding] = policy
    return pairs
