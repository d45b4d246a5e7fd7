"""A run and its folder: configuration, metrics, checkpoints; the same call again continues it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chess_cxr.records import ChessError, UsageError
from chess_cxr.store import Store
from chess_cxr.training.batches import Positives, build_film_pool, read_view_batches
from chess_cxr.training.checkpoint import (
    check_same_configuration,
    explain_full_disk,
    find_checkpoint,
    name_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from chess_cxr.training.distributed import (
    agree_on_largest,
    choose_device,
    copy_from_first_rank,
    explain_lost_rank,
    join_ranks,
    wait_for_ranks,
)
from chess_cxr.training.loop import (
    LoopState,
    StepReport,
    TrainingConfig,
    build_optimizers,
    check_training_config,
    train,
)
from chess_cxr.training.run_log import PixelScale, PretrainMethod, RunLog, Watch
from chess_cxr.training.stop import Stopped, catch_stop_signals
from chess_cxr.training.sync_norm import synchronise_batch_norm
from chess_cxr.training.trackers import RunEnd, TrackingConfig, check_tracking
from chess_cxr.views import ViewConfig

COLLAPSED = 1000  # among the numbers of signals that ranks agree on


@dataclass(frozen=True)
class RunPlan:
    """All that one pre-training run needs beside its method.

    begun_from: SHA-256 of the weights that the method began with; "" for untrained ones.
    """

    training: TrainingConfig
    views: ViewConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")
    positives: Positives = "view"
    begun_from: str = ""


def pretrain_run(
    folder: Path,
    method: PretrainMethod,
    stores: Sequence[Store],
    plan: RunPlan,
    described: dict[str, Any],
    on_step: Callable[[StepReport, dict[str, float]], None] | None = None,
    tracking: TrackingConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Train `method` on view pairs from `stores` in `folder`, or continue what stands there; return its checkpoint.

    described: the resolved configuration as JSON-ready values; a folder continues only under the same one, on the
    same films.  on_step gets every step's report and the newest probe.  tracking: where numbers go beside
    `metrics.jsonl`.  say: told one line for what must not be overlooked; stderr by default.
    Raises `Stopped` after a signal, and `ChessError` after a collapse that is to end the run, once the checkpoint is
    written.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    training, tracking = plan.training, tracking or TrackingConfig()
    check_training_config(training)
    check_tracking(tracking)
    rank, world = join_ranks()
    pool = build_film_pool(stores, plan.splits)
    if len(pool) < 2:
        raise UsageError("the given stores hold one film to train on; a film is told from others, so two are needed")
    say = say or _say_on_stderr
    uids = pool.get_uids()
    described = described | {"data": _describe_data(stores, uids, plan.begun_from)}
    checkpoints = folder / "checkpoints"
    device = choose_device()
    method.to(device)
    method.to(memory_format=torch.channels_last)
    copy_from_first_rank(method)
    if training.sync_batch_norm:
        synchronise_batch_norm(method)
    optimizers = build_optimizers(method, training)
    loop = LoopState(method, training)
    newest = find_checkpoint(checkpoints)
    if newest is None and (folder / "config.json").exists():
        check_same_configuration(folder, read_run_config(folder), described)
    first_step = restore_checkpoint(newest, method, optimizers, described, loop) if newest else 0
    if first_step >= training.steps and newest:
        if rank == 0:
            say(f"{folder} is finished already, at step {first_step}; nothing was trained")
        return newest
    if len(pool) < training.batch and rank == 0:
        say(f"the {len(pool)} films are fewer than a batch of {training.batch}: a film is told from itself then")
    views = read_view_batches(
        pool, plan.views, batch=training.batch, seed=training.seed, first_step=first_step, steps=training.steps,
        rank=rank, world=world, threads=training.loader_threads, positives=plan.positives,
    )  # fmt: skip
    batches = (_normalise(batch, plan.pixels, device) for batch in views)
    end: RunEnd = "failed"
    with (
        explain_full_disk(f"{folder}; free some, then the same command continues it"),
        explain_lost_rank(),
        catch_stop_signals() as get_stop_signal,
    ):
        log = RunLog(folder, described, uids, first_step, tracking, say) if rank == 0 else None
        watch = None
        try:
            if log:
                watch = Watch(log, method, stores, training, plan.views, plan.pixels, training.batch // world, device)
            for report in train(method, batches, optimizers, training, first_step, loop):
                step, last = report.step, report.step == training.steps
                if watch:
                    watch.look(report)
                collapsed = COLLAPSED if watch and training.stop_on_collapse and watch.has_collapsed else 0
                # one rank may hear the signal a step earlier, and the first alone knows of a collapse
                stopped = agree_on_largest(get_stop_signal() or collapsed, device)
                if watch:
                    if on_step:
                        on_step(report, watch.probe)
                    if last or stopped or step % training.checkpoint_every == 0:
                        write_checkpoint(
                            checkpoints, step, method, optimizers, described, training.keep_checkpoints, loop
                        )
                if stopped and not last:
                    wait_for_ranks()  # torchrun ends all ranks as soon as one has gone: not while the first one writes
                    end = "failed" if stopped == COLLAPSED else "stopped"
                    raise _explain_stop(stopped, step, training.steps)
            end = "finished"
        finally:
            views.close()
            if log:
                log.close(end)
    wait_for_ranks()
    return name_checkpoint(checkpoints, training.steps)


def _normalise(batch: Tensor, pixels: PixelScale, device: torch.device) -> Tensor:
    return (batch.to(device, non_blocking=True).float() / 255 - pixels.mean) / pixels.std


def _explain_stop(number: int, step: int, steps: int) -> ChessError:
    if number == COLLAPSED:
        return ChessError(f"stopped at step {step} of {steps}: collapse; begin a new run with a lower learning rate")
    return Stopped(number, f"stopped at step {step} of {steps}; the same command continues it")


def _describe_data(stores: Sequence[Store], uids: Sequence[str], begun_from: str) -> dict[str, Any]:
    named = [{"store": store.path.name, "version": store.version, "films": len(store)} for store in stores]
    # a store ingested anew may bear the old name and count, but not the old films in the old splits
    films = {"films": len(uids), "uids_sha256": hash_uids(uids)}
    return {"stores": named, **films} | ({"begun_from_sha256": begun_from} if begun_from else {})


def hash_uids(uids: Sequence[str]) -> str:
    """Return the SHA-256 of films' uids, in this order: what tells one pool of films from another."""
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()


def _say_on_stderr(line: str) -> None:
    print(f"chess-cxr: {line}", file=sys.stderr, flush=True)


def read_run_config(folder: Path) -> dict[str, Any]:
    """Read a run's resolved configuration."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise UsageError(f"{folder} is not a run; make one with: chess-cxr pretrain STORE --out {folder}") from None
    return config


def describe(config: Any) -> dict[str, Any]:
    """Turn a configuration dataclass into JSON-ready values."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return described
