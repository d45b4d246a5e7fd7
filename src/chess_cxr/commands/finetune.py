"""Commands that train a model for a task: finetune classify, bones, nodules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from chess_cxr.commands.words import (
    EncoderName,
    StorePath,
    check_workers,
    parse_policies,
    print_result,
    refuse_existing,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import UsageError
from chess_cxr.workers.child import Limits


def finetune_classify(
    encoder: EncoderName,
    store: StorePath,
    out: Path,
    labels: tuple[str, ...] = (),
    mode: Literal["linear", "mlp", "attentive", "full"] = "linear",
    task: Literal["auto", "multiclass", "multilabel", "ordinal"] = "auto",
    uncertain: tuple[str, ...] = ("ignore",),
    imbalance: Literal["none", "inverse", "effective", "focal", "logit_adjustment"] = "none",
    aggregate: Literal["none", "max", "mean"] = "none",
    steps: int = 300,
    batch: int = 32,
    learning_rate: float | None = None,
    layer_decay: float = 0.9,
    patience: int = 5,
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a classifier on a store's labels and test it.

    Prints its results on the test split with 95 % intervals by patient.
    linear: a probe on cached features, in seconds.  mlp, attentive: small networks on cached features or feature maps.
    full: all weights.  All but linear keep the best moment on the val split.

    Example: chess-cxr finetune classify encoders/first films.lance --out models/findings

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96.
        store: a store with labels; at least its train and test splits.
        out: the model folder to write.
        labels: names of the labels; all by default; from low to high for an ordinal task.
        mode: linear, mlp, attentive or full.
        task: auto takes one class a film where every film has exactly one, findings elsewhere.
        uncertain: what uncertain labels teach: ignore, ones, zeros, smooth_ones, smooth_zeros or third_class, for all
            findings, or FINDING=POLICY pairs.
        imbalance: how classes of different size are treated; not in linear mode.
        aggregate: score studies by the largest or mean probability of their films.
        steps: optimisation steps, not in linear mode.
        batch: films a step.
        learning_rate: of AdamW; by default 1e-3 for mlp and attentive, 3e-4 for full.
        layer_decay: learning rate of each stage of the encoder as a share of the one above, in full mode.
        patience: looks at held-out films without improvement that end training, of 20; 0 for never.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    refuse_existing(out)
    check_encoder_name(encoder)
    from chess_cxr.store import open_store
    from chess_cxr.tasks.classify.labels import select_labelled

    policies: Any = uncertain[0] if len(uncertain) == 1 and "=" not in uncertain[0] else parse_policies(uncertain)
    opened = open_store(store)
    select_labelled(opened, labels, None if task == "auto" else task, policies)
    from chess_cxr.tasks.classify.train import FinetuneConfig, finetune

    chosen = FinetuneConfig(
        mode=mode,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        patience=patience,
        task=None if task == "auto" else task,
        uncertain=policies,
        imbalance=imbalance,
        aggregate=aggregate,
        seed=seed,
    )
    with StageBars(quiet) as bars:
        result = finetune(encoder, opened, out, labels, chosen, bars.show)
    print_result(result.as_json() if json else result.as_text(), json)


def finetune_bones(
    encoder: EncoderName,
    pairs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PAIRS…")],
    out: Path,
    size: int = 512,
    crop: int = 256,
    decoder: Literal["tiny", "full"] = "full",
    perceptual: str = "same",
    perceptual_weight: float = 1.0,
    steps: int = 3000,
    batch: int = 8,
    learning_rate: float = 1e-3,
    val: float = 0.1,
    test: float = 0.2,
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    seed: int = 0,
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
        size: longest side of films at which the network works, in pixels; its bone image is brought to each film's own.
        crop: side of the squares that it sees at a time.
        decoder: full, or tiny for a CPU.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: share of the perceptual loss beside L1 and 1 - MS-SSIM.
        steps: optimisation steps.
        batch: pairs a step.
        learning_rate: of AdamW.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        workers: processes that read pairs; by default one a core.
        limits: what one film may take.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    check_workers(workers)
    if not pairs:
        raise UsageError("name a folder of pairs, such as bse_jsrt/, or phantom:300@512")
    check_encoder_name(encoder)
    from chess_cxr.tasks.bones.fit import BonesConfig
    from chess_cxr.tasks.bones.model import finetune_bones as finetune
    from chess_cxr.tasks.model_folder import refuse_foreign_folder
    from chess_cxr.tasks.perceptual import check_perceptual
    from chess_cxr.workers.pool import build_ingest_pool

    refuse_foreign_folder(out)
    check_perceptual(perceptual)
    config = BonesConfig(
        size=size,
        crop=crop,
        decoder=decoder,
        perceptual=perceptual,
        perceptual_weight=perceptual_weight,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    with StageBars(quiet) as bars, build_ingest_pool(workers) as pool:
        result = finetune(
            encoder, pairs, out, config, val, test, limits, pool, bars.show,
            lambda report, _: bars.show_step("train", report.step, steps),
        )  # fmt: skip
    print_result(result.as_json() if json else result.as_text(), json)


def finetune_nodules(
    encoder: EncoderName,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILMS…")],
    out: Path,
    mode: Literal["inpaint", "film"] = "inpaint",
    size: Literal[64, 128, 256, 512] = 64,
    film_size: int = 256,
    width: int = 16,
    perceptual: str = "same",
    perceptual_weight: float = 10.0,
    r1: float = 0.0,
    steps: int = 3000,
    batch: int = 8,
    learning_rate: float = 2e-4,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
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
        mode: inpaint changes the region around the mask alone; film makes whole films.
        size: side of what it makes, in pixels.
        film_size: longest side of the films that it paints into while it learns.
        width: of its networks; 64 in the paper, 8 to 16 for a CPU.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: share of the perceptual loss.
        r1: weight of the discriminator's gradient penalty.
        steps: optimisation steps.
        batch: films a step.
        learning_rate: of the generator; the discriminator's is four times that.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    if not films:
        raise UsageError("name a folder of films with marked nodules, or phantom:300@256")
    check_encoder_name(encoder)
    from chess_cxr.tasks.model_folder import refuse_foreign_folder
    from chess_cxr.tasks.nodules.fit import NodulesConfig
    from chess_cxr.tasks.nodules.train import finetune_nodules as finetune
    from chess_cxr.tasks.perceptual import check_perceptual

    refuse_foreign_folder(out)
    check_perceptual(perceptual)
    config = NodulesConfig(
        mode=mode,
        size=size,
        film_size=film_size,
        width=width,
        perceptual=perceptual,
        perceptual_weight=perceptual_weight,
        r1=r1,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    with StageBars(quiet) as bars:
        result = finetune(
            encoder,
            films,
            out,
            config,
            val,
            test,
            bars.show,
            lambda report, _: bars.show_step("train", report.step, steps),
        )
    print_result(result.as_json() if json else result.as_text(), json)
