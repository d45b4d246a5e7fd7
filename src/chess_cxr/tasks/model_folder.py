"""Model folders of tasks: training happens inside, and leaves the finished model."""

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
from chess_cxr.files.whole import write_atomically, write_whole_folder
from chess_cxr.records import ChessError, UsageError


def refuse_foreign_folder(out: Path) -> None:
    """Raise UsageError if a model can be neither written nor continued at `out`."""
    if (out / "config.json").exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    if out.exists() and not (out / "run" / "config.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already and is no interrupted run; choose another --out or remove it")


def read_tensors(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a model's tensors, which must have the names, shapes and kinds of `expected`, such as meta tensors.

    Raises ChessError, in one line, if the file is absent, not safetensors, of another layout, or not finite.
    """
    problem = ""
    try:
        if not file.is_file():  # reading a pipe would wait forever
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
    """Write a finished model, with the configuration last so that an interruption leaves no model; delete its run.

    A model that was made without a run is written as a whole folder.
    keep: folders of the run to keep, such as those of trackers.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights = safetensors.torch.save(whole, {"format": "pt"})
    scores, config = ((json.dumps(part, indent=1, allow_nan=False) + "\n").encode() for part in (result, described))
    if not (out / "run").exists():
        with write_whole_folder(out) as growing:
            for name, content in {"model.safetensors": weights, "result.json": scores, "config.json": config}.items():
                (growing / name).write_bytes(content)
        return
    write_atomically(out / "model.safetensors", weights)
    write_atomically(out / "result.json", scores)
    metrics = out / "run" / "metrics.jsonl"
    if metrics.exists():  # an earlier call may have stopped after it was moved
        write_atomically(out / "metrics.jsonl", metrics.read_bytes())
    for name in keep:
        if (out / "run" / name).exists():
            (out / "run" / name).rename(out / name)
    write_atomically(out / "config.json", config)
    shutil.rmtree(out / "run")
