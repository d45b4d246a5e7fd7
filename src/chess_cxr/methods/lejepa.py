"""LeJEPA: views predict each other, with isotropic Gaussian embeddings (Balestriero & LeCun 2025, arXiv 2511.08544).

It has no teacher, queue or stop-gradient.  SIGReg prevents collapse: it compares the distribution of the embeddings
along random directions with a standard normal one, by the Epps-Pulley test.

Shapes: V views of both kinds, B this rank's films, N the films of all ranks, D embedding, M directions, K knots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, embed_local, take_views
from chess_cxr.methods.full_precision import full_precision
from chess_cxr.methods.heads import build_normed_head
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.ranks import get_world
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError
from chess_cxr.training.late import advance_count, read_count
from chess_cxr.training.sync_norm import sum_over_ranks


@dataclass(frozen=True)
class LeJEPAConfig:
    """Hyperparameters of LeJEPA; the defaults are the paper's, except for a smaller head and fewer directions.

    hidden: width of the head's two hidden layers.  regularisation: weight of SIGReg in the loss (lambda), the only
    hyperparameter that the paper tunes.  directions: number of random directions per step.  knots: number of points
    from 0 to `reach` at which characteristic functions are compared.
    """

    name: Literal["lejepa"] = field(default="lejepa", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 64
    hidden: int = 2048
    regularisation: float = 0.05
    directions: int = 256
    knots: int = 17
    reach: float = 5.0


def compute_sigreg(embedded_VBD: Tensor, direction_DM: Tensor, knots: int, reach: float) -> Tensor:
    """Return the Epps-Pulley statistic of each view's embeddings against a Gaussian, as mean over directions and views.

    embedded_VBD: float32 of this rank's films; the films of the other ranks count too.  direction_DM: unit columns.
    For each direction: N times the integral over t of |mean of exp(itx) - exp(-t² / 2)|² exp(-t² / 2), by the
    trapezoid rule from -`reach` to `reach` (the integrand is even).
    """
    knot_K = torch.linspace(0, reach, knots, device=embedded_VBD.device)
    normal_K = torch.exp(-knot_K.square() / 2)
    weight_K = torch.full_like(knot_K, 2 * reach / (knots - 1))
    weight_K[0] /= 2
    weight_K[-1] /= 2
    films = embedded_VBD.shape[1] * get_world()
    with full_precision(embedded_VBD.device):
        angle_VBMK = (embedded_VBD @ direction_DM)[..., None] * knot_K
        real_VMK, imaginary_VMK = angle_VBMK.cos().sum(1), angle_VBMK.sin().sum(1)
        if get_world() > 1:
            real_VMK, imaginary_VMK = sum_over_ranks(real_VMK), sum_over_ranks(imaginary_VMK)
        error_VMK = (real_VMK / films - normal_K).square() + (imaginary_VMK / films).square()
        return films * (error_VMK @ (weight_K * normal_K)).mean()


class LeJEPA(EncoderMethod):
    """The encoder and its head; signals include both terms without their weights."""

    step: Tensor

    def __init__(self, config: LeJEPAConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        if not 0 <= config.regularisation <= 1:
            raise UsageError("lejepa: regularisation must be from 0 to 1")
        if config.directions < 1 or config.knots < 2 or not 0 < config.reach < math.inf:
            raise UsageError("lejepa: directions must be 1 or more, knots 2 or more and reach above 0")
        super().__init__(config.architecture, encoder)
        self.config = config
        self.head = build_normed_head((self.features, config.hidden, config.hidden, config.embedding))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch of views, which all predict the mean embedding of their film's global views."""
        views = take_views(batch)
        global_GBD = torch.stack([self._embed(view) for view in views.global_GB1SS])
        embedded_VBD = torch.stack([*global_GBD, *embed_local(views, self._embed)])
        if embedded_VBD.shape[1] < 2:
            raise UsageError("lejepa: a batch needs at least 2 films")
        prediction = (embedded_VBD - global_GBD.mean(0)).square().mean()
        direction_DM = self._draw_directions(embedded_VBD)
        sigreg = compute_sigreg(embedded_VBD, direction_DM, self.config.knots, self.config.reach)
        self.measured = measure_pairs(global_GBD[0], global_GBD[1])
        self.measured |= {"prediction": prediction.detach(), "sigreg": sigreg.detach()}
        share = self.config.regularisation
        yield "encoder", (1 - share) * prediction + share * sigreg

    def _embed(self, view_B1SS: Tensor) -> Tensor:
        embedded_BD: Tensor = self.head(self.encoder(view_B1SS)).float()
        return embedded_BD

    def _draw_directions(self, embedded_VBD: Tensor) -> Tensor:
        """Draw unit columns [D, M] from the number of the step, so that they are the same on every rank."""
        generator = torch.Generator().manual_seed(read_count(self, "step"))
        drawn_DM = torch.randn(self.config.embedding, self.config.directions, generator=generator)
        return F.normalize(drawn_DM, dim=0).to(embedded_VBD.device, non_blocking=True)

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the step, so that the next one draws other directions."""
        advance_count(self, "step")
