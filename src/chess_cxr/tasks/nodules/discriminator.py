"""Multi-scale PatchGAN: scores how real each patch of a film looks, given the film's layout.

After Park et al. 2019 (SPADE) and Wang et al. 2018 (pix2pixHD).  Shapes: B films, S their side, K layout channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_KERNEL = 4


class PatchDiscriminator(nn.Module):
    """One scale: three convolutions of stride 2, one of stride 1 and one that scores; all with a spectral norm of 1.

    All but the first and the last are followed by instance norm without parameters.
    """

    def __init__(self, layout: int = 2, width: int = 64, channels: int = 1) -> None:
        super().__init__()
        widths = [channels + layout, width, 2 * width, 4 * width, 8 * width, 1]
        strides = (2, 2, 2, 1, 1)
        pairs = zip(widths[:-1], widths[1:], strides, strict=True)
        self.layers = nn.ModuleList(_build_layer(before, after, stride) for before, after, stride in pairs)

    def forward(self, film_BCSS: Tensor, layout_BKSS: Tensor) -> list[Tensor]:
        """Return the output of every layer; the last, [B, 1, h, w], scores patches: above 0 is real."""
        feature, features = torch.cat([2 * film_BCSS - 1, layout_BKSS], 1), []
        for index, layer in enumerate(self.layers):
            feature = layer(feature)
            if index < len(self.layers) - 1:
                feature = F.leaky_relu(F.instance_norm(feature) if index else feature, 0.2)
            features.append(feature)
        return features


def _build_layer(channels: int, out: int, stride: int) -> nn.Module:
    layer = nn.Conv2d(channels, out, _KERNEL, stride, 1)
    nn.init.xavier_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


class MultiScaleDiscriminator(nn.Module):
    """Discriminators with separate weights for films of full, half, … size; films must have 64 px or more."""

    def __init__(self, layout: int = 2, width: int = 64, channels: int = 1, scales: int = 2) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(layout, width, channels) for _ in range(scales))

    def forward(self, film_BCSS: Tensor, layout_BKSS: Tensor) -> list[list[Tensor]]:
        """Return, for each scale, the output of every layer; the last scores patches."""
        found = []
        for index, discriminator in enumerate(self.scales):
            if index:
                film_BCSS = F.avg_pool2d(film_BCSS, 2)
                layout_BKSS = F.interpolate(layout_BKSS, film_BCSS.shape[-2:], mode="nearest-exact")
            found.append(discriminator(film_BCSS, layout_BKSS))
        return found
