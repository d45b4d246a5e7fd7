"""VICReg: variance-invariance-covariance regularisation (Bardes, Ponce & LeCun 2022).

Shapes: B this rank's films, N the films of all ranks, D embedding.
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
from chess_cxr.methods.ranks import gather_ranks_with_gradient
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class VICRegConfig:
    """Hyperparameters of VICReg; the defaults are the paper's.

    embedding: width of all three layers of the expander.
    invariance, variance, covariance: weights of the three terms (lambda, mu and nu in the paper).
    """

    name: Literal["vicreg"] = field(default="vicreg", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 8192
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


def compute_variance_loss(centred_ND: Tensor) -> Tensor:
    """Return the hinge loss that keeps each dimension's standard deviation at 1 or more (eq. 1 and 2).

    centred_ND: float32, every column of mean 0.  Returns the mean over the dimensions, scalar, 0 … 1.
    """
    variance_D = centred_ND.square().sum(0) / (len(centred_ND) - 1)
    return F.relu(1 - torch.sqrt(variance_D + 1e-4)).mean()


def compute_covariance_loss(centred_ND: Tensor) -> Tensor:
    """Sum the squared covariances of different dimensions, divided by the number of dimensions D (eq. 3 and 4).

    With fewer films than dimensions it multiplies films: the squares of X X' have the same sum as those of X' X, and
    N x N is smaller than D x D.
    """
    films, width = centred_ND.shape
    products = centred_ND @ centred_ND.T if films < width else centred_ND.T @ centred_ND
    own_D = centred_ND.square().sum(0)
    return (products.square().sum() - own_D.square().sum()) / (films - 1) ** 2 / width


class VICReg(EncoderMethod):
    """The encoder and its expander; signals include the three terms without their weights."""

    def __init__(self, config: VICRegConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        weights = (config.invariance, config.variance, config.covariance)
        if not all(0 <= weight < math.inf for weight in weights):
            raise UsageError("vicreg: the weights of the terms must be 0 or more")
        super().__init__(config.architecture, encoder)
        self.config = config
        self.head = build_normed_head((self.features, config.embedding, config.embedding, config.embedding))

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the weighted sum of the three terms (algorithm 1) of a batch of views.

        Variance and covariance cover the films of all ranks; the invariance is this rank's mean.
        Each local view is paired with both global ones; the terms are means over all pairs.
        """
        views = take_views(batch)
        first_BD, second_BD = (self._embed(view) for view in views.global_GB1SS[:2])
        local = embed_local(views, self._embed)
        pairs = [(first_BD, second_BD), *((local_BD, view) for local_BD in local for view in (first_BD, second_BD))]
        with full_precision(first_BD.device):
            found = [self._compute_terms(one_BD, other_BD) for one_BD, other_BD in pairs]
            terms = found[0]
            if len(found) > 1:
                terms = {name: torch.stack([each[name] for each in found]).mean() for name in terms}
        self.measured = measure_pairs(first_BD, second_BD)
        self.measured |= {name: term.detach() for name, term in terms.items()}
        yield "encoder", torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()

    def _embed(self, view_B1SS: Tensor) -> Tensor:
        embedded_BD: Tensor = self.head(self.encoder(view_B1SS)).float()
        return embedded_BD

    def _compute_terms(self, first_BD: Tensor, second_BD: Tensor) -> dict[str, Tensor]:
        gathered = (gather_ranks_with_gradient(view_BD) for view_BD in (first_BD, second_BD))
        first_ND, second_ND = (view_ND - view_ND.mean(0) for view_ND in gathered)
        if len(first_ND) < 2:
            raise UsageError("vicreg: a batch needs at least 2 films")
        return {
            "invariance": F.mse_loss(first_BD, second_BD),
            "variance": compute_variance_loss(first_ND) + compute_variance_loss(second_ND),
            "covariance": compute_covariance_loss(first_ND) + compute_covariance_loss(second_ND),
        }
