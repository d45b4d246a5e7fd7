"""Encoder folders: write, load and verify them.

An encoder folder holds `config.json` and `model.safetensors` in timm's hub format, so timm alone can load it.  Beside
them it holds what timm does not know: the pixel contract (in `config.json`, block `chess_cxr`), the embedding of a
fixed film (`golden.safetensors`), the hashed uids of the training films (`training_uids.txt`), the model card
(`README.md`) and a file for transformers (`preprocessor_config.json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from chess_cxr.encoders.card import render_card
from chess_cxr.encoders.contract import PixelContract, draw_golden_film, parse_contract
from chess_cxr.encoders.encoder import (
    Encoder,
    TrainingSummary,
    build_network,
    join_encoder,
    list_expected_tensors,
    list_network_options,
    place_encoder,
)
from chess_cxr.encoders.onnx_network import ONNX_FILE, TOLERANCE, OnnxNetwork, pack_onnx, refuse_large_onnx
from chess_cxr.encoders.processor import describe_for_timm, describe_for_transformers
from chess_cxr.encoders.published import compute_sha256, find_layout_problem
from chess_cxr.files.whole import write_atomically, write_whole_folder
from chess_cxr.records import ChessError, UsageError

FORMAT = 1
HEADS_FILE = "heads.safetensors"
CONFIG_FILE, CARD_FILE, UIDS_FILE = "config.json", "README.md", "training_uids.txt"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE, GOLDEN_FILE = "model.safetensors", "golden.safetensors"
OPTIONAL_FILES = (HEADS_FILE, ONNX_FILE)
MOST_CONFIG_BYTES = 8 << 20
LATER_FACTS = {"seconds", "machine"}  # of a training summary; the first folders lack them

# Largest distance of an embedding from the golden one, relative to its length.  On the CPU, threads, memory format,
# convolution library and float64 move a trained network by 1e-6, mean + 0.001 by 1e-3 and std × 1.01 by 6e-3; the
# SHA-256 covers single weights.  Other devices may round to TF32 (3e-3, emulated): for them this is a sanity check.
CPU_TOLERANCE, DEVICE_TOLERANCE = 2e-4, 2e-2


def write_encoder(
    out: Path,
    module_state_dict: Mapping[str, Tensor],
    architecture: str,
    contract: PixelContract,
    licence: str,
    training: TrainingSummary,
    training_uids: Iterable[str] = (),
    evaluation: str = "",
    heads: Mapping[str, Tensor] | None = None,
    onnx: bool = False,
) -> Path:
    """Write an encoder folder, whole or not at all; return its path.

    module_state_dict: exactly the tensors of timm's `architecture` without a classifier.
    training_uids: keyed hashes (lower-case hexadecimal), never original identifiers.
    evaluation: Markdown for the card.  heads: the method's heads, to continue its pre-training.
    onnx: also write `model.onnx`, if the extra `onnx` is installed and ONNX can express the network.
    Raises UsageError if `out` exists, ChessError if a tensor or uid does not fit.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists; name a new folder")
    uids = _sort_uids(training_uids)
    expected = list_expected_tensors(architecture, contract.channels)
    tensors = _copy_tensors(module_state_dict, expected, f"weights for {architecture}")
    module = build_network(architecture, contract.channels)
    module.load_state_dict(tensors)
    encoder = join_encoder(module, contract, out.name, architecture, licence, training)
    golden_D = _embed_golden_film(encoder)
    if not np.isfinite(golden_D).all() or not golden_D.any():
        raise ChessError(f"{architecture} returns NaN, infinity or zeros for the test film: nothing was written")
    try:
        with write_whole_folder(out) as draft:
            _save_tensors(tensors, draft / WEIGHTS_FILE)
            _save_tensors({"embedding": torch.from_numpy(golden_D)}, draft / GOLDEN_FILE)
            (draft / UIDS_FILE).write_text("".join(f"{uid}\n" for uid in uids), "ascii")
            if heads:
                _save_tensors(heads, draft / HEADS_FILE)
            if onnx:
                with suppress(ChessError):  # the extra is missing, or ONNX cannot express the network
                    (draft / ONNX_FILE).write_bytes(pack_onnx(encoder))
            config = _describe(encoder, len(uids), draft)
            (draft / CONFIG_FILE).write_text(_dump(config), "utf-8")
            (draft / PROCESSOR_FILE).write_text(_dump(describe_for_transformers(contract)), "utf-8")
            (draft / CARD_FILE).write_text(render_card(config, evaluation), "utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise ChessError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    return out


def write_card(folder: Path, evaluation: str, limits: str = "") -> Path:
    """Rewrite the model card of an encoder folder with an evaluation and known limits (Markdown); return its path."""
    card = Path(folder) / CARD_FILE
    config = _read_config(Path(folder))
    _parse_facts(config, Path(folder))
    write_atomically(card, render_card(config, evaluation, limits).encode())
    return card


def read_heads(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the method and the tensors of the heads in an encoder folder, ("", {}) if it has none.

    Raises ChessError if they are not the ones that its config.json describes.
    """
    config = _read_config(folder)
    sums = _parse_sha256(config, folder)
    if HEADS_FILE not in sums:
        return "", {}
    _check_sha256(folder, HEADS_FILE, sums)
    try:
        tensors = safetensors.torch.load_file(folder / HEADS_FILE)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ChessError(f"{folder / HEADS_FILE} cannot be read ({type(error).__name__})") from None
    method = config["chess_cxr"]["training"]["config"].get("method", {})
    return str(method.get("name", "")) if isinstance(method, dict) else "", tensors


def show_encoder(path: Path) -> dict[str, Any]:
    """Return the description of an encoder folder as JSON values, without loading the network."""
    folder = Path(path)
    config = _read_config(folder)
    contract, licence, training = _parse_facts(config, folder)
    block = config["chess_cxr"]
    return {
        "architecture": config["architecture"],
        "feature_count": block["feature_count"],
        "contract": asdict(contract),
        "licence": licence,
        "training": asdict(training),
        "training_uids": block.get("training_uids"),
        "sha256": _parse_sha256(config, folder),
    }


def load_folder(folder: Path, device: torch.device, check: bool = True) -> Encoder:
    """Load an encoder folder; raises the errors of `load_encoder`."""
    config = _read_config(folder)
    contract, licence, training = _parse_facts(config, folder)
    architecture = config["architecture"]
    if check:
        sums = _parse_sha256(config, folder)
        _check_sha256(folder, WEIGHTS_FILE, sums)
        _check_sha256(folder, GOLDEN_FILE, sums)
    expected = list_expected_tensors(architecture, contract.channels)
    tensors = _read_safetensors(folder / WEIGHTS_FILE, expected)
    module = build_network(architecture, contract.channels)
    module.load_state_dict(tensors)
    count = config["chess_cxr"]["feature_count"]
    encoder = Encoder(module, contract, folder.name, architecture, licence, training, count, device)
    encoder.read_uids = partial(_read_training_uids, folder)
    if check:
        _check_golden(place_encoder(encoder, torch.device("cpu")), folder, CPU_TOLERANCE)
    place_encoder(encoder, device)
    if check and device.type != "cpu":
        _check_golden(encoder, folder, DEVICE_TOLERANCE)
    return encoder


def load_onnx_encoder(folder: Path, threads: int = 0) -> Encoder:
    """Load an encoder folder's `model.onnx` as an encoder on the CPU, with the checks of `load_encoder`.

    threads: of one call; 0 for one per core.  Raises ChessError if the folder has none, or if it is damaged.
    """
    config = _read_config(folder)
    contract, licence, training = _parse_facts(config, folder)
    sums, architecture = _parse_sha256(config, folder), config["architecture"]
    if ONNX_FILE not in sums:
        raise ChessError(f"{folder} has no {ONNX_FILE}: export it again with the extra onnx installed")
    refuse_large_onnx(folder / ONNX_FILE, folder / WEIGHTS_FILE)
    for name in (ONNX_FILE, GOLDEN_FILE):
        _check_sha256(folder, name, sums)
    module = OnnxNetwork((folder / ONNX_FILE).read_bytes(), str(folder / ONNX_FILE), threads)
    count, cpu = config["chess_cxr"]["feature_count"], torch.device("cpu")
    encoder = Encoder(module, contract, folder.name, architecture, licence, training, count, cpu)
    encoder.read_uids = partial(_read_training_uids, folder)
    _check_golden(encoder, folder, TOLERANCE)
    return encoder


def _read_training_uids(folder: Path) -> frozenset[str]:
    _check_sha256(folder, UIDS_FILE, _parse_sha256(_read_config(folder), folder))
    return frozenset((folder / UIDS_FILE).read_text("ascii", "replace").split())


def _describe(encoder: Encoder, uid_count: int, folder: Path) -> dict[str, Any]:
    """Return a config in timm's hub format, with our block `chess_cxr`, which timm ignores."""
    contract, network = encoder.contract, cast(Any, encoder.module)
    default = network.pretrained_cfg
    return {
        "architecture": encoder.architecture,
        "num_classes": 0,
        "num_features": int(network.num_features),
        "pretrained_cfg": {
            "tag": "chess_cxr",
            "custom_load": False,
            **describe_for_timm(contract),
            "fixed_input_size": bool(default.get("fixed_input_size", False)),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": default.get("first_conv"),
            "classifier": default.get("classifier"),
            "license": encoder.licence,
        },
        "model_args": {"in_chans": contract.channels} | _list_vit_options(encoder),
        "chess_cxr": {
            "format": FORMAT,
            "feature_count": encoder.feature_count,
            "contract": asdict(contract),
            "licence": encoder.licence,
            "training": asdict(encoder.training),
            "training_uids": uid_count,
            "sha256": {
                name: compute_sha256(folder / name)
                for name in (WEIGHTS_FILE, GOLDEN_FILE, UIDS_FILE, *OPTIONAL_FILES)
                if (folder / name).exists()
            },
            "written_with": {name: version(name) for name in ("chess-cxr", "timm", "torch")},
        },
    }


def _list_vit_options(encoder: Encoder) -> dict[str, Any]:
    """Return timm's options for a ViT: any input size, and the size of its stored position embedding."""
    options: dict[str, Any] = dict(list_network_options(encoder.architecture))
    return options | {"img_size": cast(Any, encoder.module).patch_embed.img_size[0]} if options else {}


def _dump(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"the training summary is not plain JSON: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is not an encoder folder: it has no {CONFIG_FILE}")
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise ChessError(f"{path} is larger than {MOST_CONFIG_BYTES} bytes: not the config of an encoder")
    try:
        config: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ChessError(f"{path} is not valid JSON") from error
    block = config.get("chess_cxr") if isinstance(config, dict) else None
    if not isinstance(block, dict):
        raise ChessError(f"{path} has no pixel contract: only folders written by chess-cxr have one")
    if block.get("format") != FORMAT:
        raise ChessError(f"{path} has another format than {FORMAT}: a newer chess-cxr may read it")
    if not isinstance(config.get("architecture"), str):
        raise ChessError(f"{path}: architecture is not a name")
    if type(block.get("feature_count")) is not int or not 1 <= block["feature_count"] <= 65_536:
        raise ChessError(f"{path}: feature_count is not a number from 1 to 65536")
    return cast(dict[str, Any], config)


def _parse_facts(config: Mapping[str, Any], folder: Path) -> tuple[PixelContract, str, TrainingSummary]:
    """Read contract, licence and training from a config; timm's own entries must agree with the contract."""
    path, block = folder / CONFIG_FILE, config["chess_cxr"]
    try:
        contract = parse_contract(block.get("contract"))
    except UsageError as error:
        raise ChessError(f"{path}: {error}") from error
    timm_facts = config.get("pretrained_cfg")
    stated = [timm_facts.get(key) for key in ("input_size", "mean", "std")] if isinstance(timm_facts, dict) else []
    size = [contract.channels, contract.size, contract.size]
    if stated != [size, list(contract.mean), list(contract.std)]:
        raise ChessError(f"{path}: pretrained_cfg and the pixel contract disagree on size, mean or std")
    training, names = block.get("training"), {item.name for item in fields(TrainingSummary)}
    if not isinstance(training, dict) or set(training) not in (names, names - LATER_FACTS):
        raise ChessError(f"{path}: the training summary does not hold exactly {', '.join(sorted(names))}")
    if not isinstance(block.get("licence"), str):
        raise ChessError(f"{path}: licence is not text")
    try:
        return contract, block["licence"], TrainingSummary(**training)
    except UsageError as error:
        raise ChessError(f"{path}: {error}") from error


def _parse_sha256(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    sums = config["chess_cxr"].get("sha256")
    names = (WEIGHTS_FILE, GOLDEN_FILE, UIDS_FILE)
    if not isinstance(sums, dict) or not all(isinstance(sums.get(name), str) for name in names):
        raise ChessError(f"{folder / CONFIG_FILE}: sha256 does not list {', '.join(names)}")
    return {name: sums[name] for name in (*names, *OPTIONAL_FILES) if name in sums}


def _check_sha256(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    if not (folder / name).is_file():
        raise ChessError(f"{folder}: {name} is missing")
    if compute_sha256(folder / name) != sums[name]:
        raise ChessError(f"{folder / name} is not the file its config.json describes (sha256 differs)")


def _read_safetensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise ChessError(f"{path} is missing")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ChessError(f"{path} is not a readable safetensors file") from error
    problem = find_layout_problem(expected, tensors)
    if problem:
        raise ChessError(f"{path} does not fit the architecture in config.json: {problem}")
    return tensors


def _check_golden(encoder: Encoder, folder: Path, tolerance: float) -> None:
    expected = {"embedding": torch.empty(encoder.feature_count, device="meta")}
    golden_D = _read_safetensors(folder / GOLDEN_FILE, expected)["embedding"].numpy()
    found_D = _embed_golden_film(encoder)
    miss = float(np.linalg.norm(found_D - golden_D) / max(float(np.linalg.norm(golden_D)), 1e-12))
    if not miss <= tolerance:
        raise ChessError(
            f"{folder}: on {encoder.device} the embedding of the test film is off by {miss:.2g} of its length (at most "
            f"{tolerance:g}): the pixel contract was changed, or this installation computes something else"
        )


def _embed_golden_film(encoder: Encoder) -> np.ndarray:
    feature_D: np.ndarray = encoder.embed([draw_golden_film(encoder.contract.size)])[0]
    return feature_D


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # safetensors makes files readable by their owner only; an empty file has the mode that the umask asks for.
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def _copy_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous and floating point as float32; raises ChessError if one does not fit."""
    detached = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in state.items()}
    problem = find_layout_problem(expected, detached)
    if problem:
        raise ChessError(f"{what}: {problem}")
    kinds = {key: torch.float32 if value.is_floating_point() else value.dtype for key, value in detached.items()}
    copies = {key: value.to(kinds[key], copy=True).contiguous() for key, value in detached.items()}
    broken = next((key for key, value in copies.items() if not bool(torch.isfinite(value).all())), None)
    if broken:
        raise ChessError(f"{what}: {broken} holds NaN or infinity")
    return copies


def _sort_uids(uids: Iterable[str]) -> list[str]:
    ordered = sorted(set(uids))
    wrong = sum(not re.fullmatch(r"[0-9a-f]{16,128}", uid) for uid in ordered)
    if wrong:
        raise ChessError(f"{wrong} of {len(ordered)} training uids are not keyed hashes: nothing was written")
    return ordered
