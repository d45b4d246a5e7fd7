"""What a network is told of a nodule: size, contrast and kind; and how training nodules differ in them.

Shapes: B nodules, S side of their squares, Q quantiles.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from chess_cxr.tasks.nodules.canvas import Canvas, CanvasConfig, NoduleBatch, build_canvas

TOLD = 4  # log of the diameter, contrast, malignant, benign
LESION = 0.1  # typical grey of a lesion, which training brings to about 1
_TYPICAL = math.log(12)  # of a diameter in pixels
_QUANTILES = 101  # of the contrast around its line


class NoduleTable(nn.Module):
    """How the contrast of training nodules depends on their size, and the shares of malignant and benign ones."""

    line_2: Tensor
    spread_Q: Tensor
    kinds_2: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("line_2", torch.zeros(2))
        self.register_buffer("spread_Q", torch.zeros(_QUANTILES))
        self.register_buffer("kinds_2", torch.zeros(2))

    @torch.no_grad()
    def learn_nodules(self, told_N4: Tensor) -> None:
        """Fit a line of the contrast over the log of the diameter, keep the spread around it, and count the kinds."""
        log_N, contrast_N = told_N4[:, 0].double().numpy(), told_N4[:, 1].double().numpy()
        slope, offset = np.polyfit(log_N, contrast_N, 1) if len(np.unique(log_N)) > 2 else (0.0, contrast_N.mean())
        rest_N = contrast_N - (slope * log_N + offset)
        self.line_2.copy_(torch.tensor([slope, offset]))
        self.spread_Q.copy_(torch.from_numpy(np.quantile(rest_N, np.linspace(0, 1, _QUANTILES))))
        self.kinds_2.copy_(told_N4[:, 2:].mean(0))

    def draw_nodules(self, log_diameter_B: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw what `describe` would tell of nodules of these sizes, [B, 4], as training nodules have it."""
        place_B, kind_B = torch.rand((2, len(log_diameter_B)), generator=generator).to(log_diameter_B.device)
        place_B = place_B * (_QUANTILES - 1)
        low_B = place_B.long().clamp(max=_QUANTILES - 2)
        rest_B = torch.lerp(self.spread_Q[low_B], self.spread_Q[low_B + 1], place_B - low_B)
        contrast_B = self.line_2[0] * log_diameter_B + self.line_2[1] + rest_B
        malignant_B = kind_B < self.kinds_2[0]
        benign_B = ~malignant_B & (kind_B < self.kinds_2.sum())
        return torch.stack([log_diameter_B, contrast_B, malignant_B.float(), benign_B.float()], 1)

    def standardise(self, told_B4: Tensor) -> Tensor:
        """Return the same with a contrast in units of its spread around its line, and a size around 0."""
        rest_B = told_B4[:, 1] - (self.line_2[0] * told_B4[:, 0] + self.line_2[1])
        scaled_B = rest_B / self.spread_Q.std().clamp_min(1e-3)
        return torch.cat([told_B4[:, :1] - _TYPICAL, scaled_B[:, None], told_B4[:, 2:]], 1)


def find_lesion(batch: NoduleBatch, canvas: Canvas) -> Tensor:
    """Return what films have beyond their smooth ground, inside the regions, in grey levels: [B, 1, S, S]."""
    assert canvas.ground_B1SS is not None and canvas.share_B1SS is not None
    return (batch.film_B1SS - canvas.ground_B1SS) * (canvas.share_B1SS > 0)


def describe(batch: NoduleBatch, lesion_B1SS: Tensor) -> Tensor:
    """Return what the network is told of each nodule, [B, 4]: log of its diameter, contrast in units of `LESION`, and 1
    if it is known to be malignant, to be benign.
    """
    contrast_B = measure_contrast(lesion_B1SS, batch.mask_B1SS) / LESION
    malignant_B = contrast_B.new_full(contrast_B.shape, math.nan) if batch.malignant_B is None else batch.malignant_B
    kinds = [(malignant_B == 1).to(contrast_B.dtype), (malignant_B == 0).to(contrast_B.dtype)]
    return torch.stack([measure_diameter(batch.mask_B1SS).log(), contrast_B, *kinds], 1)


def tell_like(told_B4: Tensor, like: NoduleBatch, config: CanvasConfig) -> Tensor:
    """Replace contrast and kind by those of the single nodule in `like`; the size stays that of the request."""
    like_14 = describe(like, find_lesion(like, build_canvas(like, config)))
    return torch.cat([told_B4[:, :1], like_14[:, 1:].expand(len(told_B4), -1)], 1)


def measure_diameter(mask_B1SS: Tensor) -> Tensor:
    """Return the diameter in pixels of the disc with the mask's area, [B]; 1 at least."""
    return (mask_B1SS.flatten(1).sum(1) * 4 / math.pi).sqrt().clamp_min(1)


def measure_contrast(lesion_B1SS: Tensor, mask_B1SS: Tensor) -> Tensor:
    """Return the mean grey of each lesion inside its mask, [B]."""
    return (lesion_B1SS * mask_B1SS).flatten(1).sum(1) / mask_B1SS.flatten(1).sum(1).clamp_min(1)
