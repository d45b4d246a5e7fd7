"""The objective of bone suppression: learn from pairs of films the grey that bone adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.evaluation.image_metrics import K1, K2, SCALE_WEIGHTS, SIGMA, WINDOW, count_scales
from chess_cxr.tasks.bones.network import BoneNetwork
from chess_cxr.training.late import read_numbers

SMALLEST_SIDE = WINDOW  # of pictures with at least one scale
SPREAD_WEIGHT = 0.01  # nothing to AdamW, but its gradients would outweigh those of bone where they are clipped
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PairBatch:
    """Films and the same films without bone, float32 [B, 1, H, W] in [0, 1], bone bright.

    nodule_BKHW: the grey that each of up to K nodules would add to film and target; None without.  nodule_share: share
    of the weight of kept nodules, see `ramp_nodules`, a scalar.  weight_B: how much each pair counts in L1 and MS-SSIM;
    None if all count alike.
    """

    film_B1HW: Tensor
    bone_free_B1HW: Tensor
    nodule_BKHW: Tensor | None = None
    nodule_share: Tensor | None = None
    weight_B: Tensor | None = None


class SuppressBones(nn.Module):
    """A bone network trained by the one loss "suppression": L1 + (1 - MS-SSIM) + a perceptual loss + kept nodules.

    perceptual: a distance of two pictures in [0, 1], or None; weight: its weight.  keep_nodules: weight of
    `measure_taken_nodules`, at 1 as strong as L1; a batch with nodules is seen twice, without them and with them.
    A network with a spread also learns the absolute error of its bone image, as the scale of a Laplace distribution.
    """

    def __init__(
        self,
        network: BoneNetwork,
        perceptual: Perceptual | None = None,
        weight: float = 1.0,
        keep_nodules: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.perceptual, self.weight, self.keep_nodules = network, perceptual, weight, keep_nodules
        self.measured: dict[str, Tensor] = {}  # the signals as tensors

    @property
    def signals(self) -> dict[str, float]:
        """The parts of the newest loss."""
        return read_numbers(self.measured)

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {"suppression": list(self.network.parameters())}

    def losses(self, batch: PairBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch."""
        film_B1HW, truth_B1HW = batch.film_B1HW, batch.bone_free_B1HW
        weight_B = film_B1HW.new_ones(len(film_B1HW)) if batch.weight_B is None else batch.weight_B
        if batch.nodule_BKHW is not None:
            added_B1HW = batch.nodule_BKHW.sum(1, keepdim=True)
            film_B1HW, truth_B1HW = (torch.cat([it, it + added_B1HW]) for it in (film_B1HW, truth_B1HW))
            weight_B = torch.cat([weight_B, weight_B])
        found_BCHW = self.network(film_B1HW)
        bone_B1HW = found_BCHW[:, :1]
        result_B1HW = film_B1HW - bone_B1HW
        parts = {
            "l1": compute_l1(result_B1HW, truth_B1HW, weight_B),
            "ms_ssim": compute_ms_ssim_loss(result_B1HW, truth_B1HW, weight_B),
        }
        if self.perceptual and self.weight:
            parts["perceptual"] = self.weight * self.perceptual(result_B1HW, truth_B1HW)
        if batch.nodule_BKHW is not None:
            without_B1HW, with_B1HW = bone_B1HW.chunk(2)
            taken = measure_taken_nodules(with_B1HW - without_B1HW, batch.nodule_BKHW)
            # to take all nodules away costs as much as to leave all bone does by L1
            weight = self.keep_nodules * (1.0 if batch.nodule_share is None else batch.nodule_share)
            parts["nodules"] = weight * taken * compute_l1(film_B1HW, truth_B1HW, weight_B)
        if found_BCHW.shape[1] == 2:
            spread_B1HW = found_BCHW[:, 1:]
            error_B1HW = (result_B1HW - truth_B1HW).abs().detach()
            parts["spread"] = SPREAD_WEIGHT * (error_B1HW / spread_B1HW + spread_B1HW.log()).mean()
        self.measured = {f"part/{name}": part.detach() for name, part in parts.items()}
        yield "suppression", torch.stack(list(parts.values())).sum()

    def after_step(self) -> None:
        """Do nothing: only gradients train a bone network."""


def ramp_nodules(progress: float) -> float:
    """Return the share of the weight of kept nodules at a progress of 0 to 1: it rises until half of the training.

    A network that has not seen ribs yet would learn to keep nodules by finding no bone at all, and stay there.
    """
    return min(1.0, 2 * progress) ** 2


def measure_taken_nodules(change_B1HW: Tensor, nodule_BKHW: Tensor) -> Tensor:
    """Return the share of the nodules' grey that a bone image takes away, and what it changes around them.

    change_B1HW: bone image with the nodules minus that without them.  nodule_BKHW: grey of each nodule, 0 around it.
    The first part is sum(|change| nodule) / sum(nodule^2), 0 if nothing is taken and 1 if all is, a mean over the
    nodules, so that faint and small ones count as much as others.  The second is sum(|change| outside) / sum(nodules).
    """
    moved_B1HW = change_B1HW.abs()
    energy_BK = (nodule_BKHW**2).sum((2, 3))
    taken_BK = (moved_B1HW * nodule_BKHW).sum((2, 3)) / energy_BK.clamp(min=1e-6)
    there_BK = energy_BK > 0
    added_B1HW = nodule_BKHW.sum(1, keepdim=True)
    around = (moved_B1HW * (added_B1HW == 0)).sum() / added_B1HW.sum().clamp(min=1e-6)
    return (taken_BK * there_BK).sum() / there_BK.sum().clamp(min=1) + around * there_BK.any()


def compute_l1(picture_B1HW: Tensor, truth_B1HW: Tensor, weight_B: Tensor) -> Tensor:
    """Return the mean absolute difference of pictures, each picture's times its weight."""
    return (weight_B * (picture_B1HW - truth_B1HW).abs().mean((1, 2, 3))).mean()


def compute_ms_ssim_loss(picture_B1HW: Tensor, truth_B1HW: Tensor, weight_B: Tensor | float = 1.0) -> Tensor:
    """Return 1 - MS-SSIM (Wang et al. 2003), grey levels in [0, 1], mean over pictures of at least 11 pixels a side.

    weight_B: factor of each picture.  Small pictures have fewer scales, whose weights are scaled to a sum of 1.
    """
    scales = count_scales(min(picture_B1HW.shape[-2:]))
    weight_S = torch.tensor(SCALE_WEIGHTS[:scales]).to(picture_B1HW.device, non_blocking=True)
    parts = []
    for scale in range(scales):
        if scale:
            picture_B1HW, truth_B1HW = F.avg_pool2d(picture_B1HW, 2), F.avg_pool2d(truth_B1HW, 2)
        luminance_B, contrast_B = _compare_structure(picture_B1HW, truth_B1HW)
        parts.append((luminance_B if scale == scales - 1 else contrast_B).clamp(min=1e-6))
    similarity_B = torch.stack(parts).pow((weight_S / weight_S.sum())[:, None]).prod(0)
    return (weight_B * (1 - similarity_B)).mean()


def _compare_structure(a_B1HW: Tensor, b_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM and its contrast-structure part, means over each picture [B]."""
    height, width = a_B1HW.shape[-2:]
    rows, columns = (_draw_window(side, a_B1HW.device).to(a_B1HW.dtype) for side in (height, width))

    def blur(x: Tensor) -> Tensor:
        # products with banded matrices: many times faster than convolving one channel
        return rows @ (x @ columns.T)

    mean_a, mean_b = blur(a_B1HW), blur(b_B1HW)
    variance = blur(a_B1HW**2 + b_B1HW**2) - mean_a**2 - mean_b**2
    covariance = blur(a_B1HW * b_B1HW) - mean_a * mean_b
    contrast = (2 * covariance + K2**2) / (variance + K2**2)
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


@cache
def _draw_window(side: int, device: torch.device) -> Tensor:
    """Return SSIM's Gaussian window at each place where it fits, as the rows of a matrix [side - 10, side]."""
    gauss = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    window = torch.zeros(side - WINDOW + 1, side)
    for row in range(len(window)):
        window[row, row : row + WINDOW] = gauss / gauss.sum()
    return window.to(device)
