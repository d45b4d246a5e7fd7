"""The configuration of a classifier and its training."""

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
    """The configuration of a classifier and its training.

    All modes but linear train by steps, score held-out films 20 times and keep the best weights.  Held out are the val
    films or, if there are none, the films of a fifth of the training patients.

    Args:
        mode: linear fits a logistic probe to cached features; mlp and attentive train a small network on cached
            features or feature maps; full trains all weights.
        steps: number of optimisation steps; not in linear mode.
        batch: films per step.
        learning_rate: learning rate of AdamW; by default 1e-3 for mlp and attentive, 3e-4 for full.
        weight_decay: weight decay of AdamW.
        layer_decay: learning rate of each stage of the encoder, relative to the stage above; in full mode.
        patience: stop after this many evaluations on held-out films without improvement; 0 for never.
        task: auto chooses multiclass if every film has exactly one label, otherwise independent findings.
        uncertain: policy for uncertain labels: ignore, ones, zeros, smooth_ones, smooth_zeros or third_class, for all
            findings, or FINDING=POLICY pairs.
        imbalance: weighting of classes of different size; not in linear mode.
        aggregate: score studies by the largest or mean probability of their films.
        precision: precision of training steps; weights and results are always float32; not in linear mode.
        checkpoint_every: steps between checkpoints; not in linear mode.
        threads: number of batches prepared in parallel; not in linear mode.
        seed: random seed.
        queries: learned queries that pool the feature map; in attentive mode.
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
    queries: int = 1

    def __post_init__(self) -> None:
        """Accept the arguments of version 0.1: no task for auto, one policy or a mapping of policies."""
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
