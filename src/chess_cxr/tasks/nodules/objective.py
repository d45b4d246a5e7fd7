"""Nodule generation: SPADE against a multi-scale PatchGAN, for whole films or only the region around a nodule.

Losses and their weights follow Park et al. 2019, with a perceptual network given by the caller.  Generated films are
SYNTHETIC.  Shapes: B films, S their side, K layout channels, Z latent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from chess_cxr.tasks.nodules.told import LESION, describe, find_lesion, measure_diameter, tell_like
from chess_cxr.training.late import advance_count, read_count, read_numbers

DISCRIMINATOR_RATE = 4.0  # times the generator's (TTUR, Heusel et al. 2017; 1e-4 and 4e-4 in the paper)
FREE_NATS = 0.1  # of each dimension of the latent, with `vary`
LATENT_WEIGHT = 2.0  # of finding latent and contrast again, with `vary`
GENERATOR_VERSION = 2  # meaning of the weights: version 1 painted into a hole, 2 paints onto a ground


@dataclass(frozen=True)
class GenerateConfig:
    """The configuration of the generator and its losses.

    mode: "film" makes the whole film from mask and style; "inpaint" only the region around the mask.
    size: side of the films in pixels.  width: channels of the networks, 64 in the paper.  lung: whether the layout has
    a channel for the lung.  margin: of the region around a nodule, as a share of its diameter.  margin_px: least
    margin, and width of the soft edge.  r1: weight of the gradient penalty, computed every `r1_every` steps; 0 for
    none.  ema: decay of the averaged generator; smaller in the first steps.
    vary: make nodules differ, in mode inpaint.  The style encoder sees the lesion alone; the generator is also told
    size, contrast and kind; losses compare the region instead of the window; some nats of the latent are free; and
    nodules of drawn latents are made too, in which the style encoder must find the latent again.
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
    vary: bool = False


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
            config.size, config.width, config.latent, config.vary, classes=layout, ground=config.mode == "inpaint"
        )
        self.discriminator = MultiScaleDiscriminator(layout, config.width)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._perceptual = (perceptual,)  # in a tuple, so that torch does not register it as a submodule
        self.measured: dict[str, Tensor] = {}

    @property
    def signals(self) -> dict[str, float]:
        """Numbers of the newest step.

        hinge, feature_matching, perceptual, kld, latent: the generator's losses, unweighted; r1 in steps that compute
        it.
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

    @torch.no_grad()
    def learn_nodules(self, batches: Sequence[NoduleBatch]) -> None:
        """Learn the contrasts and kinds of the training nodules, before the first step."""
        told_N4 = torch.cat(
            [describe(batch, find_lesion(batch, build_canvas(batch, self.config))) for batch in batches]
        )
        for network in (self.generator, self.averaged):
            if network.table is not None:
                network.table.learn_nodules(told_N4)

    def losses(self, batch: NoduleBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the generator's loss, then the discriminator's on the same films."""
        canvas = build_canvas(batch, self.config)
        shown_B1SS, told_B4 = self._show(batch, canvas)
        made_B1SS, mean_BZ, log_variance_BZ = self.generator(
            shown_B1SS, canvas.layout_BKSS, canvas.ground_B1SS, told_B4
        )
        made_B1SS = blend(made_B1SS, batch.film_B1SS, canvas)
        parts = {
            "kld": (self.config.kld, compute_kl_divergence(mean_BZ, log_variance_BZ, FREE_NATS * (told_B4 is not None)))
        }
        drawn = made_B1SS[:0]
        if told_B4 is not None:
            drawn, lost = self._draw(batch, canvas, torch.randn_like(mean_BZ))
            parts["latent"] = (LATENT_WEIGHT, lost)
        yield "generator", self._compute_generator_loss(made_B1SS, drawn, parts, batch, canvas)
        fake = torch.cat([made_B1SS, drawn]).detach()
        yield "discriminator", self._compute_discriminator_loss(fake, batch.film_B1SS, canvas)

    def _show(self, batch: NoduleBatch, canvas: Canvas) -> tuple[Tensor, Tensor | None]:
        """Return what the style encoder sees, and what the generator is told."""
        if not self.config.vary:
            return batch.film_B1SS, None
        lesion_B1SS = find_lesion(batch, canvas)
        return (1 + lesion_B1SS / LESION) / 2, describe(batch, lesion_B1SS)

    def _draw(self, batch: NoduleBatch, canvas: Canvas, latent_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """Make nodules of these latents and of drawn contrasts; return them, and how badly both are found again."""
        assert self.generator.table is not None
        told_B4 = self.generator.table.draw_nodules(measure_diameter(batch.mask_B1SS).log())
        joined_BZ = self.generator.join(latent_BZ, told_B4)
        drawn_B1SS = self.generator.generator(joined_BZ, canvas.layout_BKSS, canvas.ground_B1SS)
        drawn_B1SS = blend(drawn_B1SS, batch.film_B1SS, canvas)
        shown_B1SS, found_B4 = self._show(replace(batch, film_B1SS=drawn_B1SS), canvas)
        assert found_B4 is not None
        found_BZ, _ = self.generator.style(shown_B1SS)
        wrong_B4 = self.generator.table.standardise(found_B4) - self.generator.table.standardise(told_B4)
        return drawn_B1SS, (found_BZ - latent_BZ).abs().mean() + wrong_B4[:, 1].abs().mean()

    def _compute_generator_loss(
        self,
        made_B1SS: Tensor,
        drawn_B1SS: Tensor,
        parts: dict[str, tuple[float, Tensor]],
        batch: NoduleBatch,
        canvas: Canvas,
    ) -> Tensor:
        config, (perceptual,), count = self.config, self._perceptual, len(made_B1SS)
        fake_B1SS = torch.cat([made_B1SS, drawn_B1SS])
        layout_BKSS = canvas.layout_BKSS.repeat(len(fake_B1SS) // count, 1, 1, 1)
        with _frozen(self.discriminator):
            fake = self.discriminator(fake_B1SS, layout_BKSS)
            with torch.no_grad():
                real = self.discriminator(batch.film_B1SS, canvas.layout_BKSS)
        made = [[layer[:count] for layer in layers] for layers in fake]
        where = (canvas.share_B1SS,) if config.vary else ()
        parts = {
            "hinge": (1.0, compute_generator_hinge(fake)),
            "feature_matching": (config.feature_matching, compute_feature_matching(made, real, *where)),
        } | parts
        if perceptual is not None and config.perceptual:
            parts["perceptual"] = (config.perceptual, perceptual(made_B1SS, batch.film_B1SS, *where))
        self.measured = {name: value.detach() for name, (_, value) in parts.items()}
        return torch.stack([weight * value for weight, value in parts.values()]).sum()

    def _compute_discriminator_loss(self, made_B1SS: Tensor, real_B1SS: Tensor, canvas: Canvas) -> Tensor:
        config, count = self.config, len(made_B1SS)
        penalised = config.r1 > 0 and read_count(self, "steps") % config.r1_every == 0
        real_B1SS = real_B1SS.detach().requires_grad_(penalised)
        times = 1 + count // len(real_B1SS)
        both = self.discriminator(torch.cat([made_B1SS, real_B1SS]), canvas.layout_BKSS.repeat(times, 1, 1, 1))
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
    def make(self, batch: NoduleBatch, seeds: Sequence[int], like: NoduleBatch | None = None) -> Tensor:
        """Make SYNTHETIC films with the averaged generator, float32 [B, 1, S, S] in [0, 1], one seed per film.

        A film depends only on its own row of the batch and its own seed.  mode "film": the batch's films give the
        style.  mode "inpaint": nodules of random style, or of the style of the single nodule in `like`, are painted
        into them.
        """
        canvas, network = build_canvas(batch, self.config), self.averaged
        if len(seeds) != len(batch.film_B1SS):
            raise UsageError(f"{len(batch.film_B1SS)} films need as many seeds, not {len(seeds)}")
        style = batch if self.config.mode == "film" else like
        made = []
        for row, seed in enumerate(seeds):  # one by one, as the last bits of sums depend on the size of a batch
            one, generator = slice(row, row + 1), torch.Generator().manual_seed(seed)
            latent = torch.randn(1, network.latent, generator=generator).to(batch.film_B1SS.device)
            if style is not None:
                given = (
                    style.film_B1SS[one] if style is batch else self._show(style, build_canvas(style, self.config))[0]
                )
                mean_1Z, log_variance_1Z = network.style(given)
                latent = mean_1Z + torch.exp(log_variance_1Z / 2) * latent
            if network.table is not None:
                told = network.table.draw_nodules(measure_diameter(batch.mask_B1SS[one]).log(), generator)
                told = told if like is None else tell_like(told, like, self.config)
                latent = network.join(latent, told)
            ground = None if canvas.ground_B1SS is None else canvas.ground_B1SS[one]
            made.append(network.generator(latent, canvas.layout_BKSS[one], ground))
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
    if config.vary and config.mode != "inpaint":
        raise UsageError("only nodules of mode inpaint can be made to vary")
    weights = (config.margin, config.feature_matching, config.perceptual, config.kld, config.r1)
    if not (all(0 <= weight < float("inf") for weight in weights) and 0 <= config.ema < 1):
        raise UsageError("margin and weights must be 0 or more, and ema 0 or more and below 1")
