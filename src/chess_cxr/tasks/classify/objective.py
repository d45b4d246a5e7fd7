"""Classify films: a head on an encoder, or on its cached features.

A linear probe needs no gradients: `evaluation` fits it, and a network of this shape only holds its weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.tasks.classify.heads import OrdinalScores, build_head, build_scores, count_inputs, extract_map
from chess_cxr.tasks.classify.losses import Balance, sum_label_losses
from chess_cxr.tasks.classify.shape import HeadShape
from chess_cxr.training.distributed import average_over_ranks
from chess_cxr.views import ViewConfig, draw_view

FINETUNE_STREAM = 1 << 40  # keeps the views of fine-tuning apart from those of any pre-training position


@dataclass(frozen=True)
class LabelledBatch:
    """Inputs (films float32 [B, C, S, S], or cached features) with targets, float32 [B, L]."""

    film_BCSS: Tensor
    label_BL: Tensor


class Classify(nn.Module):
    """An encoder and a head, trained by the one loss "classifier".

    encoder: None for a head alone, which takes cached features.  balance: treatment of imbalanced classes.
    """

    def __init__(self, encoder: nn.Module | None, shape: HeadShape, balance: Balance | None = None) -> None:
        super().__init__()
        self.encoder, self.shape, self.balance = encoder, shape, balance
        inputs = count_inputs(shape.name, shape.features, shape.queries)
        output = OrdinalScores(inputs, shape.labels) if shape.task == "ordinal" else None
        scores = output or build_scores(inputs, shape.labels * (3 if shape.third_class else 1))
        self.head = build_head(shape.name, shape.features, scores, shape.queries)
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {"classifier": list(self.parameters())}

    def forward(self, film_BCSS: Tensor) -> Tensor:
        """Return scores before softmax or sigmoid: [B, L], [B, K - 1] for an order, [B, L, 3] with a third class."""
        features = film_BCSS
        if self.encoder is not None:
            features = (
                extract_map(self.encoder, film_BCSS) if self.shape.name == "attentive" else self.encoder(film_BCSS)
            )
        score: Tensor = self.head(features)
        return score.reshape(-1, self.shape.labels, 3) if self.shape.third_class else score

    def losses(self, batch: LabelledBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch: the mean over the known labels of all ranks."""
        score = self(batch.film_BCSS).float()
        total, weight = sum_label_losses(score, batch.label_BL, self.shape.task, self.balance)
        yield "classifier", total / average_over_ranks(weight).clamp_min(1e-9)

    def after_step(self) -> None:
        """Do nothing: only gradients train a classifier."""

    @torch.no_grad()
    def predict(self, film_BCSS: Tensor) -> np.ndarray:
        """Return probabilities, float32 [B, L], in evaluation mode.

        For ordered classes, those of each class.  A third class is left out: present against absent is what counts.
        """
        self.eval()
        probability_BL: np.ndarray = compute_probabilities(self(film_BCSS), self.shape).float().cpu().numpy()
        return probability_BL


class BestMoment(nn.Module):
    """Train a classifier with early stopping: keep the weights with the smallest loss on held-out films so far.

    patience: evaluations without improvement after which training ends; 0 for never.  All state is in parameters and
    buffers, so checkpoints hold it; best_step is 0 before the first evaluation.
    """

    best_loss: Tensor
    best_step: Tensor
    worse: Tensor

    def __init__(self, network: Classify, patience: int) -> None:
        super().__init__()
        self.network, self.best, self.patience = network, copy.deepcopy(network), patience
        self.register_buffer("best_loss", torch.tensor(math.inf))
        self.register_buffer("best_step", torch.tensor(0))
        self.register_buffer("worse", torch.tensor(0))  # evaluations since the best one
        self.signals: dict[str, float] = {}

    @property
    def is_over(self) -> bool:
        """Whether held-out films have not improved for `patience` evaluations."""
        return 0 < self.patience <= int(self.worse)

    def judge(self, step: int, loss: float) -> None:
        """Record the loss on held-out films after a step, and keep the weights if it is the smallest."""
        self.worse += 1
        found = self.best_loss.new_tensor(loss)
        if found < self.best_loss:
            self.best.load_state_dict(self.network.state_dict())
            self.best_loss.copy_(found)
            self.best_step.fill_(step)
            self.worse.zero_()

    def get_best(self) -> Classify:
        """Return the classifier with the best weights, or with the newest if nothing was held out."""
        return self.best if self.best_step else self.network

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return self.network.get_parameters()

    def losses(self, batch: LabelledBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch."""
        return self.network.losses(batch)

    def after_step(self) -> None:
        """Do nothing: only gradients train a classifier."""


def compute_probabilities(score: Tensor, shape: HeadShape) -> Tensor:
    """Turn scores into probabilities, [B, L]."""
    if shape.task == "multiclass":
        return score.softmax(1)
    if shape.task == "ordinal":
        above_BK = score.sigmoid()
        edge_B1 = torch.ones_like(above_BK[:, :1])
        return torch.cat([edge_B1, above_BK], 1) - torch.cat([above_BK, 0 * edge_B1], 1)
    return (score[..., 1] - score[..., 0]).sigmoid() if shape.third_class else score.sigmoid()


def draw_labelled_batch(
    films: Sequence[np.ndarray],
    label_BL: np.ndarray,
    positions: Sequence[int],
    seed: int,
    views: ViewConfig,
    contract: PixelContract,
) -> LabelledBatch:
    """Augment uint8 films and prepare them by the encoder's contract.

    The augmentation of a film is a pure function of (seed, position), as in pre-training.
    """
    prepared = []
    for film, position in zip(films, positions, strict=True):
        rng = np.random.Generator(np.random.Philox(key=[seed, FINETUNE_STREAM + int(position)]))
        prepared.append(contract.prepare(draw_view(film, views, rng).astype(np.float32) / 255))
    return LabelledBatch(torch.stack(prepared), torch.from_numpy(label_BL.astype(np.float32)))
