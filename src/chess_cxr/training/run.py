"""Train in a run folder with configuration, metrics and checkpoints; the same call again continues the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from chess_cxr.device import choose_device
from chess_cxr.files.whole import explain_full_disk, hold, read_json, write_atomically
from chess_cxr.progress import Say, say_on_stderr
from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.checkpoint import (
    check_same_configuration,
    find_checkpoint,
    name_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from chess_cxr.training.compiled import compile_networks
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.distributed import (
    agree_on_largest,
    copy_from_first_rank,
    explain_lost_rank,
    join_ranks,
    wait_for_ranks,
)
from chess_cxr.training.loop import (
    LoopState,
    Method,
    StepReport,
    TrainingConfig,
    build_optimizers,
    check_training_config,
    train,
)
from chess_cxr.training.run_log import RunLog
from chess_cxr.training.stop import Stopped, catch_stop_signals
from chess_cxr.training.sync_norm import synchronise_batch_norm
from chess_cxr.training.trackers import RunEnd, check_tracking

COLLAPSED, OVER = 1000, 2000  # stand for a collapse and a finished run where ranks agree on the number of a signal
OnStep = Callable[[StepReport, Mapping[str, float]], None]


@dataclass(frozen=True)
class Rank:
    """One process of a run: its number, the number of all, and its device."""

    number: int
    world: int
    device: torch.device


class Watcher(Protocol):
    """Watches a run on the first rank: measures, logs and warns; it may end the run."""

    @property
    def probe(self) -> Mapping[str, float]:
        """The newest measurements."""

    @property
    def has_collapsed(self) -> bool:
        """Whether the representation has collapsed for good."""

    @property
    def is_over(self) -> bool:
        """Whether to finish before the last step, as results on held-out films no longer improve."""

    def look(self, report: StepReport) -> None:
        """Measure and log what is due after a step."""


@dataclass(frozen=True)
class RunInputs:
    """The data of a run and its watcher.

    uids: uids of the training films.  open_batches: (first step, rank) -> this rank's batches in order.
    open_watch: builds the first rank's watcher.  groups: parameter groups for `build_optimizers`.
    complete: adds to an earlier version's configuration the entries it did not know, at their defaults.
    """

    uids: list[str]
    open_batches: Callable[[int, Rank], Generator[Any, None, None]]
    open_watch: Callable[[RunLog, Rank], Watcher]
    groups: Mapping[str, list[dict[str, Any]]] | None = None
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def train_in_folder(
    folder: Path,
    method: Method,
    training: TrainingConfig,
    inputs: RunInputs,
    described: dict[str, Any],
    on_step: OnStep | None = None,
    tracking: TrackingConfig | None = None,
    say: Say | None = None,
    device: str = "auto",
) -> Path:
    """Train `method` in `folder`, or continue the run there; return the path of the last checkpoint.

    described: the resolved configuration as JSON values; a folder continues only under the same one.
    on_step: called with every step's report and the watcher's newest numbers.  tracking: trackers besides
    `metrics.jsonl`.  say: called with each important line, by default prints it.  device: a name for `choose_device`.
    Raises `Stopped` after a signal and `ChessError` after a collapse with `stop_on_collapse`, once the checkpoint is
    written.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    tracking, say = tracking or TrackingConfig(), say or say_on_stderr
    check_training_config(training)
    check_tracking(tracking)
    refuse_foreign_folder(folder)
    rank, checkpoints = _place(method, training, device), folder / "checkpoints"
    optimizers = build_optimizers(method, training, inputs.groups)
    loop = LoopState(method, training)
    newest = find_checkpoint(checkpoints)
    if newest is None and (folder / "config.json").exists():
        check_same_configuration(folder, read_run_config(folder), described, inputs.complete)
    first_step = restore_checkpoint(newest, method, optimizers, described, loop, inputs.complete) if newest else 0
    if newest and (loop.is_over or first_step >= training.steps):
        if rank.number == 0:
            say(f"{folder} is finished already, at step {first_step}; nothing was trained")
        wait_for_ranks()  # the first rank may remove the folder afterwards, so let all read it
        return newest
    batches = inputs.open_batches(first_step, rank)
    end: RunEnd = "failed"
    with (
        explain_full_disk(f"{folder}; free some, then the same command continues it"),
        explain_lost_rank(),
        _hold(folder) if rank.number == 0 else nullcontext(),
        catch_stop_signals() as get_stop_signal,
    ):
        log = RunLog(folder, described, inputs.uids, first_step, tracking, say) if rank.number == 0 else None
        watch = None
        try:
            if log:
                watch = inputs.open_watch(log, rank)
                log.restart_clock()
            for report in train(method, batches, optimizers, training, first_step, loop):
                step = report.step
                if watch:
                    watch.look(report)
                collapsed = COLLAPSED if watch and training.stop_on_collapse and watch.has_collapsed else 0
                over = OVER if step == training.steps or (watch and watch.is_over) else 0
                # one rank may get the signal a step earlier, and only the first rank has a watcher
                stopped = agree_on_largest(over or get_stop_signal() or collapsed) if report.is_read else 0
                loop.is_over = stopped == OVER
                if watch:
                    if on_step:
                        on_step(report, watch.probe)
                    if stopped or step % training.checkpoint_every == 0:
                        write_checkpoint(
                            checkpoints, step, method, optimizers, described, training.keep_checkpoints, loop
                        )
                if loop.is_over:
                    break
                if stopped:
                    wait_for_ranks()  # torchrun kills all ranks when one exits: let the first one finish writing
                    end = "failed" if stopped == COLLAPSED else "stopped"
                    raise _explain_stop(stopped, step, training.steps)
            end = "finished"
        finally:
            batches.close()
            if log:
                log.close(end)
    wait_for_ranks()
    return name_checkpoint(checkpoints, step)


def _place(method: nn.Module, training: TrainingConfig, device: str) -> Rank:
    """Put a method on this rank's device, equal on all ranks; return the rank."""
    rank = Rank(*join_ranks(device), choose_device(device))
    method.to(rank.device)
    method.to(memory_format=torch.channels_last)
    copy_from_first_rank(method)
    if training.sync_batch_norm:
        synchronise_batch_norm(method)
    if training.compile:
        compile_networks(method, rank.device)
    return rank


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, UsageError(f"another process trains in {folder}; wait for it or choose another --out")):
        yield


@contextmanager
def prepare_folder(folder: Path, described: dict[str, Any]) -> Iterator[None]:
    """Write a run's configuration and lock its folder, for work before the first step that a later call can reuse.

    Call it on every rank, after `join_ranks`.  Raises UsageError if the folder holds a run of another configuration.
    """
    first = join_ranks()[0] == 0
    wait_for_ranks()  # until all have checked that the folder is free
    if (folder / "config.json").exists():
        check_same_configuration(folder, read_run_config(folder), described)
    with (
        explain_full_disk(f"{folder}; free some, then the same command continues it"),
        explain_lost_rank(),
        _hold(folder) if first else nullcontext(),
    ):
        if first:
            write_atomically(folder / "config.json", json.dumps(described, indent=1).encode())
        yield
        wait_for_ranks()


def _explain_stop(number: int, step: int, steps: int) -> ChessError:
    if number == COLLAPSED:
        return ChessError(f"stopped at step {step} of {steps}: collapse; begin a new run with a lower learning rate")
    return Stopped(number, f"stopped at step {step} of {steps}; the same command continues it")


def read_run_config(folder: Path) -> dict[str, Any]:
    """Read a run's resolved configuration; raises `UsageError` for another folder, or one whose file is damaged."""
    file = folder / "config.json"
    if not file.is_file() or (folder / "model.safetensors").exists():
        raise UsageError(f"{folder} is not a run; make one with: chess-cxr pretrain STORE --out RUN")
    if not (config := read_json(file)):
        raise UsageError(f"{file} is damaged: it is no JSON object; restore it from a copy")
    return config


def refuse_foreign_folder(folder: Path) -> None:
    """Raise `UsageError` unless a folder is free for a run, or holds one."""
    is_run = (folder / "config.json").is_file() and not (folder / "model.safetensors").exists()
    if is_run or not folder.exists():
        return
    if not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UsageError(f"{folder} exists already and is no run; choose another --out")


def describe(config: Any) -> dict[str, Any]:
    """Turn a configuration dataclass into JSON values."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return described


def hash_uids(uids: Sequence[str]) -> str:
    """Return the SHA-256 of the uids in this order; it identifies a pool of films."""
    return hashlib.sha256("\n".join(uids).encode("utf-8", "surrogateescape")).hexdigest()
