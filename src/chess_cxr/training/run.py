"""A run and its folder: configuration, metrics, checkpoints; the same call again continues it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from chess_cxr.device import choose_device
from chess_cxr.files.whole import explain_full_disk, hold
from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.checkpoint import (
    check_same_configuration,
    find_checkpoint,
    name_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
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

COLLAPSED = 1000  # among the numbers of signals that ranks agree on
OnStep = Callable[[StepReport, Mapping[str, float]], None]


@dataclass(frozen=True)
class Rank:
    """One process of a run: its number of so many, and the device it trains on."""

    number: int
    world: int
    device: torch.device


class Watcher(Protocol):
    """The first rank's eye on a run.  probe: its newest numbers.  has_collapsed: whether the run is worth no more."""

    @property
    def probe(self) -> Mapping[str, float]:
        """The newest numbers of what it looked at."""

    @property
    def has_collapsed(self) -> bool:
        """Whether training has failed in a way that does not mend itself."""

    def look(self, report: StepReport) -> None:
        """Look at a step that was made, and log what there is to tell."""


@dataclass(frozen=True)
class RunInputs:
    """What a run trains on, and how it is watched.

    uids: of the films it trains on.  open_batches: from the first step that is to be made, this rank's batches in
    order.  open_watch: the first rank's watcher.  groups: parameter groups as `build_optimizers` takes them.
    complete: gives a configuration of an earlier version the entries that it did not know, at their defaults.
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
    say: Callable[[str], None] | None = None,
    device: str = "auto",
) -> Path:
    """Train `method` in `folder`, or continue what stands there; return the last checkpoint.

    described: the resolved configuration as JSON-ready values; a folder continues only under the same one.
    on_step: gets every step's report and the watcher's newest numbers.  tracking: where numbers go beside
    `metrics.jsonl`.  say: told one line for what must not be overlooked; stderr by default.
    device: as `choose_device` takes it.
    Raises `Stopped` after a signal, and `ChessError` after a collapse that is to end the run, once the checkpoint is
    written.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    tracking, say = tracking or TrackingConfig(), say or say_on_stderr
    check_training_config(training)
    check_tracking(tracking)
    rank = Rank(*join_ranks(device), choose_device(device))
    checkpoints = folder / "checkpoints"
    method.to(rank.device)
    method.to(memory_format=torch.channels_last)
    copy_from_first_rank(method)
    if training.sync_batch_norm:
        synchronise_batch_norm(method)
    optimizers = build_optimizers(method, training, inputs.groups)
    loop = LoopState(method, training)
    newest = find_checkpoint(checkpoints)
    if newest is None and (folder / "config.json").exists():
        check_same_configuration(folder, read_run_config(folder), described, inputs.complete)
    first_step = restore_checkpoint(newest, method, optimizers, described, loop, inputs.complete) if newest else 0
    if first_step >= training.steps and newest:
        if rank.number == 0:
            say(f"{folder} is finished already, at step {first_step}; nothing was trained")
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
                step, last = report.step, report.step == training.steps
                if watch:
                    watch.look(report)
                collapsed = COLLAPSED if watch and training.stop_on_collapse and watch.has_collapsed else 0
                # one rank may hear the signal a step earlier, and the first alone knows of a collapse
                stopped = agree_on_largest(get_stop_signal() or collapsed, rank.device)
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
            batches.close()
            if log:
                log.close(end)
    wait_for_ranks()
    return name_checkpoint(checkpoints, training.steps)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, UsageError(f"another process trains in {folder}; wait for it or choose another --out")):
        yield


def _explain_stop(number: int, step: int, steps: int) -> ChessError:
    if number == COLLAPSED:
        return ChessError(f"stopped at step {step} of {steps}: collapse; begin a new run with a lower learning rate")
    return Stopped(number, f"stopped at step {step} of {steps}; the same command continues it")


def say_on_stderr(line: str) -> None:
    """Tell the user one line."""
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


def hash_uids(uids: Sequence[str]) -> str:
    """Return the SHA-256 of films' uids, in this order: what tells one pool of films from another."""
    return hashlib.sha256("\n".join(uids).encode("utf-8", "surrogateescape")).hexdigest()
