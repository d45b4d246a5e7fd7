"""Guides: what is known of films helps an encoder, or tells it what to forget (FINO, 2606.05107).

A head on the encoder's features predicts a column of the store, such as the view or the site.  As a helper it keeps
that in the features.  As an adversary it sits behind a reversed gradient (Ganin & Lempitsky 2015), which removes it.

Shapes: B this rank's films, F features, C values of a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.methods.full_precision import full_precision
from chess_cxr.methods.signals import read_signals
from chess_cxr.records import UsageError

HIDDEN = 256


@dataclass(frozen=True)
class Guide:
    """A column that guides a method.  role: helper or adversary.  weight: of its loss beside the method's own."""

    column: str
    role: Literal["helper", "adversary"] = "helper"
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not (self.column and self.weight > 0):
            raise UsageError("guides: each needs a column and a weight above 0")


class Guided(nn.Module):
    """Any method, with a head for each guide on the features of each film's first view.

    values: by column, how many there are.
    """

    def __init__(self, inner: nn.Module, guides: tuple[Guide, ...], values: Mapping[str, int]) -> None:
        super().__init__()
        self.inner, self.guides = inner, guides
        features: Any = getattr(self.encoder, "head_hidden_size", None) or getattr(self.encoder, "num_features", None)
        self.heads = nn.ModuleDict(
            {
                guide.column: nn.Sequential(
                    nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, values[guide.column])
                )
                for guide in guides
            }
        )
        self._measured: dict[str, Tensor] = {}

    @property
    def encoder(self) -> nn.Module:
        """The encoder of the method."""
        encoder: Any = self.inner.encoder
        return encoder  # type: ignore[no-any-return]

    @property
    def signals(self) -> dict[str, float]:
        """The method's numbers, and each guide's loss as a share of that of guessing: 1 where nothing is known."""
        inner: Any = self.inner
        signals: dict[str, float] = inner.signals | read_signals(self._measured)
        return signals

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        inner: Any = self.inner
        [(name, parameters)] = inner.get_parameters().items()
        return {name: [*parameters, *self.heads.parameters()]}

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the method's loss with those of the guides."""
        views, captured = take_views(batch), list[Tensor]()

        def capture(_module: nn.Module, _inputs: object, feature_BF: Tensor) -> None:
            if torch.is_grad_enabled():
                captured.append(feature_BF)

        inner: Any = self.inner
        hook = self.encoder.register_forward_hook(capture)
        try:
            [(name, loss)] = inner.losses(views)
        finally:
            hook.remove()
        films = views.global_GB1SS.shape[1]
        feature_BF = torch.cat(captured)[:films].float()  # every method begins with the first view of all films
        with full_precision(feature_BF.device):
            for guide in self.guides:
                told = compute_guide_loss(self.heads[guide.column], feature_BF, views.guides[guide.column], guide.role)
                chance = torch.log(torch.tensor(float(self.heads[guide.column][-1].out_features)))  # type: ignore[index]
                self._measured[f"guide/{guide.column}"] = told.detach() / chance
                loss = loss + guide.weight * told
        yield name, loss

    def after_step(self) -> None:
        """Update what no gradient reaches."""
        inner: Any = self.inner
        inner.after_step()


def compute_guide_loss(head: nn.Module, feature_BF: Tensor, value_B: Tensor, role: str) -> Tensor:
    """Cross-entropy of a head and a column, nats, a mean over all films; those of which nothing is known count 0."""
    score_BC = head(_Reverse.apply(feature_BF) if role == "adversary" else feature_BF)
    return F.cross_entropy(score_BC, value_B, ignore_index=-1, reduction="sum") / len(value_B)


class _Reverse(torch.autograd.Function):
    """Hands values on as they are, and gradients with the other sign."""

    @staticmethod
    def forward(ctx: Any, feature_BF: Tensor) -> Tensor:
        return feature_BF.view_as(feature_BF)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]
