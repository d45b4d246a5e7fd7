"""SimCLR: contrastive learning with the other films of the batch as negatives (Chen et al. 2020).

Shapes: B this rank's films, N the films of all ranks, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, embed_local, take_views
from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.methods.heads import build_projection_head
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.ranks import contrast_over_ranks, gather_ranks_with_gradient, get_rank
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class SimCLRConfig:
    """Hyperparameters of SimCLR; the defaults are the paper's.  Negatives come from the batch, so large ones help."""

    name: Literal["simclr"] = field(default="simclr", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 128
    temperature: float = 0.1


def compute_nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Contrast each view with the other view of its film against all other views (SimCLR, Chen et al. 2020, eq. 1).

    first_BD, second_BD: L2-normalised float32 of this rank's films; the films of the other ranks are negatives too.
    Returns the mean NT-Xent loss of this rank's 2 B views in nats, scalar.
    """
    with full_precision(first_BD.device):
        first_ND, second_ND = gather_ranks_with_gradient(first_BD), gather_ranks_with_gradient(second_BD)
        logits = torch.cat([first_BD, second_BD]) @ torch.cat([first_ND, second_ND]).T / temperature
        own = torch.arange(len(first_BD), device=logits.device) + get_rank() * len(first_BD)
        itself, other = torch.cat([own, own + len(first_ND)]), torch.cat([own + len(first_ND), own])
        # mask each view's similarity to itself
        return F.cross_entropy(logits.scatter(1, itself[:, None], -torch.inf), other)


class SimCLR(EncoderMethod):
    """The encoder and its projection head."""

    def __init__(self, config: SimCLRConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        if not config.temperature > 0:
            raise UsageError("simclr: temperature must be above 0")
        super().__init__(config.architecture, encoder)
        self.config = config
        self.head = build_projection_head(self.features, config.embedding)

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the contrastive loss of a batch of views.

        As in the paper, both global views pass through the network as one batch and share BatchNorm statistics.
        Local views are contrasted with the global views of all films, not with each other.
        """
        views = take_views(batch)
        first_BD, second_BD = self._embed(views.global_GB1SS[:2].flatten(0, 1)).chunk(2)
        self.measured = measure_pairs(first_BD, second_BD)
        losses = [compute_nt_xent(first_BD, second_BD, self.config.temperature)]
        for local_BD in embed_local(views, self._embed):
            gathered = (gather_ranks_with_gradient(view_BD) for view_BD in (first_BD, second_BD))
            losses += [contrast_over_ranks(local_BD, view_ND, self.config.temperature) for view_ND in gathered]
        yield "encoder", losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _embed(self, view_B1SS: Tensor) -> Tensor:
        return normalise(self.head(self.encoder(view_B1SS)))
