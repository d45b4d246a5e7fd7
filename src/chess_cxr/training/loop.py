"""The one loop that trains every method and task, adversarial ones included."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.distributed import average_gradients


@dataclass(frozen=True)
class TrainingConfig:
    """How a method is optimised.

    batch: films a step over all ranks.  warmup: share of the steps with a linearly rising rate.
    clip_norm: largest gradient norm, 0 for no clipping.  loader_threads: batches prepared at a time.
    """

    steps: int
    batch: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.0
    clip_norm: float = 0.0
    seed: int = 0
    loader_threads: int = 1
    log_every: int = 20
    probe_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2


class Method(Protocol):
    """What the loop needs of a pre-training method or a downstream task; it is also an `nn.Module`."""

    signals: Mapping[str, float]

    def get_parameters(self) -> Mapping[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""

    def losses(self, batch: Any) -> Iterable[tuple[str, Tensor]]:
        """Yield (name, scalar loss) lazily: each is stepped before the next is computed."""

    def after_step(self) -> None:
        """Update what no gradient reaches: momentum encoder, queue."""


@dataclass(frozen=True)
class StepReport:
    """What one optimisation step did; `step` counts completed steps."""

    step: int
    losses: dict[str, float]
    gradient_norms: dict[str, float]
    learning_rate: float
    wait_seconds: float
    seconds: float


def build_optimizers(method: Method, config: TrainingConfig) -> dict[str, Optimizer]:
    """Build one optimiser for each named loss."""
    optimizers: dict[str, Optimizer] = {}
    for name, parameters in method.get_parameters().items():
        if config.optimizer == "sgd":
            rule = {"lr": config.learning_rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
            optimizers[name] = torch.optim.SGD(parameters, **rule)
        else:
            optimizers[name] = torch.optim.AdamW(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay
            )
    return optimizers


def compute_learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    warmup = config.warmup * config.steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1.0, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    method: Method,
    batches: Iterator[Any],
    optimizers: Mapping[str, Optimizer],
    config: TrainingConfig,
    first_step: int = 0,
) -> Iterator[StepReport]:
    """Run one optimisation step for each batch, yielding a report after each.

    Raises `ChessError` at the first loss that is not finite, before it can reach the weights.
    """
    parameters = method.get_parameters()
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = compute_learning_rate(config, step)
        losses, norms = {}, {}
        for name, loss in method.losses(batch):
            losses[name] = float(loss.detach())
            if not math.isfinite(losses[name]):
                raise ChessError(f"the {name} loss became {losses[name]} at step {step + 1}; try a lower learning rate")
            norms[name] = _step(optimizers[name], parameters[name], loss, rate, config.clip_norm)
        method.after_step()
        yield StepReport(step + 1, losses, norms, rate, waited, time.perf_counter() - started)


def _step(optimizer: Optimizer, parameters: list[nn.Parameter], loss: Tensor, rate: float, clip: float) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return float(norm)


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a question the loop asks after each step; a second one kills as usual."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        for number in before:
            signal.signal(number, note)
    except ValueError:  # signals belong to the main thread: elsewhere nothing can be caught
        yield lambda: False
        return
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_training_config(config: TrainingConfig) -> None:
    """Raise `UsageError` for numbers that cannot train."""
    if config.steps < 1 or config.batch < 2:
        raise UsageError("training needs at least 1 step and a batch of at least 2 films")
    if not (config.learning_rate > 0 and 0 <= config.warmup < 1):
        raise UsageError("training needs a learning rate above 0 and a warmup share of 0 or more, below 1")
