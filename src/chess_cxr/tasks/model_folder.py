"""Model folders of tasks: training happens inside, and leaves the finished model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chess_cxr.files.whole import compute_sha256, write_atomically, write_whole_folder
from chess_cxr.records import ChessError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
MOST_BYTES = 8 << 30  # of a file that is read whole


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
    import safetensors.torch

    from chess_cxr.encoders.published import find_layout_problem

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


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    import safetensors.torch

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(whole, {"format": "pt"})
    return content


def describe_files(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of files, for the config.json of their folder."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


def check_described(folder: Path, name: str, described: object, most_bytes: int = MOST_BYTES) -> str:
    """Return the SHA-256 of a file that its folder's config.json describes, "" if it describes none of this name.

    Compares the size first, so that a huge file is not read.  Raises ChessError, in one line, if the file is absent or
    differs.
    """
    facts, file = described.get(name) if isinstance(described, Mapping) else None, folder / name
    if facts is None:
        return ""
    if not isinstance(facts, Mapping) or type(facts.get("bytes")) is not int:
        raise ChessError(f"{folder / 'config.json'} does not give the size and sha256 of {name}")
    if not file.is_file():
        raise ChessError(f"{folder}: {name} is missing; copy the model again")
    fits = file.stat().st_size == facts["bytes"] <= most_bytes
    found = compute_sha256(file) if fits else ""
    if not found or found != facts.get("sha256"):
        raise ChessError(f"{file} is not the file its config.json describes (size or sha256 differs)")
    return found


def write_model(
    out: Path,
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
    result: Mapping[str, Any],
    keep: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a finished model, with the configuration last so that an interruption leaves no model; delete its run.

    A model that was made without a run is written as a whole folder.
    keep: folders of the run to keep, such as those of trackers.  files: what else the folder holds, by name.
    """
    scores, config = ((json.dumps(part, indent=1, allow_nan=False) + "\n").encode() for part in (result, described))
    contents = {**(files or {}), WEIGHTS_FILE: pack_tensors(tensors), "result.json": scores}
    if not (out / "run").exists():
        with write_whole_folder(out) as growing:
            for name, content in {**contents, "config.json": config}.items():
                (growing / name).write_bytes(content)
        return
    for name, content in contents.items():
        write_atomically(out / name, content)
    metrics = out / "run" / "metrics.jsonl"
    if metrics.exists():  # an earlier call may have stopped after it was moved
        write_atomically(out / "metrics.jsonl", metrics.read_bytes())
    for name in keep:
        if (out / "run" / name).exists():
            (out / "run" / name).rename(out / name)
    write_atomically(out / "config.json", config)
    shutil.rmtree(out / "run")
