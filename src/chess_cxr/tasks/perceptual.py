"""Perceptual loss: the distance of two images in a network's feature space (Johnson et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import LITE0, build_random_encoder, load_encoder
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.records import UsageError
from chess_cxr.tasks.config import SAME, PerceptualConfig

DISTURBED = 0.03  # root mean square of what a disturbance changes, of the grey range


class PerceptualLoss:
    """L1 distance of two images in the feature space of a frozen network.

    Not an `nn.Module`, to keep its weights out of optimisers and checkpoints.  stages: weights of the stages.
    """

    def __init__(self, encoder: Encoder, config: PerceptualConfig | None = None) -> None:
        self.config, self.contract = config or PerceptualConfig(), encoder.contract
        self.network, self.stages = build_stages(encoder), self.config.stages

    def __call__(self, picture_B1HW: Tensor, truth_B1HW: Tensor, where_B1HW: Tensor | None = None) -> Tensor:
        """Return the weighted mean absolute difference of features, a scalar; images in [0, 1] with bone bright.

        If the contract has a percentile window, the truth's window applies to both images.
        where_B1HW: 0 to 1, weight of each place of square images; None for all alike.
        """
        terms = zip(self.stages, self.measure_stages(picture_B1HW, truth_B1HW, where_B1HW), strict=True)
        return torch.stack([weight * distance for weight, distance in terms if weight]).sum()

    def measure_stages(
        self, picture_B1HW: Tensor, truth_B1HW: Tensor, where_B1HW: Tensor | None = None
    ) -> list[Tensor]:
        """Return the mean absolute difference of the features of each stage, scalars; arguments as above."""
        self.network.to(picture_B1HW.device)
        with torch.no_grad():
            window = find_window(truth_B1HW, self.contract)
            wanted = self._compute_features(truth_B1HW, window)
        found = self._compute_features(picture_B1HW, window)
        return [compute_distance(a, b, where_B1HW) for a, b in zip(found, wanted, strict=True)]

    def _compute_features(self, picture_B1HW: Tensor, window: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        resize = self.config.resolution == "contract"
        features: list[Tensor] = self.network(prepare_pictures(picture_B1HW, self.contract, window, resize))
        return [F.normalize(f, dim=1) for f in features] if self.config.scale == "unit" else features


def compute_distance(one_BCHW: Tensor, other_BCHW: Tensor, where_B1SS: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference of feature maps, a scalar.

    where_B1SS: weight of each place, on a grid of any size; each film counts alike, however small its part.
    """
    if where_B1SS is None:
        return F.l1_loss(one_BCHW, other_BCHW)
    where_B1HW = F.adaptive_avg_pool2d(where_B1SS, (one_BCHW.shape[-2], one_BCHW.shape[-1]))
    weighted_B = ((one_BCHW - other_BCHW).abs().mean(1, keepdim=True) * where_B1HW).flatten(1).sum(1)
    return (weighted_B / where_B1HW.flatten(1).sum(1).clamp_min(1e-6)).mean()


def draw_disturbances(picture_B1HW: Tensor) -> dict[str, Tensor]:
    """Return what noise, blur, brightness and mottle change of pictures in [0, 1], each with an RMS of `DISTURBED`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(picture_B1HW.shape, generator=generator).to(picture_B1HW.device)
    small = torch.randn((len(picture_B1HW), 1, 8, 8), generator=generator).to(picture_B1HW.device)
    changes = {
        "noise": noise,
        "blur": F.avg_pool2d(picture_B1HW, 5, 1, 2, count_include_pad=False) - picture_B1HW,
        "brightness": torch.ones_like(picture_B1HW),
        "mottle": F.interpolate(small, picture_B1HW.shape[-2:], mode="bicubic"),
    }
    return {
        name: DISTURBED * change / change.square().mean().sqrt().clamp(min=1e-9) for name, change in changes.items()
    }


@torch.no_grad()
def balance_stages(loss: PerceptualLoss, picture_B1HW: Tensor) -> tuple[float, ...]:
    """Return stage weights with which each stage costs a fifth of L1: networks of any gain are then equally strong.

    The cost is the geometric mean over `draw_disturbances` of pictures in [0, 1] with bone bright.
    """
    share_DS = []
    for change_B1HW in draw_disturbances(picture_B1HW).values():
        found = torch.stack(loss.measure_stages(picture_B1HW + change_B1HW, picture_B1HW))
        share_DS.append(change_B1HW.abs().mean() / found.clamp(min=1e-9) / len(found))
    balanced: list[float] = torch.stack(share_DS).log().mean(0).exp().tolist()
    return tuple(balanced)


def build_stages(encoder: Encoder) -> nn.Module:
    """Build a frozen copy of an encoder that returns the features after the stem and after each of four stages."""
    try:
        network: Any = timm.create_model(
            encoder.architecture, pretrained=False, features_only=True, in_chans=encoder.contract.channels
        )
        reductions = network.feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        raise UsageError(f"{encoder.architecture} gives no feature maps of several stages") from None
    if len(reductions) != 5:
        stages = f"{encoder.architecture} has {len(reductions)} stages of features"
        raise UsageError(f"{stages}, and a perceptual loss compares 5")
    known: Mapping[str, Tensor] = encoder.module.state_dict()
    if absent := [name for name in network.state_dict() if name not in known]:
        raise UsageError(f"{encoder.name} lacks {absent[0]}: it cannot be a perceptual network")
    network.load_state_dict({name: known[name] for name in network.state_dict()})
    frozen: nn.Module = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return frozen


def find_window(picture_B1HW: Tensor, contract: PixelContract) -> tuple[Tensor, Tensor] | None:
    """Return the grey levels that become 0 and 1 for each image, [B, 1, 1, 1]; None if the contract has no window.

    The grey levels are bone bright, also for a bone-dark network.
    """
    if contract.percentiles is None:
        return None
    low, high = (value / 100 for value in contract.percentiles)
    if contract.polarity == "bone_dark":
        low, high = 1 - high, 1 - low
    flat_BN = picture_B1HW.flatten(1)
    ends = [torch.quantile(flat_BN, share, dim=1)[:, None, None, None] for share in (low, high)]
    return ends[0], torch.maximum(ends[1], ends[0] + 1e-6)


def prepare_pictures(
    picture_B1HW: Tensor, contract: PixelContract, window: tuple[Tensor, Tensor] | None, resize: bool = True
) -> Tensor:
    """Prepare images in [0, 1] with bone bright as a contract demands, with gradients: [B, C, H, W].

    The same as `PixelContract.prepare`, except that antialiased bilinear resampling replaces area averages.
    """
    if window is not None:
        low, high = window
        picture_B1HW = ((picture_B1HW - low) / (high - low)).clamp(0, 1)
    if contract.polarity == "bone_dark":
        picture_B1HW = 1 - picture_B1HW
    if resize:
        picture_B1HW = _fit(picture_B1HW, contract)
    mean, std = (
        torch.tensor(v, device=picture_B1HW.device)[None, :, None, None] for v in (contract.mean, contract.std)
    )
    return (picture_B1HW.expand(-1, contract.channels, -1, -1) - mean) / std


def _fit(picture_B1HW: Tensor, contract: PixelContract) -> Tensor:
    height, width = picture_B1HW.shape[-2:]
    short, long = min(height, width), max(height, width)
    if contract.fit == "crop":
        top, left = (height - short) // 2, (width - short) // 2
        picture_B1HW = picture_B1HW[..., top : top + short, left : left + short]
    elif contract.fit == "pad":
        top, left = (long - height) // 2, (long - width) // 2
        air = 0.0 if contract.polarity == "bone_bright" else 1.0
        picture_B1HW = F.pad(picture_B1HW, (left, long - width - left, top, long - height - top), value=air)
    averages = contract.interpolation == "area" and min(picture_B1HW.shape[-2:]) >= contract.size
    side = (contract.size, contract.size)
    return F.interpolate(picture_B1HW, side, mode="bilinear", antialias=averages, align_corners=False)


def check_perceptual(spec: str) -> None:
    """Raise UsageError for an invalid name of a perceptual network, without loading anything."""
    if spec == "chess":
        raise UsageError("chess needs the published file: chess:FILE.pth.tar")
    if spec.startswith("pixels:"):
        raise UsageError("bare pixels are no perceptual network; none leaves the perceptual loss out")
    if spec not in (SAME, "none", "random", "imagenet"):
        check_encoder_name(spec)


def build_perceptual(
    spec: str, encoder: Encoder, config: PerceptualConfig | None = None, seed: int = 0
) -> tuple[PerceptualLoss | None, str]:
    """Build a perceptual loss by name; return it with a line that describes it.

    spec: "none"; "same", the given encoder; "random", an untrained network like it with weights from the seed;
    "imagenet"; "chess:FILE", the published checkpoint; or any name that `load_encoder` takes.
    """
    check_perceptual(spec)
    if spec == "none":
        return None, "no perceptual loss"
    if spec == SAME:
        found = encoder
    elif spec == "random":
        found = build_random_encoder(encoder.architecture, encoder.contract, seed=seed + 1000)
    else:
        found = load_encoder(LITE0 if spec == "imagenet" else spec)
    return PerceptualLoss(found, config), f"{found.name} ({found.architecture} at {found.contract.size}²)"
