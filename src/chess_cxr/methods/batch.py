"""A batch of views, as methods take it.

Shapes: G global views, L local views, B this rank's films, S and s sides of global and local views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from chess_cxr.methods.pointwise import compute_pointwise_as_linear


@dataclass(frozen=True)
class ViewBatch:
    """Views of the same B films, normalised float32 (uint8 before the device).

    global_GB1SS: two or more views of most of each film.  local_LB1ss: smaller views of parts of it, or None.
    guides: known values of each film by column, int64 [B], -1 if unknown.
    raw: the global views before they were normalised, where they are known.
    """

    global_GB1SS: Tensor
    local_LB1ss: Tensor | None = None
    guides: Mapping[str, Tensor] = field(default_factory=dict)
    raw: RawViews | None = None


@dataclass(frozen=True)
class RawViews:
    """Views before they are normalised, for ranks to send: uint8, a quarter of the bytes.

    normalise: makes uint8 views normalised ones.
    """

    views_GB1SS: Tensor
    normalise: Callable[[Tensor], Tensor]


def take_views(batch: Tensor | ViewBatch) -> ViewBatch:
    """Return a batch of views; a tensor [2, B, 1, H, W] becomes a batch of two global views."""
    return batch if isinstance(batch, ViewBatch) else ViewBatch(batch)


def embed_local(batch: ViewBatch, network: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Embed all local views as one batch; return one [B, D] per view."""
    if batch.local_LB1ss is None:
        return []
    with compute_pointwise_as_linear(batch.local_LB1ss.device):
        embedded_ND = network(batch.local_LB1ss.flatten(0, 1))
    return list(embedded_ND.view(*batch.local_LB1ss.shape[:2], -1))
