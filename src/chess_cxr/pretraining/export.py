"""Export the encoder of a run as an encoder folder."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.files.whole import read_json
from chess_cxr.methods import METHOD_TITLES
from chess_cxr.pretraining.presets import read_pretrain_config
from chess_cxr.pretraining.runs import read_lines
from chess_cxr.records import UsageError
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from chess_cxr.training.run import read_run_config

Which = Literal["trained", "averaged"]
HEADS = ("head", "predictor")
AVERAGED = ("key_encoder", "target_encoder", "teacher_encoder")


def export(
    run: Path | str,
    out: Path | str,
    licence: str = "not stated",
    data: str = "",
    which: Which = "trained",
    onnx: bool = True,
) -> Path:
    """Export the encoder of a run's newest checkpoint as an encoder folder, with pixel contract, heads and card.

    licence: of the weights.  data: description of the films, for the card (Markdown).
    which: "trained", or "averaged" for the momentum encoder, if the method has one.
    onnx: whether to write `model.onnx` too where the extra `onnx` is installed.  Returns `out`.
    Raises `UsageError` if `run` is not a run with a checkpoint, or if `out` exists.
    """
    run = Path(run)
    described = read_run_config(run)
    newest = find_checkpoint(run / "checkpoints")
    if newest is None:
        raise UsageError(f"{run} has no checkpoint yet; continue it with: chess-cxr pretrain")
    config = read_pretrain_config(described)
    step, _, tensors = read_checkpoint(newest)
    parts = _split_method(tensors, "method.inner." if config.guides else "method.")
    part = "encoder" if which == "trained" else next((name for name in AVERAGED if name in parts), "")
    if not part:
        raise UsageError(f"{METHOD_TITLES[config.method.name]} has no averaged encoder; leave --which out")
    heads = {f"{name}.{key}": tensor for name in HEADS for key, tensor in parts.get(name, {}).items()}
    contract = PixelContract(config.views.size, (config.pixels.mean,), (config.pixels.std,))
    uids = (run / "training_uids.txt").read_text().split()
    averaged = ", averaged encoder" if which == "averaged" else ""
    begun = f", begun from {Path(config.begin_from).name}" if config.begin_from else ""
    training = TrainingSummary(
        data or f"{len(uids):,} films; the owner of the run did not describe them.",
        images=len(uids),
        steps=step,
        method=f"{METHOD_TITLES[config.method.name]}, preset {config.preset}{averaged}{begun}",
        date=datetime.date.today().isoformat(),
        # do not publish this machine's paths
        config=described | {"begin_from": Path(config.begin_from).name, "films": Path(config.films).name},
        seconds=sum_seconds(run, config.training.batch, step),
        machine=_name_machine(run),
    )
    return write_encoder(
        Path(out), parts[part], config.method.architecture, contract, licence, training, uids, heads=heads, onnx=onnx
    )


def sum_seconds(run: Path, batch: int, step: int) -> float:
    """Return the seconds that a run's steps up to this one took, probes left out; 0 if its log does not say."""
    seconds, before = 0.0, 0.0
    for values in read_lines(run / "metrics.jsonl"):
        if values["step"] <= step and values.get("images_per_second"):
            seconds += batch * (values["step"] - before) / values["images_per_second"]
            before = values["step"]
    return round(seconds, 1)


def _name_machine(run: Path) -> str:
    """Return the device and threads of a run, as in "cpu, 1 thread"; "" if unknown."""
    facts = read_json(run / "environment.json")
    threads = facts.get("threads", 0)
    return f"{facts['device']}, {threads} thread{'' if threads == 1 else 's'}" if "device" in facts else ""


def _split_method(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part of a method: its encoder, its heads and their averages."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            part, _, key = name.removeprefix(prefix).partition(".")
            parts.setdefault(part, {})[key] = tensor
    return parts
