"""A run and its folder: configuration, metrics, checkpoints; the same call again continues it."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.batches import build_film_pool, read_view_batches
from chess_cxr.training.checkpoint import (
    check_same_configuration,
    explain_full_disk,
    find_checkpoint,
    name_checkpoint,
    restore_checkpoint,
    write_atomically,
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
from chess_cxr.training.events import EventFile
from chess_cxr.training.loop import (
    LoopState,
    Method,
    StepReport,
    TrainingConfig,
    build_optimizers,
    check_training_config,
    train,
)
from chess_cxr.training.probe import LabelledFilms, probe_encoder, read_labelled_films
from chess_cxr.training.stop import Stopped, catch_stop_signals
from chess_cxr.training.sync_norm import synchronise_batch_norm
from chess_cxr.views import ViewConfig


class PretrainMethod(Method, Protocol):
    """A method with an encoder: what a run probes and exports."""

    @property
    def encoder(self) -> nn.Module:
        """The network that is pre-trained: normalised [B, 1, H, W] -> [B, D]."""


@dataclass(frozen=True)
class PixelScale:
    """Mean and standard deviation of the pixels in [0, 1] that training subtracts and divides by."""

    mean: float
    std: float


@dataclass(frozen=True)
class RunPlan:
    """All that one pre-training run needs beside its method."""

    training: TrainingConfig
    views: ViewConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")


def pretrain_run(
    folder: Path,
    method: PretrainMethod,
    stores: Sequence[Store],
    plan: RunPlan,
    described: dict[str, Any],
    on_step: Callable[[StepReport, dict[str, float]], None] | None = None,
) -> Path:
    """Train `method` on view pairs from `stores` in `folder`, or continue what stands there; return its checkpoint.

    described: the resolved configuration as JSON-ready values; a folder continues only under the same one, on the
    same films.  on_step gets every step's report and the newest probe.  Raises `Stopped` after a
    signal, once its checkpoint is written.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    training = plan.training
    check_training_config(training)
    rank, world = join_ranks()
    pool = build_film_pool(stores, plan.splits)
    uids = pool.get_uids()
    described = described | {"data": _describe_data(stores, uids)}
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
        return newest
    views = read_view_batches(
        pool, plan.views, batch=training.batch, seed=training.seed, first_step=first_step,
        steps=training.steps, rank=rank, world=world, threads=training.loader_threads,
    )  # fmt: skip
    batches = (_normalise(batch, plan.pixels, device) for batch in views)
    labelled = read_labelled_films(stores, plan.views.size) if rank == 0 else None
    probe: dict[str, float] = {}
    with (
        explain_full_disk(f"{folder}; free some, then the same command continues it"),
        explain_lost_rank(),
        catch_stop_signals() as get_stop_signal,
    ):
        log = RunLog(folder, described, uids, first_step) if rank == 0 else None
        try:
            for report in train(method, batches, optimizers, training, first_step, loop):
                step, last = report.step, report.step == training.steps
                stopped = agree_on_largest(get_stop_signal(), device)  # one rank may hear the signal a step earlier
                if log:
                    values: dict[str, float] = {}
                    if last or step % training.log_every == 0:
                        values = log.summarise(report, method.signals, training.batch)
                    if labelled and (last or step % training.probe_every == 0):
                        probe = _probe(method.encoder, labelled, plan)
                        values |= probe
                    if values:
                        log.write(step, values)
                    if on_step:
                        on_step(report, probe)
                    if last or stopped or step % training.checkpoint_every == 0:
                        write_checkpoint(
                            checkpoints, step, method, optimizers, described, training.keep_checkpoints, loop
                        )
                if stopped and not last:
                    wait_for_ranks()  # torchrun ends all ranks as soon as one has gone: not while the first one writes
                    raise Stopped(stopped, f"stopped at step {step} of {training.steps}; the same command continues it")
        finally:
            views.close()
            if log:
                log.close()
    wait_for_ranks()
    return name_checkpoint(checkpoints, training.steps)


def _normalise(batch: Tensor, pixels: PixelScale, device: torch.device) -> Tensor:
    return (batch.to(device, non_blocking=True).float() / 255 - pixels.mean) / pixels.std


def _probe(encoder: nn.Module, labelled: LabelledFilms, plan: RunPlan) -> dict[str, float]:
    signals = probe_encoder(encoder, labelled, plan.pixels.mean, plan.pixels.std)
    return {f"probe/{name}": value for name, value in signals.items()}


def _describe_data(stores: Sequence[Store], uids: Sequence[str]) -> dict[str, Any]:
    named = [{"store": store.path.name, "version": store.version, "films": len(store)} for store in stores]
    # a store ingested anew may bear the old name and count, but not the old films in the old splits
    return {"stores": named, "films": len(uids), "uids_sha256": hashlib.sha256("\n".join(uids).encode()).hexdigest()}


class RunLog:
    """Writes a run's `config.json`, `environment.json`, `metrics.jsonl`, training uids and TensorBoard events."""

    def __init__(self, folder: Path, described: dict[str, Any], uids: list[str], first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(described, indent=1).encode())
        write_atomically(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
        write_atomically(folder / "training_uids.txt", "\n".join(uids).encode())
        metrics = folder / "metrics.jsonl"
        kept = [line for line in _read_whole_lines(metrics) if json.loads(line)["step"] <= first_step]
        write_atomically(metrics, "".join(line + "\n" for line in kept).encode())
        self._metrics = metrics.open("a")
        self._events = EventFile(folder / "tensorboard", first_step)
        self._started, self._clock_step = time.perf_counter(), first_step

    def summarise(self, report: StepReport, signals: Mapping[str, float], batch: int) -> dict[str, float]:
        """Name the numbers of the newest step, with the speed since the last summary."""
        now = time.perf_counter()
        speed = batch * (report.step - self._clock_step) / max(now - self._started, 1e-9)
        self._started, self._clock_step = now, report.step
        values = {f"loss/{name}": loss for name, loss in report.losses.items()}
        values |= {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items()}
        values |= {} if report.problem else signals  # a skipped step's may be NaN, which JSON does not know
        values |= {"skipped_steps": report.skipped_steps, "overflowed_steps": report.overflowed_steps}
        values |= {"learning_rate": report.learning_rate, "images_per_second": speed}
        return values | {"data_wait_share": report.wait_seconds / max(report.seconds, 1e-9)}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write named numbers of one step to `metrics.jsonl` and TensorBoard."""
        self._metrics.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._metrics.flush()
        self._events.write(step, values)

    def close(self) -> None:
        """Flush and close all files."""
        try:
            self._metrics.close()
        finally:
            self._events.close()


def _read_whole_lines(path: Path) -> list[str]:
    """Read the lines that a killed run finished writing."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def describe_environment() -> dict[str, Any]:
    """Name the versions and the hardware a run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


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
