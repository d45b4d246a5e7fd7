"""The one loop that trains every method and task, adversarial ones included."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.distributed import agree_on_mean, average_gradients
from chess_cxr.training.precision import LossScaling, Precision, compute_losses
from chess_cxr.training.skipped import NormStatistics, SkippedSteps, keep_frozen

MOST_STEPS = 10**12  # a slip of the keyboard, not a run


@dataclass(frozen=True)
class TrainingConfig:
    """How a method is optimised.

    batch: films a step over all ranks.  warmup: share of the steps with a linearly rising rate.
    clip_norm: largest gradient norm, 0 for no clipping.  loader_threads: batches prepared at a time.
    precision: of the networks' arithmetic; weights, gradients and optimiser are float32 always.
    frozen_steps: steps at the start in which only the heads learn, the encoder being frozen.
    sync_batch_norm: BatchNorm takes its statistics over all ranks; for methods other than MoCo on many ranks.
    max_skipped: this many steps in a row with a loss or gradient that is not finite end the run.
    stop_on_collapse: end the run, its checkpoint written, once all films have become alike (`probe.CollapseAlarm`).
    """

    steps: int
    batch: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.0
    clip_norm: float = 0.0
    precision: Precision = "float32"
    frozen_steps: int = 0
    sync_batch_norm: bool = False
    max_skipped: int = 10
    stop_on_collapse: bool = False
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
        """Yield (name, scalar loss) lazily: each is stepped before the next is computed.

        Nothing that lasts is changed here but running statistics of normalisation layers: the step may be skipped.
        """

    def after_step(self) -> None:
        """Update what no gradient reaches: momentum encoder, queue."""


@dataclass(frozen=True)
class StepReport:
    """What one optimisation step did; `step` counts completed steps, those without effect included.

    losses, gradient_norms: before clipping and unscaled; only what was finite.
    problem: why this step was skipped, "" if it was made.  skipped_steps, overflowed_steps: of the run so far, for
    losses or gradients that were not finite, and for a float16 scale that was too large.
    """

    step: int
    losses: dict[str, float]
    gradient_norms: dict[str, float]
    learning_rate: float
    wait_seconds: float
    seconds: float
    problem: str = ""
    skipped_steps: int = 0
    overflowed_steps: int = 0


class LoopState:
    """What the loop itself remembers from step to step, beside the method and its optimisers.

    is_over: whether no step is left to be made, be it before the last one.
    """

    def __init__(self, method: Method, config: TrainingConfig) -> None:
        parameters = method.get_parameters()
        self.device = next(iter(parameters.values()))[0].device
        self.scaling = LossScaling(parameters, config.precision, self.device)
        self.skipped = SkippedSteps()
        self.is_over = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        parts = {"scaling": self.scaling.state_dict(), "skipped": self.skipped.state_dict()}
        named = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        return named | {"is_over": torch.tensor(self.is_over)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what `state_dict` returned."""
        for name, part in (("scaling.", self.scaling), ("skipped.", self.skipped)):
            part.load_state_dict(
                {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            )
        self.is_over = bool(state.get("is_over", False))  # version 0.1 wrote none


def build_optimizers(
    method: Method, config: TrainingConfig, groups: Mapping[str, list[dict[str, Any]]] | None = None
) -> dict[str, Optimizer]:
    """Build one optimiser for each named loss.

    groups: by loss, torch's parameter groups in place of `method.get_parameters`; a group's `rate_scale` is its share
    of the learning rate, 1 by default.
    """
    optimizers: dict[str, Optimizer] = {}
    for name, parameters in (groups or method.get_parameters()).items():
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
    state: LoopState | None = None,
) -> Iterator[StepReport]:
    """Run one optimisation step for each batch, yielding a report after each.

    Losses are means over the ranks.  A loss or gradient that is not finite on any rank makes all of them skip what is
    left of the step, before it can reach weights, optimiser, `after_step` or running statistics; where a step has
    several losses, those stepped before stay stepped.  state: to continue from, fresh by default.
    Raises `ChessError`, on every rank, after `config.max_skipped` such steps in a row.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    state = state or LoopState(method, config)
    statistics = NormStatistics(method)
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = compute_learning_rate(config, step)
        statistics.keep()
        with keep_frozen(get_trunk(method)) if step < config.frozen_steps else nullcontext():
            made = _make_step(method, batch, optimizers, config, rate, state)
        state.skipped.count(made.problem, made.overflowed)
        if made.problem:
            statistics.put_back()
            _check_patience(made.problem, step + 1, state.skipped.in_a_row, config.max_skipped)
        yield StepReport(
            step + 1, made.losses, made.norms, rate, waited, time.perf_counter() - started,
            made.problem, state.skipped.total, state.skipped.overflowed,
        )  # fmt: skip


@dataclass
class _Step:
    """A step as far as it has come."""

    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    overflowed: bool = False


def _make_step(
    method: Method,
    batch: Any,
    optimizers: Mapping[str, Optimizer],
    config: TrainingConfig,
    rate: float,
    state: LoopState,
) -> _Step:
    """Step each loss as it comes, then let the method follow; leave off at what is not finite."""
    made = _Step()
    for name, loss in compute_losses(method.losses(batch), config.precision, state.device):
        value = agree_on_mean(float(loss.detach()), loss.device)
        if not math.isfinite(value):
            made.problem = f"the {name} loss became {value}"
            return made
        made.losses[name] = value
        optimizer = optimizers[name]
        norm = _compute_gradients(name, optimizer, loss, config.clip_norm, state.scaling)
        if not math.isfinite(norm):
            made.problem = f"the gradient of the {name} loss became {norm}"
            made.overflowed = state.scaling.may_overflow(name)
        state.scaling.update(name)
        if made.problem:
            return made
        made.norms[name] = norm
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        optimizer.step()
    method.after_step()
    return made


def _compute_gradients(name: str, optimizer: Optimizer, loss: Tensor, clip: float, scaling: LossScaling) -> float:
    """Fill the gradients, mean over the ranks and clipped; return their norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaling.scale(name, loss))
    average_gradients(parameters)
    scaling.unscale(name, optimizer)
    return float(nn.utils.clip_grad_norm_(parameters, clip or math.inf))


def _check_patience(problem: str, step: int, in_a_row: int, most: int) -> None:
    if in_a_row >= most:
        skipped = f", after {in_a_row - 1} skipped before it" if in_a_row > 1 else ""
        raise ChessError(f"{problem} at step {step}{skipped}; try a lower learning rate")


def get_trunk(method: Method) -> nn.Module:
    """Return the network that `frozen_steps` freezes; raise `UsageError` where a method has none."""
    trunk = getattr(method, "encoder", None)
    if not isinstance(trunk, nn.Module):
        raise UsageError("training.frozen_steps freezes a method's encoder, and this method has none; set it to 0")
    return trunk


def check_training_config(config: TrainingConfig) -> None:
    """Raise `UsageError` for numbers that cannot train."""
    if config.steps < 1 or config.batch < 2:
        raise UsageError("training needs at least 1 step and a batch of at least 2 films")
    if max(config.steps, config.batch) > MOST_STEPS:
        raise UsageError(f"training.steps and training.batch can be {MOST_STEPS:,} at most")
    if not (0 < config.learning_rate < math.inf and 0 <= config.warmup < 1):
        raise UsageError("training needs a learning rate above 0 and a warmup share of 0 or more, below 1")
    if not (0 <= config.momentum < 1 and 0 <= config.weight_decay < math.inf):
        raise UsageError("training needs a momentum of 0 or more, below 1, and a weight decay of 0 or more")
    if config.seed >= 2**63:
        raise UsageError("training.seed must be below 2**63")
    for name in ("log_every", "probe_every", "checkpoint_every", "keep_checkpoints", "loader_threads", "max_skipped"):
        if getattr(config, name) < 1:
            raise UsageError(f"training.{name} must be at least 1")
    for name in ("seed", "clip_norm", "frozen_steps"):
        if not getattr(config, name) >= 0:
            raise UsageError(f"training.{name} must be 0 or more")
    if config.precision not in get_args(Precision):
        raise UsageError(f"training.precision must be one of {', '.join(get_args(Precision))}")
