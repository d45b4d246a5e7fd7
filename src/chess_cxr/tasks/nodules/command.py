"""Train a nodule generator: the command finetune nodules."""

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
    is_first_rank,
    print_result,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig


def finetune_nodules(
    encoder: EncoderName,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILMS…")],
    out: Path,
    config: Flat[NodulesConfig] = NodulesConfig(),  # noqa: B008
    val: float = 0.1,
    test: float = 0.2,
    device: Device = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a generator that paints nodules into films where a mask says (SPADE).

    Prints how the nodules that it makes in films of patients left out stand out beside the real ones.  Stopped at any
    moment, the same command goes on.  Use the model with: chess-cxr generate OUT --films DIR --random 10 --out NEW

    Example: chess-cxr finetune nodules encoders/first jsrt/ --out models/nodules

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96: the network of the perceptual loss.
        films: folders in the layout of JSRT or NODE21, or with films/ and masks/ in them; and
            phantom:PATIENTS@SIZE#SEED for generated ones (SYNTHETIC).
        out: the model folder to write.
        config: how it is trained.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        device: auto, cpu, cuda, cuda:N or mps.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    if not films:
        raise UsageError("name a folder of films with marked nodules, or phantom:300@256")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.tasks.model_folder import refuse_foreign_folder
    from chess_cxr.tasks.nodules.train import finetune_nodules as finetune
    from chess_cxr.tasks.perceptual import check_perceptual

    refuse_foreign_folder(out)
    check_perceptual(config.perceptual)
    with StageBars(quiet or not is_first_rank()) as bars:
        result = finetune(
            encoder, films, out, config, val, test, bars.show,
            lambda report, _: bars.show_step("train", report.step, config.steps), device=device,
        )  # fmt: skip
    if is_first_rank():
        print_result(result.as_json() if json else result.as_text(), json)
