"""Flow matching for nodules: noise is carried to a lesion along straight paths (Lipman et al. 2023, Liu et al. 2023).

The lesion is what the film has beyond its smooth ground, inside the region around a nodule.  The network sees the
ground, the mask and the region, and is told the nodule's size, its contrast and whether it is malignant.

Shapes: B films, S their side, C channels, E conditions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.canvas import Mode, NoduleBatch, Perceptual, blend, build_canvas
from chess_cxr.tasks.nodules.told import (
    LESION,
    TOLD,
    NoduleTable,
    describe,
    find_lesion,
    measure_diameter,
    tell_like,
)
from chess_cxr.training.late import advance_count, read_count, read_numbers

SAMPLING_STEPS = 10  # of the midpoint rule: two evaluations of the network each
MOST_FLOW_WIDTH = 256
_LEVELS = (2, 4, 6, 8)  # channels of each resolution, times the width
_WAVES = 16


@dataclass(frozen=True)
class FlowConfig:
    """The configuration of the flow and its loss.

    size: side of the films in pixels.  width: half the channels at full
    resolution.  margin, margin_px: of the region around a
    nodule, see `GenerateConfig`.  perceptual: weight of the perceptual loss.  ema: decay of the averaged network.
    """

    size: int = 64
    width: int = 16
    margin: float = 0.5
    margin_px: int = 4
    perceptual: float = 0.0
    ema: float = 0.999

    @property
    def mode(self) -> Mode:
        """The mode inpaint: a flow changes the region around a nodule alone."""
        return "inpaint"

    @property
    def lung(self) -> bool:
        """False: the layout has no channel for the lung."""
        return False


class FlowBlock(nn.Module):
    """Residual block whose normalisation is scaled and shifted by the conditions (FiLM, Perez et al. 2018)."""

    def __init__(self, channels: int, out: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.modulate = nn.Linear(hidden, 2 * out)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, feature_BCHW: Tensor, told_BE: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, out, H, W]."""
        scale, shift = self.modulate(told_BE)[:, :, None, None].chunk(2, 1)
        inner = self.first(F.silu(_normalise(feature_BCHW)))
        inner = self.second(F.silu(torch.addcmul(shift, _normalise(inner), 1 + scale)))
        added: Tensor = self.skip(feature_BCHW) + inner
        return added


def _normalise(feature_BCHW: Tensor) -> Tensor:
    channels = feature_BCHW.shape[1]
    return F.group_norm(feature_BCHW, math.gcd(8, channels))


class FlowNetwork(NoduleTable):
    """A U-Net that estimates the velocity of a lesion on its way: [B, 4, S, S] and conditions -> [B, 1, S, S].

    It draws the nodules that it is told of as training nodules are, see `NoduleTable`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * level for level in _LEVELS]
        hidden = 8 * width
        self.tell = nn.Sequential(nn.Linear(2 * _WAVES + TOLD, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.start = nn.Conv2d(4, widths[0], 3, padding=1)
        befores = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(FlowBlock(a, b, hidden) for a, b in zip(befores, widths, strict=True))
        self.middle = FlowBlock(widths[-1], widths[-1], hidden)
        self.up = nn.ModuleList(
            FlowBlock(a + b, b, hidden) for a, b in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.end = nn.Conv2d(widths[0], 1, 3, padding=1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)  # type: ignore[arg-type]

    def forward(self, input_B4SS: Tensor, time_B: Tensor, told_BE: Tensor) -> Tensor:
        """Estimate the velocity.  input_B4SS: lesion on its way, ground, mask, region.  told_BE: see `describe`."""
        angle_BW = time_B[:, None] * math.pi * 2 ** torch.linspace(0, 6, _WAVES, device=time_B.device)
        told = self.tell(torch.cat([angle_BW.sin(), angle_BW.cos(), told_BE], 1))
        feature, kept = self.start(input_B4SS), []
        for index, block in enumerate(self.down):
            feature = block(F.avg_pool2d(feature, 2) if index else feature, told)
            kept.append(feature)
        feature = self.middle(feature, told)
        for index, block in enumerate(self.up):
            feature = F.interpolate(feature, scale_factor=2, mode="nearest") if index else feature
            feature = block(torch.cat([feature, kept.pop()], 1), told)
        velocity: Tensor = self.end(F.silu(_normalise(feature)))
        return velocity


class FlowNodules(nn.Module):
    """The flow's network and its moving average; loss "generator".

    perceptual: as for `GenerateNodules`; it compares the film that the flow is heading for with the real one.
    Raises `UsageError` for an invalid configuration.
    """

    steps: Tensor

    def __init__(self, config: FlowConfig, perceptual: Perceptual | None = None) -> None:
        super().__init__()
        check_flow_config(config)
        self.config = config
        self.network = FlowNetwork(config.width)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._perceptual = (perceptual,)  # in a tuple, so that torch does not register it as a submodule
        self.measured: dict[str, Tensor] = {}

    @property
    def signals(self) -> dict[str, float]:
        """Numbers of the newest step: flow, the mean squared error of the velocity, and perceptual, unweighted."""
        return read_numbers(self.measured)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the averaged network stays in evaluation mode."""
        super().train(mode)
        self.averaged.eval()
        return self

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that the loss trains."""
        return {"generator": list(self.network.parameters())}

    def build_parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Return torch's parameter groups."""
        return {name: [{"params": parameters}] for name, parameters in self.get_parameters().items()}

    def losses(self, batch: NoduleBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the error of the velocity, a mean over each region and then over films, with the perceptual loss."""
        canvas = build_canvas(batch, self.config)
        assert canvas.ground_B1SS is not None and canvas.share_B1SS is not None
        region_B1SS = (canvas.share_B1SS > 0).to(batch.film_B1SS.dtype)
        lesion_B1SS = find_lesion(batch, canvas) / LESION
        noise_B1SS = torch.randn_like(lesion_B1SS) * region_B1SS
        time_B = torch.sigmoid(torch.randn(len(lesion_B1SS), device=lesion_B1SS.device))  # Esser et al. 2024
        time_B111 = time_B[:, None, None, None]
        way_B1SS = torch.lerp(noise_B1SS, lesion_B1SS, time_B111)
        input_B4SS = torch.cat([way_B1SS, canvas.ground_B1SS, batch.mask_B1SS, region_B1SS], 1)
        velocity_B1SS = self.network(input_B4SS, time_B, describe(batch, lesion_B1SS * LESION))
        error_B1SS = (velocity_B1SS - (lesion_B1SS - noise_B1SS)).float().square() * region_B1SS
        loss = (error_B1SS.flatten(1).sum(1) / region_B1SS.flatten(1).sum(1).clamp_min(1)).mean()
        self.measured = {"flow": loss.detach()}
        (perceptual,) = self._perceptual
        if perceptual is not None and self.config.perceptual:
            end_B1SS = (way_B1SS + (1 - time_B111) * velocity_B1SS) * region_B1SS
            made_B1SS = blend((canvas.ground_B1SS + LESION * end_B1SS).clamp(0, 1), batch.film_B1SS, canvas)
            distance = perceptual(made_B1SS, batch.film_B1SS)
            self.measured["perceptual"] = distance.detach()
            loss = loss + self.config.perceptual * distance
        yield "generator", loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the step and update the averaged network."""
        advance_count(self, "steps")
        steps = torch.tensor(read_count(self, "steps"))
        keep = torch.clamp(steps / (steps + 10), max=self.config.ema)
        moving: list[Tensor] = list(self.averaged.parameters())
        target: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(moving, target, 1 - float(keep))

    @torch.no_grad()
    def learn_nodules(self, batches: Sequence[NoduleBatch]) -> None:
        """Learn the contrasts and kinds of the training nodules, before the first step."""
        told_N4 = torch.cat(
            [describe(batch, find_lesion(batch, build_canvas(batch, self.config))) for batch in batches]
        )
        for network in (self.network, self.averaged):
            network.learn_nodules(told_N4)

    @torch.no_grad()
    def make(self, batch: NoduleBatch, seeds: Sequence[int], like: NoduleBatch | None = None) -> Tensor:
        """Make SYNTHETIC films with the averaged network, float32 [B, 1, S, S] in [0, 1], one seed per film.

        A film depends only on its own row of the batch and its own seed.  Contrast and kind are drawn as training
        nodules of the same size have them, or are those of the single nodule in `like`.
        """
        canvas = build_canvas(batch, self.config)
        assert canvas.ground_B1SS is not None and canvas.share_B1SS is not None
        if len(seeds) != len(batch.film_B1SS):
            raise UsageError(f"{len(batch.film_B1SS)} films need as many seeds, not {len(seeds)}")
        made = []
        for row, seed in enumerate(seeds):  # one by one, as the last bits of sums depend on the size of a batch
            one, generator = slice(row, row + 1), torch.Generator().manual_seed(seed)
            ground, mask = canvas.ground_B1SS[one], batch.mask_B1SS[one]
            region = (canvas.share_B1SS[one] > 0).to(ground.dtype)
            told = self.averaged.draw_nodules(measure_diameter(mask).log(), generator)
            if like is not None:
                told = tell_like(told, like, self.config)
            noise = torch.randn(ground.shape, generator=generator).to(ground.device) * region
            lesion = self._carry(noise, ground, mask, region, told.to(ground.device))
            made.append((ground + LESION * lesion).clamp(0, 1))
        return blend(torch.cat(made), batch.film_B1SS, canvas)

    def _carry(self, way: Tensor, ground: Tensor, mask: Tensor, region: Tensor, told: Tensor) -> Tensor:
        """Carry noise to a lesion by the midpoint rule."""

        def find_velocity(at: Tensor, time: float) -> Tensor:
            velocity: Tensor = self.averaged(
                torch.cat([at, ground, mask, region], 1), torch.full((1,), time, device=at.device), told
            )
            return velocity * region

        pace = 1 / SAMPLING_STEPS
        for step in range(SAMPLING_STEPS):
            half = way + pace / 2 * find_velocity(way, step * pace)
            way = way + pace * find_velocity(half, (step + 0.5) * pace)
        return way


def check_flow_config(config: FlowConfig) -> None:
    """Raise `UsageError` for invalid numbers."""
    if config.size not in (64, 128):
        raise UsageError(f"a flow makes squares of 64 or 128 px, not {config.size}")
    if not (1 <= config.width <= MOST_FLOW_WIDTH and config.margin_px >= 1):
        raise UsageError(f"a flow needs a width of 1 to {MOST_FLOW_WIDTH} and margin_px of 1 or more")
    if not (0 <= config.margin < math.inf and 0 <= config.perceptual < math.inf and 0 <= config.ema < 1):
        raise UsageError("margin and weights must be 0 or more, and ema 0 or more and below 1")
