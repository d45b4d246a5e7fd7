"""The folder that a task trains in, and that holds its model once it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from chess_cxr.encoders.published import find_layout_problem
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import ChessError, UsageError


def refuse_foreign_folder(out: Path) -> None:
    """Raise UsageError where a model cannot be written or continued."""
    if (out / "config.json").exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    if out.exists() and not (out / "run" / "config.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already and is no interrupted run; choose another --out or remove it")


def read_tensors(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a model's tensors; expected: names, shapes and kinds that it must have, "meta" tensors will do.

    Raises ChessError, one line, for a file that is absent, none of safetensors, of another layout, or not finite.
    """
    problem = ""
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
        problem = find_layout_problem(expected, tensors)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # RuntimeError: too large to map
        problem = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if not problem:
        broken = (name for name, tensor in tensors.items() if not tensor.to(expected[name].dtype).isfinite().all())
        problem = next((f"{name} holds numbers that are not finite" for name in broken), "")
    if problem:
        raise ChessError(f"{file} does not hold this model: {problem}")
    return tensors


def write_model(
    out: Path,
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
    result: Mapping[str, Any],
    keep: Sequence[str] = (),
) -> None:
    """Write a finished model; its configuration comes last, so that half a model is none, and then its run goes.

    keep: folders of the run that stay, those of trackers.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(out / "model.safetensors", safetensors.torch.save(whole, {"format": "pt"}))
    write_atomically(out / "result.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    metrics = out / "run" / "metrics.jsonl"
    if metrics.exists():  # who continues after an end in here may find it gone
        write_atomically(out / "metrics.jsonl", metrics.read_bytes())
    for name in keep:
        if (out / "run" / name).exists():
            (out / "run" / name).rename(out / name)
    write_atomically(out / "config.json", (json.dumps(described, indent=1) + "\n").encode())
    shutil.rmtree(out / "run")
