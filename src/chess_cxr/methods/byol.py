"""BYOL: predict the momentum encoder's embedding of the other view, without negatives (Grill et al. 2020).

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, embed_local, take_views
from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.methods.heads import build_normed_head
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.signals import measure_pairs


@dataclass(frozen=True)
class BYOLConfig:
    """Hyperparameters of BYOL; the defaults are the paper's.

    hidden: width of the heads' hidden layer.  target_momentum: initial momentum of the target network; it rises to 1
    over the run, along half a cosine.
    """

    name: Literal["byol"] = field(default="byol", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 256
    hidden: int = 4096
    target_momentum: float = 0.996


def compute_prediction_error(predicted_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Return the mean squared distance of normalised predictions and targets (BYOL, Grill et al. 2020, eq. 2).

    2 - 2 cosine, 0 … 4, scalar.  Gradient flows to both arguments: pass targets without gradient.
    """
    with full_precision(predicted_BD.device):
        return (2 - 2 * (normalise(predicted_BD) * normalise(target_BD)).sum(1)).mean()


class BYOL(EncoderMethod):
    """The online network (encoder, projector, predictor) and the target network (encoder, projector)."""

    def __init__(self, config: BYOLConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        super().__init__(config.architecture, encoder)
        self.config = config
        self.head = build_normed_head((self.features, config.hidden, config.embedding))
        self.target_encoder, self.target_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.predictor = build_normed_head((config.embedding, config.hidden, config.embedding))
        self.momentum = MomentumSchedule(config.target_momentum, 1.0, steps)

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the symmetrised loss of a batch of views.

        Each local view predicts both global ones; twice the mean over all pairs keeps the scale.
        """
        views = take_views(batch)
        pair = views.global_GB1SS[:2]
        with torch.no_grad():
            targets = [self.target_head(self.target_encoder(view)) for view in pair]
        first_BD, second_BD = (self._predict(view) for view in pair)
        self.measured = measure_pairs(first_BD, targets[1])
        errors = [compute_prediction_error(first_BD, targets[1]), compute_prediction_error(second_BD, targets[0])]
        for local_BD in embed_local(views, self._predict):
            errors += [compute_prediction_error(local_BD, target_BD) for target_BD in targets]
        yield "encoder", errors[0] + errors[1] if len(errors) == 2 else 2 * torch.stack(errors).mean()

    def _predict(self, view_B1SS: Tensor) -> Tensor:
        predicted_BD: Tensor = self.predictor(self.head(self.encoder(view_B1SS)))
        return predicted_BD

    def after_step(self) -> None:
        """Move the target network towards the online network."""
        follow((self.target_encoder, self.target_head), (self.encoder, self.head), self.momentum.advance())
