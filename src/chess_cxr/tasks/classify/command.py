"""Train a classifier: the command finetune classify."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.arguments import (
    Device,
    EncoderName,
    Flat,
    StorePath,
    check_device_name,
    is_first_rank,
    print_result,
    refuse_existing,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.training.config import TrackingConfig


def finetune_classify(
    encoder: EncoderName,
    store: StorePath,
    out: Path,
    labels: tuple[str, ...] = (),
    config: Flat[FinetuneConfig] = FinetuneConfig(),  # noqa: B008
    tracking: Flat[TrackingConfig] = TrackingConfig(),  # noqa: B008
    device: Device = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a classifier on a store's labels and test it.

    Prints results on the test split, with 95 % intervals by patient.  Except in linear mode, it keeps the weights with
    the best score on the val split and, if interrupted, the same command continues.  For several GPUs or machines:
    torchrun … -m chess_cxr finetune classify …

    Example: chess-cxr finetune classify encoders/first films.lance --out models/findings

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96.
        store: a store with labels in its train and test splits.
        out: the model folder to write.
        labels: names of the labels; by default all; for an ordinal task from low to high.
        config: training options.
        tracking: trackers of the training's numbers.
        device: auto, cpu, cuda, cuda:N or mps.
        json: print the results as JSON.
        quiet: show no progress.
    """
    if config.mode == "linear":
        refuse_existing(out)
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.store import open_store
    from chess_cxr.tasks.classify.labels import select_labelled

    opened = open_store(store)
    select_labelled(opened, labels, config.task, config.uncertain)
    from chess_cxr.tasks.classify.train import finetune_classifier

    with StageBars(quiet or not is_first_rank()) as bars:

        def show(stage: str, done: int, total: int) -> None:
            (bars.show_step if stage == "finetune" else bars.show)(stage, done, total)

        result = finetune_classifier(encoder, opened, out, labels, config, show, device, tracking)
    if is_first_rank():
        print_result(result.as_json() if json else result.as_text(), json)
