"""Classification of films: full fine-tuning of an encoder with a linear head.

The linear probe needs no gradient through the encoder: it works on cached features and lives in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.models.contract import PixelContract
from chess_cxr.views import ViewConfig, draw_view

Task = Literal["multiclass", "multilabel"]
FINETUNE_STREAM = 1 << 40  # keeps the views of fine-tuning apart from those of any pre-training position


@dataclass(frozen=True)
class LabelledBatch:
    """Films ready for the encoder, float32 [B, C, S, S], with labels of 1, 0 and NaN, float32 [B, L]."""

    film_BCSS: Tensor
    label_BL: Tensor


def compute_label_loss(score_BL: Tensor, label_BL: Tensor, task: Task) -> Tensor:
    """Return the mean cross-entropy over what is known, in nats, scalar.

    multiclass: over the films whose class is known, label_BL one-hot.  multilabel: over the known entries.
    A batch that knows nothing teaches nothing: its loss is 0, with gradients of 0.
    """
    if task == "multiclass":
        known_B = ~label_BL.isnan().any(1)
        if not known_B.any():
            return 0 * score_BL.sum()
        return F.cross_entropy(score_BL[known_B], label_BL[known_B].argmax(1))
    known_BL = ~label_BL.isnan()
    if not known_BL.any():
        return 0 * score_BL.sum()
    return F.binary_cross_entropy_with_logits(score_BL[known_BL], label_BL[known_BL])


class Classify(nn.Module):
    """An encoder and a linear head, both trained by the one loss "classifier"."""

    def __init__(self, encoder: nn.Module, features: int, labels: int, task: Task) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.task: Task = task
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {"classifier": list(self.parameters())}

    def forward(self, film_BCSS: Tensor) -> Tensor:
        """Score films: [B, L], before softmax or sigmoid."""
        score_BL: Tensor = self.head(self.encoder(film_BCSS))
        return score_BL

    def losses(self, batch: LabelledBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the cross-entropy of one batch."""
        yield "classifier", compute_label_loss(self(batch.film_BCSS), batch.label_BL, self.task)

    def after_step(self) -> None:
        """Nothing but gradients trains a classifier."""

    @torch.no_grad()
    def predict(self, film_BCSS: Tensor) -> np.ndarray:
        """Return probabilities, float32 [B, L], in evaluation mode."""
        self.eval()
        score_BL = self(film_BCSS)
        probability = score_BL.softmax(1) if self.task == "multiclass" else score_BL.sigmoid()
        probability_BL: np.ndarray = probability.cpu().numpy()
        return probability_BL


def draw_labelled_batch(
    films: Sequence[np.ndarray],
    label_BL: np.ndarray,
    positions: Sequence[int],
    seed: int,
    views: ViewConfig,
    contract: PixelContract,
) -> LabelledBatch:
    """Augment uint8 films and prepare them as the encoder's contract says.

    What a film becomes is a pure function of (seed, position), as in pre-training.
    """
    prepared = []
    for film, position in zip(films, positions, strict=True):
        rng = np.random.Generator(np.random.Philox(key=[seed, FINETUNE_STREAM + int(position)]))
        prepared.append(contract.prepare(draw_view(film, views, rng).astype(np.float32) / 255))
    return LabelledBatch(torch.stack(prepared), torch.from_numpy(label_BL.astype(np.float32)))
