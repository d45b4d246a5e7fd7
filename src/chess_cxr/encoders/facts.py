"""What an encoder folder says of itself in config.json; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, cast

from chess_cxr.encoders.contract import PixelContract, parse_contract
from chess_cxr.encoders.onnx_session import ONNX_FILE
from chess_cxr.files.whole import compute_sha256
from chess_cxr.records import ChessError, UsageError

FORMAT = 1
HEADS_FILE = "heads.safetensors"
CONFIG_FILE, UIDS_FILE = "config.json", "training_uids.txt"
WEIGHTS_FILE, GOLDEN_FILE = "model.safetensors", "golden.safetensors"
OPTIONAL_FILES = (HEADS_FILE, ONNX_FILE)
MOST_CONFIG_BYTES = 8 << 20
LATER_FACTS = {"seconds", "machine"}  # of a training summary; the first folders lack them


@dataclass(frozen=True)
class TrainingSummary:
    """How an encoder was trained, for its model card.

    data: which films, from where, under which licence (Markdown).  images, steps: 0 if unknown.
    method, date: free text, "" if unknown.  config: the resolved run configuration as JSON values.
    seconds: that the steps took, 0 if unknown.  machine: on what, such as "cpu, 1 thread".
    """

    data: str
    images: int = 0
    steps: int = 0
    method: str = ""
    date: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""

    def __post_init__(self) -> None:
        kinds: dict[str, type] = {"data": str, "images": int, "steps": int, "method": str, "date": str}
        kinds |= {"config": Mapping, "seconds": Real, "machine": str}
        wrong = next((name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)), None)
        if wrong:
            raise UsageError(f"training summary: {wrong} must be {kinds[wrong].__name__}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; raises UsageError if there is none, ChessError if it describes no encoder of this format."""
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
        known = config if isinstance(config, dict) else {}
        if "task" in known:
            raise UsageError(f"{folder} is a model, not an encoder; chess-cxr predict uses it")
        if "training" in known and "method" in known:
            raise UsageError(f"{folder} is a run; chess-cxr export makes an encoder of it")
        raise ChessError(f"{path} has no pixel contract: only encoder folders written by chess-cxr have one")
    if block.get("format") != FORMAT:
        raise ChessError(f"{path} has another format than {FORMAT}: a newer chess-cxr may read it")
    if not isinstance(config.get("architecture"), str):
        raise ChessError(f"{path}: architecture is not a name")
    if type(block.get("feature_count")) is not int or not 1 <= block["feature_count"] <= 65_536:
        raise ChessError(f"{path}: feature_count is not a number from 1 to 65536")
    return cast(dict[str, Any], config)


def parse_facts(config: Mapping[str, Any], folder: Path) -> tuple[PixelContract, str, TrainingSummary]:
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


def parse_sha256(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the SHA-256 that a config gives for each file."""
    sums = config["chess_cxr"].get("sha256")
    names = (WEIGHTS_FILE, GOLDEN_FILE, UIDS_FILE)
    if not isinstance(sums, dict) or not all(isinstance(sums.get(name), str) for name in names):
        raise ChessError(f"{folder / CONFIG_FILE}: sha256 does not list {', '.join(names)}")
    return {name: sums[name] for name in (*names, *OPTIONAL_FILES) if name in sums}


def check_sha256(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Raise ChessError unless a file is the one that its config describes."""
    if not (folder / name).is_file():
        raise ChessError(f"{folder}: {name} is missing")
    if compute_sha256(folder / name) != sums[name]:
        raise ChessError(f"{folder / name} is not the file its config.json describes (sha256 differs)")
