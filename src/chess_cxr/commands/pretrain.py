"""Commands about pre-training: pretrain, runs, plan."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import (
    Device,
    Flat,
    RunPaths,
    Stores,
    check_device_name,
    is_first_rank,
    print_result,
    refuse_preset_and_config,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import ProgressBar, build_step_note, say_on_stderr
from chess_cxr.records import UsageError
from chess_cxr.training.config import TrackingConfig


def pretrain(
    stores: Stores,
    out: Path,
    preset: str = "",
    config: Path | None = None,
    begin_from: str = "",
    films: Path | None = None,
    tracking: Flat[TrackingConfig] = TrackingConfig(),  # noqa: B008
    device: Device = "auto",
    quiet: bool = False,
) -> None:
    """Pre-train an encoder on stores of films, without labels.

    Never trains on films of the val and test splits.  If interrupted, the same command continues the run.  For several
    GPUs or machines: torchrun … -m chess_cxr pretrain …

    Example: chess-cxr pretrain films.lance --preset cpu_small --out runs/first

    Args:
        stores: stores to train on.
        out: the run folder to write or continue.
        preset: chess_paper, chess_strong, cpu_small or demo; by default cpu_small.
        config: a JSON file such as a run's config.json, instead of a preset.
        begin_from: an encoder to continue from: a folder, or a name such as imagenet:tf_efficientnet_lite0.
        films: a file with the uids of the films to train on, such as chess-cxr select writes; by default all.
        tracking: trackers of the run's numbers.
        device: auto, cpu, cuda, cuda:N or mps.
        quiet: show no progress.
    """
    refuse_preset_and_config(preset, config)
    check_device_name(device)
    if begin_from:
        check_encoder_name(begin_from)
    from chess_cxr.store import open_store

    opened = [open_store(store) for store in stores]
    from chess_cxr.pretraining.presets import build_config, read_config_file
    from chess_cxr.pretraining.pretrain import pretrain as run_pretrain

    chosen = read_config_file(config) if config else build_config(preset or "cpu_small", out)
    chosen = replace(chosen, films=str(films)) if films else chosen
    is_first = is_first_rank()
    with ProgressBar("pretrain", chosen.training.steps, "steps", quiet or not is_first) as bar:
        run = run_pretrain(
            opened,
            out,
            chosen,
            build_step_note(bar),
            begin_from=begin_from,
            tracking=tracking,
            say=bar.say,
            device=device,
        )
    if is_first:
        print(run)


def runs(
    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER…")] = (Path(),),
    sort: str = "started",
    json: bool = False,
) -> None:
    """List pre-training runs with their progress, speed and results.

    Example: chess-cxr runs runs/ --sort knn_auroc_best

    Args:
        folders: run folders, or folders up to two levels above them.
        sort: the column to sort by, such as started, name, state, step, loss, knn_auroc_best or images_per_second.
        json: print JSON.
    """
    from chess_cxr.pretraining.runs import list_runs

    listed = list_runs(folders, sort)
    for folder in listed.damaged:
        say_on_stderr(f"{folder} is left out: its config.json is missing or damaged; restore it from a copy")
    print_result(listed.as_json() if json else listed.as_text(), json)


def compare_runs(folders: RunPaths, json: bool = False) -> None:
    """Compare pre-training runs: different configuration entries, and newest numbers.

    Example: chess-cxr runs compare runs/first runs/second

    Args:
        folders: two or more run folders.
        json: print JSON.
    """
    from chess_cxr.pretraining.runs import compare_runs as compare

    compared = compare(folders)
    print_result(compared.as_json() if json else compared.as_text(), json)


def write_run_page(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    store: tuple[Path, ...] = (),
    films: int = 12,
    synthetic: bool = False,
) -> None:
    """Write the page of a run, RUN/report.html, with its curves and some view pairs.

    Example: chess-cxr runs page runs/first --store films.lance

    Args:
        run: a run folder.
        store: the stores of the run, for the view pairs.
        films: number of films to show.
        synthetic: label the page SYNTHETIC, for generated films.
    """
    from chess_cxr.pretraining.runs import is_run

    if not is_run(run):
        raise UsageError(f"{run} is not a run; chess-cxr runs lists the runs in a folder")
    from chess_cxr.pretraining.page import write_run_page as write

    print(write(run, store, films, synthetic))


def plan_run(
    images: float = 0,
    preset: str = "",
    config: Path | None = None,
    gpus: str = "",
    price: float = 0.0,
    network_gbit: float = 100.0,
    epochs: float = 0.0,
    film_kilobytes: float = 0.0,
    calibrate: bool = False,
    store: Path | None = None,
    seconds: float = 40.0,
    calibration: Path | None = None,
    json: bool = False,
) -> None:
    """Estimate what a pre-training run takes: storage, steps, hours, memory, traffic and money.

    For named GPUs the numbers are calculated from data sheets, not measured.  Without --gpus they are for this machine,
    scaled from a short training run that --calibrate measures.

    Example: chess-cxr plan --images 4.8e6 --preset chess_paper --gpus 8xH100 --price 3

    Args:
        images: number of films.
        preset: the preset to plan; by default chess_paper.
        config: a JSON configuration to plan, instead of a preset.
        gpus: GPUs such as H100, 8xH100 or 4x8xH100 (nodes, GPUs per node).
        price: price per GPU-hour.
        network_gbit: Gbit/s of a node's network, all its cards together.
        epochs: passes over the films, instead of the preset's steps.
        film_kilobytes: mean size of an encoded film, if known.
        calibrate: measure this machine first, and save the result.
        store: films to calibrate with; by default generated ones.
        seconds: duration of the calibration.
        calibration: the calibration file; by default one in your configuration folder.
        json: print JSON.
    """
    refuse_preset_and_config(preset, config)
    if not images and not calibrate:
        raise UsageError("say how many --images, such as --images 4.8e6, or --calibrate")
    if not 0 <= images < 1e12 or images != int(images):
        raise UsageError("--images must be a whole number, such as 4.8e6")
    if store is not None and not calibrate:
        raise UsageError("--store is for --calibrate, which measures this machine on its films")
    from chess_cxr.pretraining.calibrate import calibrate as measure
    from chess_cxr.pretraining.calibrate import find_calibration, read_calibration, write_calibration
    from chess_cxr.pretraining.gpus import parse_gpus
    from chess_cxr.pretraining.plan import plan
    from chess_cxr.pretraining.presets import build_config, read_config_file

    if gpus:
        parse_gpus(gpus)
    chosen = read_config_file(config) if config else build_config(preset or "chess_paper")
    place = calibration or find_calibration()
    if calibrate:
        print(f"calibrated: {write_calibration(measure(chosen, store, seconds), place)}", file=sys.stderr)
        if not images:
            return
    known = read_calibration(place) if calibrate or calibration or not gpus or place.exists() else None
    made = plan(
        chosen,
        int(images),
        gpus,
        calibration=known,
        price=price,
        network_gbit=network_gbit,
        film_bytes=1000 * film_kilobytes,
        epochs=epochs,
    )
    print_result(made.as_dict() if json else made.as_text(), json)
