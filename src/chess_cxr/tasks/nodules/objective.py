"""Nodule generation: SPADE against a multi-scale PatchGAN, for whole films or only the region around a nodule.

Losses and their weights follow Park et al. 2019, with a perceptual network given by the caller.  Generated films are
SYNTHETIC.  Shapes: B films, S their side, K layout channels, Z latent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.discriminator import MultiScaleDiscriminator
from chess_cxr.tasks.nodules.losses import (
    compute_discriminator_hinge,
    compute_feature_matching,
    compute_generator_hinge,
    compute_gradient_penalty,
    compute_kl_divergence,
)
from chess_cxr.tasks.nodules.masks import check_mask
from chess_cxr.tasks.nodules.region import compute_blend, compute_region, find_window
from chess_cxr.tasks.nodules.spade import SIZES, StyledGenerator
from chess_cxr.training.late import advance_count, read_count, read_numbers

Mode = Literal["film", "inpaint"]
Perceptual = Callable[[Tensor, Tensor], Tensor]
DISCRIMINATOR_RATE = 4.0  # times the generator's (TTUR, Heusel et al. 2017; 1e-4 and 4e-4 in the paper)
GENERATOR_VERSION = 2  # meaning of the weights: version 1 painted into a hole, 2 paints onto a ground
_SMOOTHINGS = 32
_DETAIL = 3  # means over 3 x 3 pixels; detail is finer than about 3 pixels


@dataclass(frozen=True)
class GenerateConfig:
    """The configuration of the generator and its losses.

    mode: "film" makes the whole film from mask and style; "inpaint" only the region around the mask.
    size: side of the films in pixels.  width: channels of the networks, 64 in the paper.  lung: whether the layout has
    a channel for the lung.  margin: of the region around a nodule, as a share of its diameter.  margin_px: least
    margin, and width of the soft edge.  r1: weight of the gradient penalty, computed every `r1_every` steps; 0 for
    none.  ema: decay of the averaged generator; smaller in the first steps.
    """

    mode: Mode = "inpaint"
    size: int = 64
    width: int = 16
    latent: int = 256
    lung: bool = False
    margin: float = 0.5
    margin_px: int = 4
    feature_matching: float = 10.0
    perceptual: float = 10.0
    kld: float = 0.05
    r1: float = 0.0
    r1_every: int = 16
    ema: float = 0.999


@dataclass(frozen=True)
class NoduleBatch:
    """Films in [0, 1] and nodule masks of 0 and 1, float32 [B, 1, S, S].

    lung_B1SS: 0 and 1; required if the layout has a channel for the lung.  region_B1SS: 0 and 1, where inpainting may
    change the film; None for `compute_region` of the mask.  A region without a nodule teaches how healthy tissue
    continues.
    """

    film_B1SS: Tensor
    mask_B1SS: Tensor
    lung_B1SS: Tensor | None = None
    region_B1SS: Tensor | None = None

    def to(self, device: torch.device) -> NoduleBatch:
        """Move to a device."""
        return NoduleBatch(*(None if part is None else part.to(device) for part in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Canvas:
    """Inputs of the networks: layout, ground (None for whole films), and the weight of the new film at each pixel."""

    layout_BKSS: Tensor
    ground_B1SS: Tensor | None = None
    share_B1SS: Tensor | None = None


class GenerateNodules(nn.Module):
    """Generator with style encoder, its moving average, and discriminator; losses "generator" and "discriminator".

    perceptual: (made, real), both [B, 1, S, S] in [0, 1] -> scalar; None for no such loss.  The caller owns its network
    and keeps it frozen, in evaluation mode and on the right device; it is not part of this module or of checkpoints.
    Raises `UsageError` for an invalid configuration.
    """

    steps: Tensor

    def __init__(self, config: GenerateConfig, perceptual: Perceptual | None = None) -> None:
        super().__init__()
        check_generate_config(config)
        self.config = config
        layout = 2 + (config.mode == "inpaint") + config.lung
        self.generator = StyledGenerator(
            config.size, config.width, config.latent, classes=layout, ground=config.mode == "inpaint"
        )
        self.discriminator = MultiScaleDiscriminator(layout, config.width)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._perceptual = (perceptual,)  # in a tuple, so that torch does not register it as a submodule
        self.measured: dict[str, Tensor] = {}

    @property
    def signals(self) -> dict[str, float]:
        """Numbers of the newest step.

        hinge, feature_matching, perceptual, kld: the generator's losses, unweighted; r1 in steps that compute it.
        real_score, fake_score: mean score of patches; real_accuracy, fake_accuracy: share of patches on the right side
        of 0.
        """
        return read_numbers(self.measured)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the averaged generator stays in evaluation mode."""
        super().train(mode)
        self.averaged.eval()
        return self

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {
            "generator": list(self.generator.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }

    def build_parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Return torch's parameter groups; the discriminator's learning rate is four times the generator's."""
        rates = {"generator": 1.0, "discriminator": DISCRIMINATOR_RATE}
        return {
            name: [{"params": parameters, "rate_scale": rates[name]}]
            for name, parameters in self.get_parameters().items()
        }

    def losses(self, batch: NoduleBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the generator's loss, then the discriminator's on the same films."""
        canvas = build_canvas(batch, self.config)
        made_B1SS, mean_BZ, log_variance_BZ = self.generator(batch.film_B1SS, canvas.layout_BKSS, canvas.ground_B1SS)
        made_B1SS = blend(made_B1SS, batch.film_B1SS, canvas)
        yield "generator", self._compute_generator_loss(made_B1SS, mean_BZ, log_variance_BZ, batch, canvas)
        yield "discriminator", self._compute_discriminator_loss(made_B1SS.detach(), batch.film_B1SS, canvas)

    def _compute_generator_loss(
        self, made_B1SS: Tensor, mean_BZ: Tensor, log_variance_BZ: Tensor, batch: NoduleBatch, canvas: _Canvas
    ) -> Tensor:
        config, (perceptual,) = self.config, self._perceptual
        with _frozen(self.discriminator):
            made = self.discriminator(made_B1SS, canvas.layout_BKSS)
            with torch.no_grad():
                real = self.discriminator(batch.film_B1SS, canvas.layout_BKSS)
        parts = {
            "hinge": (1.0, compute_generator_hinge(made)),
            "feature_matching": (config.feature_matching, compute_feature_matching(made, real)),
            "kld": (config.kld, compute_kl_divergence(mean_BZ, log_variance_BZ)),
        }
        if perceptual is not None and config.perceptual:
            parts["perceptual"] = (config.perceptual, perceptual(made_B1SS, batch.film_B1SS))
        self.measured = {name: value.detach() for name, (_, value) in parts.items()}
        return torch.stack([weight * value for weight, value in parts.values()]).sum()

    def _compute_discriminator_loss(self, made_B1SS: Tensor, real_B1SS: Tensor, canvas: _Canvas) -> Tensor:
        config, count = self.config, len(real_B1SS)
        penalised = config.r1 > 0 and read_count(self, "steps") % config.r1_every == 0
        real_B1SS = real_B1SS.detach().requires_grad_(penalised)
        both = self.discriminator(torch.cat([made_B1SS, real_B1SS]), canvas.layout_BKSS.repeat(2, 1, 1, 1))
        made = [[layer[:count] for layer in layers] for layers in both]
        real = [[layer[count:] for layer in layers] for layers in both]
        loss = compute_discriminator_hinge(made, real)
        self.measured |= _measure_scores(made, real)
        if penalised:
            penalty = compute_gradient_penalty(real_B1SS, real)
            self.measured["r1"] = penalty.detach()
            loss = loss + config.r1 * config.r1_every * penalty
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the step and update the averaged generator."""
        advance_count(self, "steps")
        # With a long average a short run would keep its first weights, so the average starts short
        steps = torch.tensor(read_count(self, "steps"))
        keep = torch.clamp(steps / (steps + 10), max=self.config.ema)
        moving: list[Tensor] = list(self.averaged.parameters())
        target: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(moving, target, 1 - float(keep))
        torch._foreach_copy_(list(self.averaged.buffers()), list(self.generator.buffers()))  # singular vectors


def build_canvas(batch: NoduleBatch, config: GenerateConfig) -> _Canvas:
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
        return _Canvas(torch.cat(layout, 1))
    region_B1SS = batch.region_B1SS
    if region_B1SS is None:
        region_B1SS = _map_masks(batch.mask_B1SS, lambda mask: compute_region(mask, config.margin, config.margin_px))
    share_B1SS = _map_masks(region_B1SS, lambda region: compute_blend(region, config.margin_px))
    ground_B1SS = lay_ground(region_B1SS, batch.film_B1SS)
    return _Canvas(torch.cat([*layout, region_B1SS], 1), ground_B1SS, share_B1SS)


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


def blend(made_B1SS: Tensor, film_B1SS: Tensor, canvas: _Canvas) -> Tensor:
    """Blend the generated region into the film; outside the region every pixel keeps its bits."""
    if canvas.share_B1SS is None:
        return made_B1SS
    mixed_B1SS = torch.lerp(film_B1SS, made_B1SS.to(film_B1SS.dtype), canvas.share_B1SS)
    return torch.where(canvas.share_B1SS > 0, mixed_B1SS, film_B1SS)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Freeze a network's weights while a graph is built, which then holds no gradients of them."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


@torch.no_grad()
def _measure_scores(made: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    made_score, real_score = (torch.cat([layers[-1].flatten() for layers in side]) for side in (made, real))
    return {
        "real_score": real_score.mean(),
        "fake_score": made_score.mean(),
        "real_accuracy": (real_score > 0).float().mean(),
        "fake_accuracy": (made_score < 0).float().mean(),
    }


@torch.no_grad()
def generate(task: GenerateNodules, batch: NoduleBatch, seeds: Sequence[int]) -> Tensor:
    """Make SYNTHETIC films with the averaged generator, float32 [B, 1, S, S] in [0, 1], one seed per film.

    A film depends only on its own row of the batch and its own seed.  mode "film": the batch's films give the style.
    mode "inpaint": nodules of random style are painted into them.
    """
    canvas, network = build_canvas(batch, task.config), task.averaged
    if len(seeds) != len(batch.film_B1SS):
        raise UsageError(f"{len(batch.film_B1SS)} films need as many seeds, not {len(seeds)}")
    made = []
    for row, seed in enumerate(seeds):  # one by one, as the last bits of sums depend on the size of a batch
        one = slice(row, row + 1)
        noise = torch.randn(1, network.latent, generator=torch.Generator().manual_seed(seed)).to(batch.film_B1SS.device)
        if task.config.mode == "film":
            mean_1Z, log_variance_1Z = network.style(batch.film_B1SS[one])
            noise = mean_1Z + torch.exp(log_variance_1Z / 2) * noise
        ground = None if canvas.ground_B1SS is None else canvas.ground_B1SS[one]
        made.append(network.generator(noise, canvas.layout_BKSS[one], ground))
    return blend(torch.cat(made), batch.film_B1SS, canvas)


def generate_film(
    task: GenerateNodules,
    film_HW: npt.NDArray[np.float32],
    mask_HW: npt.NDArray[np.bool_],
    seed: int,
    lung_HW: npt.NDArray[np.bool_] | None = None,
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
    made = generate(task, NoduleBatch(film, mask, lung, region), [seed])[0, 0].cpu().numpy()
    whole_HW = film_HW.astype(np.float32, copy=True)
    whole_HW[window] = made
    return whole_HW


def _to_batch(part_HW: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(part_HW, dtype=np.float32))[None, None].to(device)


def check_generate_config(config: GenerateConfig) -> None:
    """Raise `UsageError` for invalid numbers."""
    if config.mode not in ("film", "inpaint"):
        raise UsageError(f"nodules are generated in mode film or inpaint, not {config.mode!r}")
    if config.size not in SIZES:
        raise UsageError(f"the generator makes films of {', '.join(map(str, SIZES))} px, not {config.size}")
    if min(config.width, config.latent, config.margin_px, config.r1_every) < 1:
        raise UsageError("width, latent, margin_px and r1_every must be at least 1")
    weights = (config.margin, config.feature_matching, config.perceptual, config.kld, config.r1)
    if not (all(0 <= weight < float("inf") for weight in weights) and 0 <= config.ema < 1):
        raise UsageError("margin and weights must be 0 or more, and ema 0 or more and below 1")
