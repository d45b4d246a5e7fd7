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
from dataclasses import asdict
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
from chess_cxr.encoders.contract import PixelContract, draw_golden_film
from chess_cxr.encoders.encoder import (
    Encoder,
    build_network,
    join_encoder,
    list_expected_tensors,
    list_network_options,
    place_encoder,
)
from chess_cxr.encoders.facts import (
    CONFIG_FILE,
    FORMAT,
    GOLDEN_FILE,
    HEADS_FILE,
    OPTIONAL_FILES,
    UIDS_FILE,
    WEIGHTS_FILE,
    TrainingSummary,
    check_sha256,
    parse_facts,
    parse_sha256,
    read_config,
)
from chess_cxr.encoders.onnx_network import pack_onnx
from chess_cxr.encoders.onnx_session import ONNX_FILE
from chess_cxr.encoders.processor import describe_for_timm, describe_for_transformers
from chess_cxr.encoders.published import find_layout_problem
from chess_cxr.files.whole import compute_sha256, write_atomically, write_whole_folder
from chess_cxr.records import ChessError, UsageError

CARD_FILE, PROCESSOR_FILE = "README.md", "preprocessor_config.json"

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
    config = read_config(Path(folder))
    parse_facts(config, Path(folder))
    write_atomically(card, render_card(config, evaluation, limits).encode())
    return card


def read_heads(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the method and the tensors of the heads in an encoder folder, ("", {}) if it has none.

    Raises ChessError if they are not the ones that its config.json describes.
    """
    config = read_config(folder)
    sums = parse_sha256(config, folder)
    if HEADS_FILE not in sums:
        return "", {}
    check_sha256(folder, HEADS_FILE, sums)
    try:
        tensors = safetensors.torch.load_file(folder / HEADS_FILE)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ChessError(f"{folder / HEADS_FILE} cannot be read ({type(error).__name__})") from None
    method = config["chess_cxr"]["training"]["config"].get("method", {})
    return str(method.get("name", "")) if isinstance(method, dict) else "", tensors


def show_encoder(path: Path) -> dict[str, Any]:
    """Return the description of an encoder folder as JSON values, without loading the network."""
    folder = Path(path)
    config = read_config(folder)
    contract, licence, training = parse_facts(config, folder)
    block = config["chess_cxr"]
    return {
        "architecture": config["architecture"],
        "feature_count": block["feature_count"],
        "contract": asdict(contract),
        "licence": licence,
        "training": asdict(training),
        "training_uids": block.get("training_uids"),
        "sha256": parse_sha256(config, folder),
    }


def load_folder(folder: Path, device: torch.device, check: bool = True) -> Encoder:
    """Load an encoder folder; raises the errors of `load_encoder`."""
    config = read_config(folder)
    contract, licence, training = parse_facts(config, folder)
    architecture = config["architecture"]
    if check:
        sums = parse_sha256(config, folder)
        check_sha256(folder, WEIGHTS_FILE, sums)
        check_sha256(folder, GOLDEN_FILE, sums)
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


def _read_training_uids(folder: Path) -> frozenset[str]:
    check_sha256(folder, UIDS_FILE, parse_sha256(read_config(folder), folder))
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
