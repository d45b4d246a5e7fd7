"""Train a nodule generator: the command finetune nodules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Device, EncoderName, Flat, check_device_name, check_workers, is_first_rank, print_result
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.workers.child import Limits


def finetune_nodules(
    encoder: EncoderName,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILMS…")],
    out: Path,
    config: Flat[NodulesConfig] = NodulesConfig(),  # noqa: B008
    val: float = 0.1,
    test: float = 0.2,
    device: Device = "auto",
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a generator that paints nodules into films at given masks (SPADE or flow matching).

    Prints the contrast of generated and real nodules in films of the test patients and, with 24 or more nodules, their
    distance (Fréchet distance, KID).  If interrupted, the same command continues.  Apply the model with:
    chess-cxr generate OUT --films DIR --random 10 --out NEW

    Example: chess-cxr finetune nodules encoders/first jsrt/ --out models/nodules

    Args:
        encoder: the network of the perceptual loss: an encoder folder, or a name such as random:regnetx_002@96.
        films: folders like JSRT or NODE21, with films/ and masks/, or of CT nodules (nodules.csv); or \
phantom:PATIENTS@SIZE#SEED (SYNTHETIC).
        out: the model folder to write.
        config: training options.
        val: fraction of the patients for validation during training.
        test: fraction of the patients for the final results.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: number of processes that read films; by default one per core.
        limits: limits of time and memory per film.
        json: print the results as JSON.
        quiet: show no progress.
    """
    check_workers(workers)
    if not films:
        raise UsageError("name a folder of films with marked nodules, or phantom:300@256")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.tasks.model_folder import refuse_foreign_folder
    from chess_cxr.tasks.nodules.train import finetune_nodules as finetune
    from chess_cxr.tasks.perceptual import check_perceptual
    from chess_cxr.workers.pool import build_ingest_pool

    refuse_foreign_folder(out)
    check_perceptual(config.perceptual)
    with StageBars(quiet or not is_first_rank()) as bars, build_ingest_pool(workers) as pool:
        result = finetune(
            encoder, films, out, config, val, test, bars.show,
            lambda report, _: bars.show_step("train", report.step, config.steps), device, limits, pool,
        )  # fmt: skip
    if is_first_rank():
        print_result(result.as_json() if json else result.as_text(), json)
