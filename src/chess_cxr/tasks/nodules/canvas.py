"""What a nodule is painted onto: layout, smooth ground, and the soft edge of the region that may change.

Shapes: B films, S their side, K layout channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.masks import check_mask
from chess_cxr.tasks.nodules.region import compute_blend, compute_region, find_window

Mode = Literal["film", "inpaint"]
Perceptual = Callable[..., Tensor]  # made, real and, optionally, where to compare, see `PerceptualLoss`
_SMOOTHINGS = 32
_DETAIL = 3  # means over 3 x 3 pixels; detail is finer than about 3 pixels


class CanvasConfig(Protocol):
    """The part of a generator's configuration that its canvas needs; see `GenerateConfig`."""

    @property
    def mode(self) -> Mode:
        """Whether whole films are made or the region around a nodule."""

    @property
    def size(self) -> int:
        """Side of the films in pixels."""

    @property
    def lung(self) -> bool:
        """Whether the layout has a channel for the lung."""

    @property
    def margin(self) -> float:
        """Margin of the region around a nodule, as a share of its diameter."""

    @property
    def margin_px(self) -> int:
        """Least margin, and width of the soft edge, in pixels."""


@dataclass(frozen=True)
class NoduleBatch:
    """Films in [0, 1] and nodule masks of 0 and 1, float32 [B, 1, S, S].

    lung_B1SS: 0 and 1; required if the layout has a channel for the lung.  region_B1SS: 0 and 1, where inpainting may
    change the film; None for `compute_region` of the mask.  A region without a nodule teaches how healthy tissue
    continues.  malignant_B: 1, 0, or NaN where unknown; None if it is never known.
    """

    film_B1SS: Tensor
    mask_B1SS: Tensor
    lung_B1SS: Tensor | None = None
    region_B1SS: Tensor | None = None
    malignant_B: Tensor | None = None

    def to(self, device: torch.device) -> NoduleBatch:
        """Move to a device."""
        return NoduleBatch(*(None if part is None else part.to(device) for part in vars(self).values()))  # type: ignore[arg-type]


class NoduleMaker(Protocol):
    """A network that makes nodules: `GenerateNodules` (SPADE) or `FlowNodules`.  steps: a tensor on its device."""

    steps: Tensor

    @property
    def config(self) -> CanvasConfig:
        """Configuration of its canvas."""

    def make(self, batch: NoduleBatch, seeds: Sequence[int], like: NoduleBatch | None = None) -> Tensor:
        """Make SYNTHETIC films, float32 [B, 1, S, S] in [0, 1], one seed per film, by which alone they vary.

        like: a film with the nodule that they shall resemble.
        """


@dataclass(frozen=True)
class Canvas:
    """Inputs of the networks: layout, ground (None for whole films), and the weight of the new film at each pixel."""

    layout_BKSS: Tensor
    ground_B1SS: Tensor | None = None
    share_B1SS: Tensor | None = None


def build_canvas(batch: NoduleBatch, config: CanvasConfig) -> Canvas:
    """Build the networks' inputs beside the latent; raise `UsageError` if a part is missing or of another size."""
    for part in (batch.film_B1SS, batch.mask_B1SS, batch.lung_B1SS, batch.region_B1SS):
        if part is not None and part.shape != (len(batch.film_B1SS), 1, config.size, config.size):
            raise UsageError(f"the generator takes films and masks of {config.size} x {config.size} px, all alike")
    layout = [1 - batch.mask_B1SS, batch.mask_B1SS]
    if config.lung:
        if batch.lung_B1SS is None:
            raise UsageError("this generator was built for films with lung masks; give them")
        layout.append(batch.lung_B1SS)
    if config.mode == "film":
        return Canvas(torch.cat(layout, 1))
    region_B1SS = batch.region_B1SS
    if region_B1SS is None:
        region_B1SS = _map_masks(batch.mask_B1SS, lambda mask: compute_region(mask, config.margin, config.margin_px))
    share_B1SS = _map_masks(region_B1SS, lambda region: compute_blend(region, config.margin_px))
    ground_B1SS = lay_ground(region_B1SS, batch.film_B1SS)
    return Canvas(torch.cat([*layout, region_B1SS], 1), ground_B1SS, share_B1SS)


def _map_masks(mask_B1SS: Tensor, compute: Callable[[npt.NDArray[np.bool_]], npt.NDArray[Any]]) -> Tensor:
    masks = mask_B1SS[:, 0].cpu().numpy() > 0.5
    mapped = np.stack([compute(mask) for mask in masks]).astype(np.float32)
    return torch.from_numpy(mapped[:, None]).to(mask_B1SS.device)


def lay_ground(region_B1SS: Tensor, film_B1SS: Tensor) -> Tensor:
    """Smooth regions of films, except for their finest detail: the ground onto which nodules are painted.

    Outside the regions, films are unchanged.  Inside, the surrounding grey continues smoothly, and what the film
    differs from its mean over a few pixels (vessels, ribs, noise) is added.  This keeps detail and removes an existing
    nodule, except for a trace of its edge.
    """
    smooth, coarse = continue_into(region_B1SS, film_B1SS), film_B1SS
    for _ in range(_DETAIL):
        coarse = F.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    return torch.where(region_B1SS > 0.5, (smooth + film_B1SS - coarse).clamp(0, 1), film_B1SS)


def continue_into(region_B1SS: Tensor, film_B1SS: Tensor) -> Tensor:
    """Fill regions smoothly with the surrounding grey; outside, films are unchanged.

    From coarse to fine, a pixel without a known grey takes that of the next coarser image (push-pull, Gortler et al.
    1996).  Repeated averaging over neighbours then removes the edges of the coarse squares.
    """
    known = 1 - region_B1SS
    grey, share = film_B1SS * known, known
    pictures = [(grey, share)]
    while grey.shape[-1] > 1:
        grey, share = F.avg_pool2d(grey, 2), F.avg_pool2d(share, 2)
        pictures.append((grey, share))
    filled = torch.full_like(grey, 0.5)  # for a film without any known pixel
    for grey, share in reversed(pictures):
        coarse = F.interpolate(filled, grey.shape[-2:], mode="bilinear")
        filled = torch.where(share > 0, grey / share.clamp_min(1e-6), coarse)
    for _ in range(_SMOOTHINGS):
        around = F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False)
        filled = torch.where(region_B1SS > 0.5, around, filled)
    return torch.where(region_B1SS > 0.5, filled, film_B1SS)


def blend(made_B1SS: Tensor, film_B1SS: Tensor, canvas: Canvas) -> Tensor:
    """Blend the generated region into the film; outside the region every pixel keeps its bits."""
    if canvas.share_B1SS is None:
        return made_B1SS
    mixed_B1SS = torch.lerp(film_B1SS, made_B1SS.to(film_B1SS.dtype), canvas.share_B1SS)
    return torch.where(canvas.share_B1SS > 0, mixed_B1SS, film_B1SS)


def generate_film(
    task: NoduleMaker,
    film_HW: npt.NDArray[np.float32],
    mask_HW: npt.NDArray[np.bool_],
    seed: int,
    lung_HW: npt.NDArray[np.bool_] | None = None,
    like: NoduleBatch | None = None,
) -> npt.NDArray[np.float32]:
    """Make one SYNTHETIC film from a film in [0, 1] and a mask; the same seed makes the same film.

    mode "inpaint": film of the generator's size or larger; only the region around the nodule changes, and every other
    pixel keeps its bits.  mode "film": film (for the style) and mask of the generator's size.
    Raises `UsageError` as `check_mask` does, and for a nodule that does not fit.
    """
    config = task.config
    check_mask(mask_HW, film_HW.shape)
    if not (np.isfinite(film_HW).all() and film_HW.min() >= 0 and film_HW.max() <= 1):
        raise UsageError("a film has grey levels from 0 to 1; decode it first")
    region_HW = compute_region(mask_HW, config.margin, config.margin_px)
    if config.mode == "film":
        if film_HW.shape != (config.size, config.size):
            raise UsageError(f"this generator makes whole films of {config.size} x {config.size} px; give one such")
        window = (slice(None), slice(None))
    else:
        window = find_window(region_HW, config.size)
    device = task.steps.device
    film, mask, region = (_to_batch(part[window], device) for part in (film_HW, mask_HW, region_HW))
    lung = None if lung_HW is None else _to_batch(lung_HW[window], device)
    made = task.make(NoduleBatch(film, mask, lung, region), [seed], like)[0, 0].cpu().numpy()
    whole_HW = film_HW.astype(np.float32, copy=True)
    whole_HW[window] = made
    return whole_HW


def _to_batch(part_HW: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(part_HW, dtype=np.float32))[None, None].to(device)
