"""Train a bone network: the command finetune bones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Device, EncoderName, Flat, check_device_name, check_workers, is_first_rank, print_result
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.workers.child import Limits


def finetune_bones(
    encoder: EncoderName,
    pairs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PAIRS…")],
    out: Path,
    config: Flat[BonesConfig] = BonesConfig(),  # noqa: B008
    val: float = 0.1,
    test: float = 0.2,
    nodules: Path | None = None,
    device: Device = "auto",
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a network that removes ribs and clavicles from films, on pairs with and without bone.

    Prints results on the test patients' pairs, with 95 % intervals.  If interrupted, the same command continues.  Apply
    the model with: chess-cxr predict OUT FILM --out FOLDER

    Example: chess-cxr finetune bones encoders/first bse_jsrt/ phantom:300@512 --out models/bones

    Args:
        encoder: the encoder to begin with: a folder, or a name such as random:regnetx_002@96.
        pairs: folders with source/ and target/, or JSRT/ and BSE_JSRT/; or phantom:PATIENTS@SIZE#SEED (SYNTHETIC).
        out: the model folder to write.
        config: training options.
        val: fraction of the patients for validation during training.
        test: fraction of the patients for the final results.
        nodules: folder of projected CT nodules (nodules.csv) that training adds to films, besides generated ones.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: number of processes that read pairs; by default one per core.
        limits: limits of time and memory per film.
        json: print the results as JSON.
        quiet: show no progress.
    """
    check_workers(workers)
    if not pairs:
        raise UsageError("name a folder of pairs, such as bse_jsrt/, or phantom:300@512")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.tasks.bones.train import finetune_bones as finetune
    from chess_cxr.tasks.model_folder import refuse_foreign_folder
    from chess_cxr.tasks.perceptual import check_perceptual
    from chess_cxr.workers.pool import build_ingest_pool

    refuse_foreign_folder(out)
    check_perceptual(config.perceptual)
    with StageBars(quiet or not is_first_rank()) as bars, build_ingest_pool(workers) as pool:
        result = finetune(
            encoder, pairs, out, config, val, test, limits, pool, bars.show,
            lambda report, _: bars.show_step("train", report.step, config.steps), device=device, nodules=nodules,
        )  # fmt: skip
    if is_first_rank():
        print_result(result.as_json() if json else result.as_text(), json)
