"""Atomic checkpoints without pickle: tensors in safetensors, everything else as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from chess_cxr.files.whole import write_atomically
from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.loop import LoopState

Complete = Callable[[dict[str, Any]], dict[str, Any]]
CHECKPOINT_VERSION = 1


def write_checkpoint(
    folder: Path,
    step: int,
    method: nn.Module,
    optimizers: dict[str, Optimizer],
    described: dict[str, Any],
    keep: int = 2,
    loop: LoopState | None = None,
) -> Path:
    """Write `folder/step_00001234.safetensors`, whole or not at all, and delete all but the newest `keep`.

    described: the resolved configuration; a checkpoint resumes only under the same one.  loop: the loop's own state.
    """
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": value for key, value in state.items() if value is not None}
    tensors |= {f"loop.{name}": tensor for name, tensor in (loop.state_dict() if loop else {}).items()}
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    # safetensors needs contiguous CPU tensors that share no memory
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    header = {"version": str(CHECKPOINT_VERSION), "step": str(step), "config": json.dumps(described, sort_keys=True)}
    path = name_checkpoint(folder, step)
    write_atomically(path, save(tensors, header))
    # a killed run leaves a partial file
    for old in [*sorted(folder.glob("step_*.safetensors"))[:-keep], *folder.glob(".step_*.partial-*")]:
        old.unlink()
    return path


def name_checkpoint(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:08d}.safetensors"


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, or None."""
    return max(folder.glob("step_*.safetensors"), default=None)


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint; return its step, its configuration and its tensors on the CPU."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("version") != str(CHECKPOINT_VERSION):
                raise UsageError(f"{path} is not a checkpoint of this version; start a new run with another --out")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return int(header["step"]), json.loads(header["config"]), tensors
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        others = any(other != path for other in path.parent.glob(f"*{path.suffix}"))
        advice = "remove it to go on from an older one" if others else "there is no older one, so begin a new run"
        raise ChessError(f"{path} is damaged ({type(error).__name__}); {advice}") from None


def restore_checkpoint(
    path: Path,
    method: nn.Module,
    optimizers: dict[str, Optimizer],
    described: dict[str, Any],
    loop: LoopState | None = None,
    complete: Complete | None = None,
) -> int:
    """Restore method, optimisers, loop and random generators from a checkpoint; return its step.

    Raises `UsageError` that names the first difference if the checkpoint has another configuration.
    """
    step, written_under, tensors = read_checkpoint(path)
    check_same_configuration(path.parent.parent, written_under, described, complete)
    method.load_state_dict(_take(tensors, "method."))
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _take(tensors, f"optimizer.{name}.").items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        _match_layout(optimizer)
    if loop:
        loop.load_state_dict(_take(tensors, "loop."))
    torch.set_rng_state(tensors["rng.torch"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return step


def check_same_configuration(
    run: Path, written_under: dict[str, Any], described: dict[str, Any], complete: Complete | None = None
) -> None:
    """Raise `UsageError` that names the first difference between a run's configuration and the requested one.

    complete: adds the entries that an earlier version did not know, at their defaults.
    """
    now = json.loads(json.dumps(described))
    if complete and written_under != now:
        written_under = json.loads(json.dumps(complete(written_under)))
    if written_under != now:
        difference = _name_difference(written_under, now)
        raise UsageError(f"{run} holds a run of another configuration: {difference}")


def _match_layout(optimizer: Optimizer) -> None:
    """Restore the memory layout of the optimiser's moments: layouts other than the parameters' slow down every step."""
    for parameter, fields in optimizer.state.items():
        for key, value in fields.items():
            if value.shape == parameter.shape:
                fields[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _name_difference(old: Any, new: Any, at: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _name_difference(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    return f"{at} was {json.dumps(old)[:80]}, is {json.dumps(new)[:80]}; use another --out or the old configuration"
