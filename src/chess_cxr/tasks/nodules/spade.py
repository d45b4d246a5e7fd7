"""SPADE: a generator whose normalisation is modulated, pixel by pixel, by a layout; and its style encoder.

Written from Park, Liu, Wang, Zhu, "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019.
Shapes: B films, S their side, C channels, K layout channels (0/1), Z latent.

For inpainting it predicts the difference from a smooth ground, in logits.  An untrained network thus returns about the
ground, and the grey around a nodule fits from the first step.

One difference from the paper is deliberate: the parameter-free normalisation takes its statistics over groups of
channels of one film.  Batch statistics are noisy for the few films that fit at 512 px, need running averages, and
couple the films of a batch.  Statistics of single channels (instance norm) remove their mean, which carries a film's
brightness from the latent to the pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.told import TOLD, NoduleTable

SIZES = (64, 128, 256, 512)
TINY_WIDTH = 4  # for tests and demonstrations on a CPU
PAPER_WIDTH = 64
_START = 4  # side of the first map
_SPREAD = 8  # numbers of the latent that condition every place
_GROUP = 16  # channels that share their statistics
_FIRST_STROKE = 0.1  # gain of the last layer of a new network, relative to Glorot's initialisation
_DARKEST = 0.01  # grey of a ground: a black or white pixel has no finite logit


def build_convolution(
    channels: int,
    out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    bias: bool = True,
    normed: bool = True,
    gain: float = 1,
) -> nn.Module:
    """Build a convolution with Glorot's initialisation and, if `normed`, a spectral norm of 1 (Miyato et al. 2018)."""
    layer = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, bias=bias)
    nn.init.xavier_normal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    # After the initialisation, as it begins with the singular vectors of the weights
    return spectral_norm(layer) if normed else layer


def normalise_groups(feature_BCHW: Tensor) -> Tensor:
    """Normalise groups of channels of each film to mean 0 and standard deviation 1."""
    return F.group_norm(feature_BCHW, max(1, feature_BCHW.shape[1] // _GROUP))


def resize_condition(layout_BKSS: Tensor, ground_BCSS: Tensor | None, side: int) -> Tensor:
    """Resize layout (nearest, so it stays 0 or 1) and ground (area mean) to a side, and join them."""
    layout = F.interpolate(layout_BKSS, (side, side), mode="nearest-exact")
    if ground_BCSS is None:
        return layout
    return torch.cat([layout, F.interpolate(ground_BCSS, (side, side), mode="area")], 1)


class Spade(nn.Module):
    """Spatially-adaptive normalisation (Park et al. 2019, eq. 1): normalised, times 1 + gamma, plus beta.

    Two convolutions compute gamma and beta from the condition.  They have no spectral norm, which would limit the
    contrast of a nodule.
    """

    def __init__(self, channels: int, conditions: int, hidden: int) -> None:
        super().__init__()
        self.read = build_convolution(conditions, hidden, normed=False)
        self.modulate = build_convolution(hidden, 2 * channels, normed=False)  # gamma, then beta

    def forward(self, feature_BCHW: Tensor, condition_BKHW: Tensor) -> Tensor:
        """Modulate [B, C, H, W] by a condition of the same height and width."""
        gamma_BCHW, beta_BCHW = self.modulate(F.relu(self.read(condition_BKHW))).chunk(2, 1)
        return torch.addcmul(beta_BCHW, normalise_groups(feature_BCHW), 1 + gamma_BCHW)


class SpadeBlock(nn.Module):
    """Residual block with SPADE before each convolution, also in the skip if the number of channels changes."""

    def __init__(self, channels: int, out: int, conditions: int, hidden: int) -> None:
        super().__init__()
        between = min(channels, out)
        self.first_norm = Spade(channels, conditions, hidden)
        self.first = build_convolution(channels, between)
        self.second_norm = Spade(between, conditions, hidden)
        self.second = build_convolution(between, out)
        self.skip_norm = Spade(channels, conditions, hidden) if channels != out else None
        self.skip = build_convolution(channels, out, 1, bias=False) if channels != out else None

    def forward(self, feature_BCHW: Tensor, condition_BKHW: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, out, H, W]."""
        skipped = feature_BCHW
        if self.skip_norm is not None and self.skip is not None:
            skipped = self.skip(self.skip_norm(feature_BCHW, condition_BKHW))
        inner = self.first(F.relu(self.first_norm(feature_BCHW, condition_BKHW)))
        inner = self.second(F.relu(self.second_norm(inner, condition_BKHW)))
        added: Tensor = skipped + inner
        return added


class SpadeGenerator(nn.Module):
    """Map latent and layout to a film: the latent becomes a 4 x 4 map, followed by blocks with nearest upsampling.

    size: side of the films, one of `SIZES`.  width: channels of the last block; the first has 16 times as many.
    classes: K, layout channels.  ground: whether it paints into films, which then condition it too.  channels: of the
    film.  spread: numbers of the latent, mixed, that condition every place of every block; otherwise the latent enters
    by the 4 x 4 map alone, whose scale the normalisation removes.
    """

    def __init__(
        self, size: int = 256, width: int = PAPER_WIDTH, latent: int = 256, classes: int = 2,
        ground: bool = False, channels: int = 1, spread: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = list_block_widths(size, width)
        self.start = nn.Linear(latent, widths[0] * _START**2)
        nn.init.xavier_normal_(self.start.weight)
        nn.init.zeros_(self.start.bias)
        self.spread = nn.Linear(latent, spread) if spread else None
        pairs = zip(widths[:1] + widths[:-1], widths, strict=True)
        conditions = classes + ground * channels + spread
        self.blocks = nn.ModuleList(SpadeBlock(before, after, conditions, 2 * width) for before, after in pairs)
        self.end = build_convolution(widths[-1], channels, normed=False, gain=_FIRST_STROKE if ground else 1)

    def forward(self, latent_BZ: Tensor, layout_BKSS: Tensor, ground_BCSS: Tensor | None = None) -> Tensor:
        """Return films in [0, 1], [B, channels, S, S].  ground_BCSS: the films to paint into, also in [0, 1]."""
        feature = self.start(latent_BZ).unflatten(1, (-1, _START, _START))
        if self.spread is not None:
            told_BE11 = self.spread(latent_BZ)[:, :, None, None]
            layout_BKSS = torch.cat([layout_BKSS, told_BE11.expand(-1, -1, *layout_BKSS.shape[-2:])], 1)
        for index, block in enumerate(self.blocks):
            feature = F.interpolate(feature, scale_factor=2, mode="nearest") if index else feature
            feature = block(feature, resize_condition(layout_BKSS, ground_BCSS, feature.shape[-1]))
        film: Tensor = self.end(F.relu(feature))
        return torch.sigmoid(film if ground_BCSS is None else film + torch.logit(ground_BCSS, _DARKEST))


def list_block_widths(size: int, width: int) -> list[int]:
    """Return the channels of each block: at 256 px 16, 16, 16, 8, 4, 2, 1 times `width`, as in the paper.

    Smaller films begin with fewer wide blocks, larger ones with more.  Raises UsageError for another size.
    """
    if size not in SIZES or width < 1:
        raise UsageError(f"a SPADE generator makes films of {', '.join(map(str, SIZES))} px with a width of 1 or more")
    blocks = (size // _START).bit_length()
    return [min(16, 2 ** (blocks - 1 - index)) * width for index in range(blocks)]


class StyleEncoder(nn.Module):
    """Encode a film as the mean and log-variance of its latent (the paper's image encoder).

    The first layer is not normalised, because brightness and contrast are style.
    """

    def __init__(self, size: int = 256, width: int = PAPER_WIDTH, latent: int = 256, channels: int = 1) -> None:
        super().__init__()
        halvings = len(list_block_widths(size, width)) - 1
        widths = [channels] + [min(8, 2**index) * width for index in range(halvings)]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(build_convolution(before, after, stride=2) for before, after in pairs)
        self.mean = nn.Linear(widths[-1] * _START**2, latent)
        self.log_variance = nn.Linear(widths[-1] * _START**2, latent)
        for last in (self.mean, self.log_variance):
            nn.init.xavier_normal_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, film_BCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Encode films in [0, 1]: mean and log-variance, each [B, Z]."""
        feature = 2 * film_BCSS - 1
        for index, layer in enumerate(self.layers):
            feature = layer(feature)
            feature = F.leaky_relu(normalise_groups(feature) if index else feature, 0.2)
        flat = feature.flatten(1)
        return self.mean(flat), self.log_variance(flat)


class StyledGenerator(nn.Module):
    """A style encoder with its generator; options as in `SpadeGenerator`.

    vary: whether the generator is also told size, contrast and kind of a nodule, beside the latent.
    """

    def __init__(self, size: int, width: int, latent: int, vary: bool = False, **options: Any) -> None:
        super().__init__()
        self.latent = latent
        self.style = StyleEncoder(size, width, latent, options.get("channels", 1))
        self.generator = SpadeGenerator(size, width, latent + TOLD * vary, spread=_SPREAD * vary, **options)
        self.table = NoduleTable() if vary else None

    def forward(
        self,
        film_BCSS: Tensor,
        layout_BKSS: Tensor,
        ground_BCSS: Tensor | None = None,
        told_B4: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a latent for each film (torch's global generator) and make films: film, mean, log-variance.

        film_BCSS: what the style encoder sees.  told_B4: see `told.describe`.
        """
        mean_BZ, log_variance_BZ = self.style(film_BCSS)
        latent_BZ = mean_BZ + torch.exp(log_variance_BZ / 2) * torch.randn_like(mean_BZ)
        latent_BZ = self.join(latent_BZ, told_B4)
        return self.generator(latent_BZ, layout_BKSS, ground_BCSS), mean_BZ, log_variance_BZ

    def join(self, latent_BZ: Tensor, told_B4: Tensor | None) -> Tensor:
        """Return what the generator takes: the latent and, if it varies, what it is told in units of their spread."""
        return (
            latent_BZ
            if self.table is None or told_B4 is None
            else torch.cat([latent_BZ, self.table.standardise(told_B4)], 1)
        )
