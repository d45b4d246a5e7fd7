"""The views of a batch of films, as methods take them.

Shapes: G global views, L local views, B this rank's films, S and s sides of global and local views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """Views of the same B films, normalised float32 (or uint8 on their way to the device).

    global_GB1SS: at least two views of most of each film.  local_LB1ss: smaller views of parts of it; None for none.
    guides: by name, what is known of each film, int64 [B], -1 where nothing is.
    """

    global_GB1SS: Tensor
    local_LB1ss: Tensor | None = None
    guides: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> ViewBatch:
        """Move to a device."""
        local = None if self.local_LB1ss is None else self.local_LB1ss.to(device, non_blocking=True)
        guides = {name: guide_B.to(device, non_blocking=True) for name, guide_B in self.guides.items()}
        return ViewBatch(self.global_GB1SS.to(device, non_blocking=True), local, guides)


def take_views(batch: Tensor | ViewBatch) -> ViewBatch:
    """Return a batch of views; a plain tensor [2, B, 1, H, W] is one of two global views."""
    return batch if isinstance(batch, ViewBatch) else ViewBatch(batch)


def embed_local(batch: ViewBatch, network: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Embed all local views as one batch: [L, B, D]; None where there are none."""
    if batch.local_LB1ss is None:
        return None
    local = batch.local_LB1ss
    embedded_ND = network(local.flatten(0, 1))
    return embedded_ND.view(*local.shape[:2], -1)
