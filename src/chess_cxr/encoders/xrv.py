"""Load the published networks of torchxrayvision without running the code in their pickles."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder, join_encoder
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.published import read_tensors_only
from chess_cxr.records import ChessError, UsageError, import_extra

# The only classes that a pickled network may contain, besides the library's own layers.
_XRV_LAYERS = (nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)


class XrvFeatures(nn.Module):
    """A torchxrayvision DenseNet without its classifier, average-pooled: [B, 1, S, S] -> [B, 1024]."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, film_BCSS: torch.Tensor) -> torch.Tensor:
        """Return the same features as the library's `features2`, for films of the right size."""
        feature_BDSS: torch.Tensor = self.layers(film_BCSS)
        return torch.relu(feature_BDSS).mean(dim=(2, 3))


def load_xrv(name: str) -> Encoder:
    """Load torchxrayvision weights from that library's cache; downloads nothing."""
    with warnings.catch_warnings():  # importing the library switches all warnings off
        xrv = import_extra("torchxrayvision", "xrv", f"xrv:{name}")
    known = [key for key in xrv.models.model_urls if key.startswith(("densenet121-", "resnet50-"))]
    if name not in known:
        raise UsageError(f"torchxrayvision has no weights {name!r}; there are {', '.join(known)}")
    facts = xrv.models.model_urls[name]
    url = str(facts["weights_url"])
    file = Path(xrv.utils.get_cache_dir()) / url.rpartition("/")[2]
    if not file.is_file():
        raise ChessError(f"the weights of xrv:{name} are not here: fetch {url} to {file.parent}")
    size = int(facts["input_resolution"])
    module = read_xrv_densenet(file, xrv) if name.startswith("densenet121-") else _read_xrv_resnet(file)
    # The library scales films to [-1024, 1024] and crops their central square.
    contract = PixelContract(size, (0.5,), (1 / 2048,), interpolation="bilinear", fit="crop")
    training = TrainingSummary(f"See torchxrayvision's page on {name}: public data sets, with their labels.")
    return join_encoder(module, contract, f"xrv:{name}", name, "Apache-2.0", training)


def read_xrv_densenet(file: Path, xrv: Any) -> nn.Module:
    """Read a pickled torchxrayvision DenseNet; refuses classes other than its layers and runs no code."""
    layers = [getattr(xrv.models, key) for key in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")]
    with torch.serialization.safe_globals([*layers, *_XRV_LAYERS, set]):
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state = saved.state_dict() if isinstance(saved, nn.Module) else saved
            network = xrv.models.DenseNet(weights=None)
            network.load_state_dict({key: state[key] for key in network.state_dict()})
        except Exception as error:  # a broken or hostile file can raise anything
            raise ChessError(f"{file} is not a network of torchxrayvision ({type(error).__name__})") from None
    return XrvFeatures(network.features)


def _read_xrv_resnet(file: Path) -> nn.Module:
    network = timm.create_model("resnet50", pretrained=False, in_chans=1, num_classes=0)
    state = read_tensors_only(file)
    try:
        network.load_state_dict({key: state[key] for key in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ChessError(f"{file} is not a ResNet of torchxrayvision ({type(error).__name__})") from None
    module: nn.Module = network
    return module
