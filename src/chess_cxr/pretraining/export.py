"""Export the encoder of a run as an encoder folder."""

from __future__ import annotations

import datetime
from pathlib import Path

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import TrainingSummary
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.methods import METHOD_TITLES
from chess_cxr.pretraining.presets import read_pretrain_config
from chess_cxr.records import UsageError
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from chess_cxr.training.run import read_run_config


def export(run: Path | str, out: Path | str, licence: str = "not stated", data: str = "") -> Path:
    """Export the encoder of a run's newest checkpoint as an encoder folder, with pixel contract and model card.

    licence: of the weights.  data: description of the films, for the card (Markdown).  Returns `out`.
    Raises `UsageError` if `run` is not a run with a checkpoint, or if `out` exists.
    """
    run = Path(run)
    described = read_run_config(run)
    newest = find_checkpoint(run / "checkpoints")
    if newest is None:
        raise UsageError(f"{run} has no checkpoint yet; continue it with: chess-cxr pretrain")
    config = read_pretrain_config(described)
    step, _, tensors = read_checkpoint(newest)
    prefix = "method.encoder."
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    contract = PixelContract(config.views.size, (config.pixels.mean,), (config.pixels.std,))
    uids = (run / "training_uids.txt").read_text().split()
    begun = f", begun from {Path(config.begin_from).name}" if config.begin_from else ""
    training = TrainingSummary(
        data or f"{len(uids):,} films; the owner of the run did not describe them.",
        images=len(uids),
        steps=step,
        method=f"{METHOD_TITLES[config.method.name]}, preset {config.preset}{begun}",
        date=datetime.date.today().isoformat(),
        # do not publish this machine's paths
        config=described | {"begin_from": Path(config.begin_from).name},
    )
    return write_encoder(Path(out), weights, config.method.architecture, contract, licence, training, uids)
