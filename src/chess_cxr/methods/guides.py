"""Guides: known facts about films that the encoder should keep or forget (FINO, arXiv 2606.05107).

A head on the encoder's features predicts a column of the store, such as the view or the site.  A helper keeps this
information in the features; an adversary, behind a reversed gradient, removes it (Ganin & Lempitsky 2015).

Shapes: B this rank's films, F features, C values of a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.methods.full_precision import full_precision
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.signals import read_signals
from chess_cxr.records import UsageError

HIDDEN = 256


@dataclass(frozen=True)
class Guide:
    """A column that guides a method.  role: helper or adversary.  weight: of its loss, relative to the method's."""

    column: str
    role: Literal["helper", "adversary"] = "helper"
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not (self.column and self.weight > 0):
            raise UsageError("guides: each needs a column and a weight above 0")


class Guided(nn.Module):
    """A method with a head for each guide on the features of each film's first view.

    values: number of values of each column.
    """

    def __init__(self, inner: EncoderMethod, guides: tuple[Guide, ...], values: Mapping[str, int]) -> None:
        super().__init__()
        self.inner, self.guides, self._values = inner, guides, values
        self.heads = nn.ModuleDict(
            {guide.column: _build_head(inner.features, values[guide.column]) for guide in guides}
        )
        self._guided: dict[str, Tensor] = {}

    @property
    def encoder(self) -> nn.Module:
        """The encoder of the method."""
        return self.inner.encoder

    @property
    def signals(self) -> dict[str, float]:
        """The method's numbers, and each guide's loss relative to that of guessing: 1 if nothing is known."""
        return read_signals(self.measured)

    @property
    def measured(self) -> dict[str, Tensor]:
        """The signals as tensors."""
        return self.inner.measured | self._guided

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        [(name, parameters)] = self.inner.get_parameters().items()
        return {name: [*parameters, *self.heads.parameters()]}

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the method's loss plus the weighted losses of the guides."""
        views, captured = take_views(batch), list[Tensor]()

        def capture(_module: nn.Module, _inputs: object, feature_BF: Tensor) -> None:
            if torch.is_grad_enabled():
                captured.append(feature_BF)

        hook = self.encoder.register_forward_hook(capture)
        try:
            [(name, loss)] = self.inner.losses(views)
        finally:
            hook.remove()
        films = views.global_GB1SS.shape[1]
        feature_BF = torch.cat(captured)[:films].float()  # every method begins with the first view of all films
        with full_precision(feature_BF.device):
            for guide in self.guides:
                own = compute_guide_loss(self.heads[guide.column], feature_BF, views.guides[guide.column], guide.role)
                self._guided[f"guide/{guide.column}"] = own.detach() / math.log(self._values[guide.column])
                loss = loss + guide.weight * own
        yield name, loss

    def after_step(self) -> None:
        """Update the method's state that has no gradient."""
        self.inner.after_step()


def compute_guide_loss(head: nn.Module, feature_BF: Tensor, value_B: Tensor, role: str) -> Tensor:
    """Return the cross-entropy of a head and a column in nats, as mean over all films; unknown values count 0."""
    score_BC = head(_Reverse.apply(feature_BF) if role == "adversary" else feature_BF)
    return F.cross_entropy(score_BC, value_B, ignore_index=-1, reduction="sum") / len(value_B)


def _build_head(features: int, values: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, values))


class _Reverse(torch.autograd.Function):
    """The identity, with a reversed gradient."""

    @staticmethod
    def forward(ctx: Any, feature_BF: Tensor) -> Tensor:
        return feature_BF.view_as(feature_BF)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]
