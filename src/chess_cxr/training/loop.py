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
from chess_cxr.training.distributed import agree_on_mean, average_gradients


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

    @property
    def signals(self) -> Mapping[str, float]:
        """Numbers of the newest step that are worth watching."""

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
            optimizers[name] = torch.optim.SGD(
                parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            optimizers[name] = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
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

    Losses are means over the ranks.  Raises `ChessError`, on every rank, at the first loss or gradient that is not
    finite on any, before it can reach the weights.
    """
    parameters = method.get_parameters()
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = compute_learning_rate(config, step)
        losses: dict[str, float] = {}
        norms: dict[str, float] = {}
        for name, loss in method.losses(batch):
            losses[name] = agree_on_mean(float(loss.detach()), loss.device)
            _check_finite(losses[name], f"{name} loss", step + 1)
            norms[name] = _compute_gradients(optimizers[name], parameters[name], loss, config.clip_norm)
            _check_finite(norms[name], f"gradient of the {name} loss", step + 1)
            for group in optimizers[name].param_groups:
                group["lr"] = rate
            optimizers[name].step()
        method.after_step()
        yield StepReport(step + 1, losses, norms, rate, waited, time.perf_counter() - started)


def _compute_gradients(optimizer: Optimizer, parameters: list[nn.Parameter], loss: Tensor, clip: float) -> float:
    """Fill the gradients, mean over the ranks and clipped; return their norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    average_gradients(parameters)
    return float(nn.utils.clip_grad_norm_(parameters, clip or math.inf))


def _check_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise ChessError(f"the {what} became {value} at step {step}; try a lower learning rate")


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a question the loop asks after each step; a second one kills as usual."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

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
    for name in ("log_every", "probe_every", "checkpoint_every", "keep_checkpoints", "loader_threads"):
        if getattr(config, name) < 1:
            raise UsageError(f"training.{name} must be at least 1")
    if config.seed < 0 or config.clip_norm < 0:
        raise UsageError("training.seed and training.clip_norm must be 0 or more")
