"""The encoders of a suite: from what stands in its file to a network that embeds, and to the hash of what it is."""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import timm
import torch
from torch import nn

from chess_cxr.api import EncoderLike, tell_seen
from chess_cxr.benchmark.cache import compute_key, hash_array
from chess_cxr.benchmark.suite import KINDS, EncoderSource
from chess_cxr.models.contract import PixelContract
from chess_cxr.models.embedding import (
    Encoder,
    TrainingSummary,
    build_network,
    join_encoder,
    parse_device,
    place_encoder,
)
from chess_cxr.models.published import compute_sha256, read_chess_checkpoint, read_tensors_only
from chess_cxr.records import ChessError, UsageError, import_extra
from chess_cxr.weights import CHESS_CONTRACT, build_random_encoder, load_encoder

LITE0 = "imagenet:tf_efficientnet_lite0"
HUB_SECONDS = 3.0
# What a whole pickled network of torchxrayvision may hold: layers, and no other code.
_XRV_LAYERS = (nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)


@dataclass(frozen=True)
class EncoderFacts:
    """What is known of an encoder: the hash of its weights and contract, a line for people, notes on it, and by task
    a note on scored films that it was pre-trained on.
    """

    source: EncoderSource
    identity: str
    about: str
    notes: tuple[str, ...] = ()
    seen: Mapping[str, str] = field(default_factory=dict)


def check_spec(spec: str) -> None:
    """Raise UsageError for what can be neither found nor a name."""
    kind, found, rest = spec.partition(":")
    if kind == "chess":
        if not rest:
            raise UsageError("chess needs the published file: chess:FILE.pth.tar")
        if not Path(rest).is_file():
            raise UsageError(f"there is no file {rest}; chess: names the published checkpoint")
    elif kind in ("timm", "hf", "pixels", "xrv") and not rest:
        raise UsageError(f"{spec!r} should be {kind}:NAME")
    elif kind not in KINDS and not Path(spec).is_dir():
        raise UsageError(f"there is no encoder folder {spec}, and it is no name such as random, imagenet or pixels:32")


def resolve_sources(encoders: Mapping[str, str], reference: str) -> dict[str, EncoderSource]:
    """Turn the encoders of a suite into sources: `random` becomes an untrained network like the reference's.

    Raises UsageError where there is no such network, or an encoder folder or file is missing.
    """
    for spec in encoders.values():
        check_spec(spec)
    like = encoders[reference]
    for name, spec in encoders.items():
        if spec == "random" and (like == "random" or like.startswith("pixels:")):
            raise UsageError(
                f"{name}: random is a network like the reference's, and {reference} has none: name one, such as "
                "random:resnet50@512"
            )
    return {
        name: EncoderSource(name, spec, like if spec in ("random", "imagenet") else "")
        for name, spec in encoders.items()
    }


def settle_source(source: EncoderSource) -> tuple[EncoderSource, tuple[str, ...]]:
    """Decide which weights `imagenet` stands for: timm's of the reference's network, or what works offline.

    Returns the source as every worker will load it, and what the reader has to know.
    """
    if source.spec != "imagenet":
        return source, ()
    network = ""
    if source.like not in ("", "imagenet") and not source.like.startswith(("pixels:", "xrv:")):
        like = load_source(EncoderSource("", source.like))
        network = like.architecture if isinstance(like, Encoder) else ""
    if network and find_imagenet_weights(network):
        return EncoderSource(source.name, f"timm:{network}"), ()
    why = f"those of {network} are not at hand" if network else "the reference is no network of timm"
    return EncoderSource(source.name, LITE0), (f"{source.name}: weights of EfficientNet-Lite0, as {why}.",)


def find_imagenet_weights(network: str) -> bool:
    """Return whether timm's default weights of a network are of ImageNet, and are in its cache or can be fetched."""
    if not timm.is_model_pretrained(network):
        return False
    facts = timm.get_pretrained_cfg(network)
    if facts is None or "_in" not in f"_{facts.tag}":
        return False
    import huggingface_hub
    from huggingface_hub import constants

    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(huggingface_hub.try_to_load_from_cache(facts.hf_hub_id, file), str) for file in files):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:  # asked once: timm itself would try again for a minute
        socket.create_connection((urlsplit(constants.ENDPOINT).hostname or "", 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def load_source(source: EncoderSource, device: str = "cpu") -> EncoderLike:
    """Load an encoder of a suite.

    Takes everything `weights.load_encoder` does, and `random` (like the reference), `chess:FILE` (the published
    checkpoint), `hf:OWNER/NAME` (a folder of the Hub), `xrv:NAME` (torchxrayvision) and `pixels:SIDE`, which is its
    own encoder.  Raises ChessError, in one line, for whatever is missing or broken.
    """
    kind, _, rest = source.spec.partition(":")
    if kind == "pixels":
        return source.spec
    if source.spec == "random":
        like = load_source(EncoderSource("", source.like))
        assert isinstance(like, Encoder)
        encoder = build_random_encoder(like.architecture, like.contract)
    elif kind == "chess":
        encoder = _load_chess(Path(rest))
    elif kind == "xrv":
        encoder = _load_xrv(rest)
    elif kind == "hf":
        encoder = _load_hub(rest)
    else:
        return load_encoder(LITE0 if source.spec == "imagenet" else source.spec, device=device)
    return place_encoder(encoder, parse_device(device))


def describe_source(
    source: EncoderSource, scored: Mapping[str, np.ndarray] | None = None, device: str = "cpu"
) -> EncoderFacts:
    """Load an encoder once and return what is known of it.

    scored: by task, the uids of the films that it will be scored on.  Raises ChessError where it cannot be loaded.
    """
    source, notes = settle_source(source)
    encoder = load_source(source, device)
    if not isinstance(encoder, Encoder):
        return EncoderFacts(source, compute_identity(encoder), f"bare pixels ({source.spec})", notes)
    data = encoder.training.data.split(".")[0].split("\n")[0]
    told = {task: tell_seen(source.name, encoder, uids) for task, uids in (scored or {}).items()}
    seen = {task: note for task, note in told.items() if note}
    about = f"{encoder.architecture} at {encoder.contract.size}², {encoder.training.method or 'pre-trained'}: {data}"
    return EncoderFacts(source, compute_identity(encoder), about, notes, seen)


def compute_identity(encoder: EncoderLike) -> str:
    """Return the SHA-256 of all that decides an encoder's features: network, weights, pixel contract."""
    if not isinstance(encoder, Encoder):
        return compute_key({"encoder": str(encoder)})
    weights = {
        name: hash_array(tensor.detach().cpu().contiguous().numpy())
        for name, tensor in encoder.module.state_dict().items()
    }
    contract = json.loads(json.dumps(asdict(encoder.contract)))
    return compute_key({"architecture": encoder.architecture, "contract": contract, "weights": weights})


def _load_chess(file: Path) -> Encoder:
    checkpoint = read_chess_checkpoint(file)
    module = build_network("resnet50", 1)
    module.load_state_dict(checkpoint.tensors)
    training = TrainingSummary(
        "4.8 million chest radiographs, as the paper states; their list is not published, so that an overlap with a "
        "test set cannot be checked.",
        images=4_800_000,
        method="MoCo v2, as published",
        config={"file_sha256": compute_sha256(file)},
    )
    return join_encoder(module, CHESS_CONTRACT, "chess", "resnet50", "Apache-2.0", training)


def _load_hub(name: str) -> Encoder:
    """Load a repository of the Hugging Face Hub: an encoder folder of ours, or anything timm loads from there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "README.md"]))
    except Exception as error:  # every layer of the download has its own exceptions
        raise ChessError(f"hf:{name} could not be fetched ({type(error).__name__}); is there a network?") from None
    return load_hub_folder(folder, name)


def load_hub_folder(folder: Path, name: str) -> Encoder:
    """Load a downloaded repository: with our contract where it has one, else with what timm's format says."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if "chess_cxr" in config:
            return load_encoder(folder)
        module: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except ChessError:
        raise
    except Exception as error:  # timm trusts the folder, and fails in any way on one that is no model of its own
        raise ChessError(f"hf:{name} is no network that timm can load ({type(error).__name__})") from None
    facts: Mapping[str, Any] = timm.data.resolve_model_data_config(module)
    channels, size = int(facts["input_size"][0]), int(facts["input_size"][-1])
    contract = PixelContract(size, tuple(facts["mean"]), tuple(facts["std"]), channels=channels)
    licence = str(config.get("pretrained_cfg", {}).get("license") or "not stated")
    training = TrainingSummary(f"See the model card of {name}.")
    return join_encoder(module, contract, f"hf:{name}", str(config.get("architecture", "unknown")), licence, training)


class XrvFeatures(nn.Module):
    """The features of a torchxrayvision DenseNet before its classifier, pooled: [B, 1, S, S] -> [B, 1024]."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, film_BCSS: torch.Tensor) -> torch.Tensor:
        """Return what `features2` of the library returns, for films of the right size."""
        feature_BDSS: torch.Tensor = self.layers(film_BCSS)
        return torch.relu(feature_BDSS).mean(dim=(2, 3))


def _load_xrv(name: str) -> Encoder:
    """Load weights of torchxrayvision that lie where that library keeps them; nothing is ever downloaded here."""
    with warnings.catch_warnings():  # the library switches all warnings off as it is imported
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
    # The library's films lie in [-1024, 1024], and it takes their central square.
    contract = PixelContract(size, (0.5,), (1 / 2048,), interpolation="bilinear", fit="crop")
    training = TrainingSummary(f"See torchxrayvision's page on {name}: public data sets, with their labels.")
    return join_encoder(module, contract, f"xrv:{name}", name, "Apache-2.0", training)


def read_xrv_densenet(file: Path, xrv: Any) -> nn.Module:
    """Read a pickled DenseNet of torchxrayvision; classes other than its layers are refused, no code is run."""
    layers = [getattr(xrv.models, key) for key in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")]
    with torch.serialization.safe_globals([*layers, *_XRV_LAYERS, set]):
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state = saved.state_dict() if isinstance(saved, nn.Module) else saved
            network = xrv.models.DenseNet(weights=None)
            network.load_state_dict({key: state[key] for key in network.state_dict()})
        except Exception as error:  # a broken or hostile file can make the reader fail in any way
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
