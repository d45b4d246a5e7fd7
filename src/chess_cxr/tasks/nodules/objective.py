"""Nodule generation: SPADE against a multi-scale PatchGAN, for whole films or only the region around a nodule.

Losses and their weights follow Park et al. 2019, with a perceptual network given by the caller.  Generated films are
SYNTHETIC.  Shapes: B films, S their side, K layout channels, Z latent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.canvas import Canvas, Mode, NoduleBatch, Perceptual, blend, build_canvas
from chess_cxr.tasks.nodules.discriminator import MultiScaleDiscriminator
from chess_cxr.tasks.nodules.losses import (
    compute_discriminator_hinge,
    compute_feature_matching,
    compute_generator_hinge,
    compute_gradient_penalty,
    compute_kl_divergence,
)
from chess_cxr.tasks.nodules.spade import SIZES, StyledGenerator
from chess_cxr.training.late import advance_count, read_count, read_numbers

DISCRIMINATOR_RATE = 4.0  # times the generator's (TTUR, Heusel et al. 2017; 1e-4 and 4e-4 in the paper)
GENERATOR_VERSION = 2  # meaning of the weights: version 1 painted into a hole, 2 paints onto a ground


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
        self, made_B1SS: Tensor, mean_BZ: Tensor, log_variance_BZ: Tensor, batch: NoduleBatch, canvas: Canvas
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

    def _compute_discriminator_loss(self, made_B1SS: Tensor, real_B1SS: Tensor, canvas: Canvas) -> Tensor:
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

    @torch.no_grad()
    def make(self, batch: NoduleBatch, seeds: Sequence[int]) -> Tensor:
        """Make SYNTHETIC films with the averaged generator, float32 [B, 1, S, S] in [0, 1], one seed per film.

        A film depends only on its own row of the batch and its own seed.  mode "film": the batch's films give the
        style.  mode "inpaint": nodules of random style are painted into them.
        """
        canvas, network = build_canvas(batch, self.config), self.averaged
        if len(seeds) != len(batch.film_B1SS):
            raise UsageError(f"{len(batch.film_B1SS)} films need as many seeds, not {len(seeds)}")
        made = []
        for row, seed in enumerate(seeds):  # one by one, as the last bits of sums depend on the size of a batch
            one = slice(row, row + 1)
            noise = torch.randn(1, network.latent, generator=torch.Generator().manual_seed(seed))
            noise = noise.to(batch.film_B1SS.device)
            if self.config.mode == "film":
                mean_1Z, log_variance_1Z = network.style(batch.film_B1SS[one])
                noise = mean_1Z + torch.exp(log_variance_1Z / 2) * noise
            ground = None if canvas.ground_B1SS is None else canvas.ground_B1SS[one]
            made.append(network.generator(noise, canvas.layout_BKSS[one], ground))
        return blend(torch.cat(made), batch.film_B1SS, canvas)


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
