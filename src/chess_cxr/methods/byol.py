"""BYOL: predict what a slowly moving copy says of the other view; no negatives (Grill et al. 2020).

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
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.signals import measure_pairs, read_signals
from chess_cxr.methods.trunk import take_encoder


@dataclass(frozen=True)
class BYOLConfig:
    """Numbers of BYOL; the defaults are the paper's.

    hidden: width of the heads' hidden layer.  target_momentum: share of the target network that survives the first
    step; it rises to 1 by the end of the run, along half a cosine.
    """

    name: Literal["byol"] = field(default="byol", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 256
    hidden: int = 4096
    target_momentum: float = 0.996


def compute_prediction_error(predicted_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Compare predictions with their targets (BYOL, Grill et al. 2020, eq. 2): 2 - 2 cosine, 0 … 4.

    Lengths do not matter; gradient flows to both, so targets are given without.  Returns the mean, scalar.
    """
    with full_precision(predicted_BD.device):
        return (2 - 2 * (normalise(predicted_BD) * normalise(target_BD)).sum(1)).mean()


class BYOL(nn.Module):
    """Owns the online network (encoder, projector, predictor) and the target network (encoder, projector).

    encoder: to continue from.  steps: of the whole run, for the momentum; 0 leaves it where it starts.
    """

    def __init__(self, config: BYOLConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder, features = take_encoder(encoder, config.architecture)
        self.head = build_normed_head((features, config.hidden, config.embedding))
        self.target_encoder, self.target_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.predictor = build_normed_head((config.embedding, config.hidden, config.embedding))
        self.momentum = MomentumSchedule(config.target_momentum, 1.0, steps)
        self._measured: dict[str, Tensor] = {}

    @property
    def signals(self) -> dict[str, float]:
        """Numbers of the newest step: those of `measure_pairs`, of predictions and targets."""
        return read_signals(self._measured)

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        online = (self.encoder, self.head, self.predictor)
        return {"encoder": [parameter for network in online for parameter in network.parameters()]}

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch of views: both global ones predict each other, summed.

        Each local view predicts both global ones; the pairs' mean, twice, keeps the scale.
        """
        views = take_views(batch)
        pair = views.global_GB1SS[:2]
        with torch.no_grad():
            targets = [self.target_head(self.target_encoder(view)) for view in pair]
        first_BD, second_BD = (self._predict(view) for view in pair)
        self._measured = measure_pairs(first_BD, targets[1])
        errors = [compute_prediction_error(first_BD, targets[1]), compute_prediction_error(second_BD, targets[0])]
        local_LBD = embed_local(views, self._predict)
        for local_BD in () if local_LBD is None else local_LBD:
            errors += [compute_prediction_error(local_BD, target_BD) for target_BD in targets]
        yield "encoder", errors[0] + errors[1] if len(errors) == 2 else 2 * torch.stack(errors).mean()

    def _predict(self, view_B1SS: Tensor) -> Tensor:
        predicted_BD: Tensor = self.predictor(self.head(self.encoder(view_B1SS)))
        return predicted_BD

    def after_step(self) -> None:
        """Move the target network towards the online network."""
        follow((self.target_encoder, self.target_head), (self.encoder, self.head), self.momentum.advance())
