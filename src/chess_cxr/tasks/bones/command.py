"""Train a bone network: the command finetune bones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import (
    Device,
    EncoderName,
    Flat,
    check_device_name,
    check_workers,
    is_first_rank,
    print_result,
)
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
    device: Device = "auto",
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a network that takes ribs and clavicles out of films, from pairs with and without bone.

    Prints what it does on the pairs of patients left out, with 95 % intervals.  Stopped at any moment, the same command
    goes on.  Then use the model with: chess-cxr predict OUT FILM --out FOLDER

    Example: chess-cxr finetune bones encoders/first bse_jsrt/ phantom:300@512 --out models/bones

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96; the network's encoder begins with it.
        pairs: folders with source and target, or JSRT and BSE_JSRT, in them; and phantom:PATIENTS@SIZE#SEED for
            generated pairs (SYNTHETIC).
        out: the model folder to write.
        config: how it is trained.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: processes that read pairs; by default one a core.
        limits: what one film may take.
        json: print the results as JSON.
        quiet: no progress on stderr.
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
            lambda report, _: bars.show_step("train", report.step, config.steps), device=device,
        )  # fmt: skip
    if is_first_rank():
        print_result(result.as_json() if json else result.as_text(), json)
