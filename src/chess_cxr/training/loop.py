"""The training loop of every method and task, including adversarial ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.decay import spare_norms
from chess_cxr.training.distributed import average_gradients, average_over_ranks
from chess_cxr.training.late import forget_counts, is_late, read_numbers, update_if
from chess_cxr.training.precision import LossScaling, Precision, compute_losses
from chess_cxr.training.skipped import NormStatistics, SkippedSteps, Verdict, explain_problem, keep_frozen

MOST_STEPS = 10**12  # more is a typing error


@dataclass(frozen=True)
class TrainingConfig:
    """How a method is optimised.

    batch: films per step over all ranks.  warmup: fraction of the steps with a linearly rising learning rate.
    decay_norms: whether weight decay applies to biases and normalisation layers too, see `spare_norms`.
    clip_norm: largest gradient norm, 0 for no clipping.  loader_threads: number of batches prepared in parallel.
    precision: autocast precision of the networks; weights, gradients and optimiser state are always float32.
    frozen_steps: number of first steps that train the heads only and keep the encoder frozen.
    sync_batch_norm: compute BatchNorm statistics over all ranks; for methods other than MoCo.
    max_skipped: end the run after this many steps in a row with a non-finite loss or gradient.
    compile: compile the networks with `torch.compile`, which takes minutes and rounds differently.
    stop_on_collapse: end the run, with a checkpoint, when its representation collapses (`collapse.CollapseAlarm`).
    """

    steps: int
    batch: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms: bool = True
    warmup: float = 0.0
    clip_norm: float = 0.0
    precision: Precision = "float32"
    frozen_steps: int = 0
    sync_batch_norm: bool = False
    max_skipped: int = 10
    stop_on_collapse: bool = False
    compile: bool = False
    seed: int = 0
    loader_threads: int = 1
    log_every: int = 20
    probe_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2


class Method(Protocol):
    """The interface between the loop and a pre-training method or downstream task, which is also an `nn.Module`.

    A method may also have `measured`, its signals as scalar tensors: the loop then reads them together with the losses.
    """

    @property
    def signals(self) -> Mapping[str, float]:
        """The newest step's numbers, for the log."""

    def get_parameters(self) -> Mapping[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""

    def losses(self, batch: Any) -> Iterable[tuple[str, Tensor]]:
        """Yield (name, scalar loss) lazily: the loop steps each loss before it asks for the next.

        May change no lasting state except running statistics of normalisation layers, as the step may be skipped.
        """

    def after_step(self) -> None:
        """Update the state that has no gradient, such as a momentum encoder or a queue, in place."""


@dataclass(frozen=True)
class StepReport:
    """One optimisation step; `step` counts all steps up to this one, skipped ones included.

    losses, gradient_norms: finite values only, unscaled and before clipping.
    problem: why the step was skipped, "" if it was not.  skipped_steps, overflowed_steps: number of the run's steps so
    far that were skipped for a non-finite loss or gradient, and for too large a float16 scale.
    newest_skipped: the newest step that was skipped for a non-finite value, and why; (0, "") for none.
    signals: the method's numbers, every `log_every` steps and at the last.
    is_read: whether these numbers are of this step; a GPU's are read every `log_every` steps, and before probes and
    checkpoints, and steps in between report the ones read last.
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
    newest_skipped: tuple[int, str] = (0, "")
    signals: Mapping[str, float] = field(default_factory=dict)
    is_read: bool = True


class LoopState:
    """The loop's own state, besides the method and its optimisers: loss scales and counts of skipped steps.

    is_over: whether training is finished, be it before its last step.  is_late: whether numbers are read late.
    """

    def __init__(self, method: Method, config: TrainingConfig) -> None:
        parameters = method.get_parameters()
        self.device = next(iter(parameters.values()))[0].device
        self.scaling = LossScaling(parameters, config.precision, self.device)
        self.skipped = SkippedSteps(self.device)
        self.is_over, self.is_late = False, is_late(self.device)

    def goes_on(self, verdict: Verdict) -> bool:
        """Return whether a step is to be continued: as long as it is fine, or not known not to be."""
        return self.is_late or bool(verdict.fine)

    def update(self, fine: Tensor, update: Callable[[], object], list_tensors: Callable[[], list[Tensor]]) -> None:
        """Call `update`, which changes the listed tensors, unless a step is not fine."""
        if self.is_late:
            update_if(fine, update, list_tensors)
        else:
            update()  # where nothing is late, a step that is not fine does not come so far

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors, for a checkpoint."""
        parts = {"scaling": self.scaling.state_dict(), "skipped": self.skipped.state_dict()}
        named = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        return named | {"is_over": torch.tensor(self.is_over)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, part in (("scaling.", self.scaling), ("skipped.", self.skipped)):
            own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            part.load_state_dict(own)
        self.is_over = bool(state.get("is_over", False))  # version 0.1 wrote none


def build_optimizers(
    method: Method, config: TrainingConfig, groups: Mapping[str, list[dict[str, Any]]] | None = None
) -> dict[str, Optimizer]:
    """Build one optimiser for each named loss.

    groups: torch's parameter groups of each loss, instead of `method.get_parameters`; a group's `rate_scale`, 1 by
    default, multiplies the learning rate.
    """
    optimizers: dict[str, Optimizer] = {}
    # a fused AdamW counts its steps on the device, where they can be taken back
    fused = True if is_late(next(iter(method.get_parameters().values()))[0].device) else None
    for name, given in (groups or method.get_parameters()).items():
        parameters = given if config.decay_norms else spare_norms(given)
        if config.optimizer == "sgd":
            optimizers[name] = torch.optim.SGD(
                parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            optimizers[name] = torch.optim.AdamW(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
            )
    return optimizers


def compute_learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017)."""
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
    """Run one optimisation step per batch and yield its report.

    Losses are means over the ranks.  If a loss or gradient is not finite on any rank, all ranks skip the rest of the
    step: weights, optimiser and running statistics keep their values and `after_step` is not called (on a GPU, which
    nobody waits for, it is called and what it changed is restored).  Losses of the same step that were stepped earlier
    remain stepped.  state: the loop's state to continue from.
    Raises `ChessError`, on every rank, after `config.max_skipped` such steps in a row; on a GPU, where the steps after
    them change nothing, when the numbers are read.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    state = state or LoopState(method, config)
    statistics = NormStatistics(method)
    forget_counts(method)
    report = StepReport(first_step, {}, {}, 0.0, 0.0, 0.0)
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = compute_learning_rate(config, step)
        statistics.keep()
        with keep_frozen(get_trunk(method)) if step < config.frozen_steps else nullcontext():
            made = _make_step(method, batch, optimizers, config, rate, state)
        state.skipped.count(made.verdict, step + 1)
        if state.is_late or not state.goes_on(made.verdict):
            statistics.put_back(made.verdict.fine)
        if is_read := not state.is_late or is_due(config, step + 1):
            before, report = report, _read_step(made, method, list(optimizers), config, state.skipped, step + 1)
            if (report.skipped_steps, report.overflowed_steps) != (before.skipped_steps, before.overflowed_steps):
                forget_counts(method)
        seconds = time.perf_counter() - started
        yield replace(report, step=step + 1, learning_rate=rate, wait_seconds=waited, seconds=seconds, is_read=is_read)


def is_due(config: TrainingConfig, step: int) -> bool:
    """Return whether anybody needs a step's numbers: it is logged, probed or saved, or the last."""
    everies = (config.log_every, config.probe_every, config.checkpoint_every)
    return step == config.steps or any(step % every == 0 for every in everies)


@dataclass
class _Step:
    """The results of a step, on its device."""

    verdict: Verdict
    losses: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)


def _make_step(
    method: Method,
    batch: Any,
    optimizers: Mapping[str, Optimizer],
    config: TrainingConfig,
    rate: float,
    state: LoopState,
) -> _Step:
    """Step each loss, then call `after_step`; after a non-finite loss or gradient, do neither or undo it."""
    verdict, names, scaling = state.skipped.begin(config.max_skipped), list(optimizers), state.scaling
    made = _Step(verdict)
    for name, loss in compute_losses(method.losses(batch), config.precision, state.device):
        number, optimizer = 2 * names.index(name), optimizers[name]
        made.losses[name] = average_over_ranks(loss.detach().float())
        verdict.judge(number, made.losses[name])
        if not state.goes_on(verdict):
            return made
        fine_so_far = verdict.fine
        made.norms[name] = _compute_gradients(name, optimizer, loss, config.clip_norm, scaling)
        verdict.judge(number + 1, made.norms[name], scaling.may_overflow(name))
        state.update(fine_so_far, partial(scaling.update, name), partial(scaling.list_tensors, name))
        if not state.goes_on(verdict):
            return made
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        state.update(verdict.fine, optimizer.step, partial(_list_stepped, optimizer))
    state.update(verdict.fine, method.after_step, partial(_list_followers, method))
    return made


def _compute_gradients(name: str, optimizer: Optimizer, loss: Tensor, clip: float, scaling: LossScaling) -> Tensor:
    """Compute the gradients, averaged over the ranks and clipped; return their norm before clipping."""
    parameters = _list_parameters(optimizer)
    optimizer.zero_grad(set_to_none=True)
    with average_gradients(parameters):
        torch.autograd.backward(scaling.scale(name, loss))
    scaling.unscale(name, optimizer)
    return nn.utils.clip_grad_norm_(parameters, clip or math.inf)


def _list_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _list_stepped(optimizer: Optimizer) -> list[Tensor]:
    """List what an optimiser's step changes."""
    state = [value for fields in optimizer.state.values() for value in fields.values() if isinstance(value, Tensor)]
    return [*_list_parameters(optimizer), *state]


def _list_followers(method: Method) -> list[Tensor]:
    """List what `after_step` may change."""
    assert isinstance(method, nn.Module)
    return [*(parameter for parameter in method.parameters() if not parameter.requires_grad), *method.buffers()]


def _read_step(
    made: _Step, method: Method, names: list[str], config: TrainingConfig, skipped: SkippedSteps, step: int
) -> StepReport:
    """Read a step's numbers, and the method's where they are logged, in one transfer.

    names: of all losses.  Raises `ChessError` after too many skipped steps in a row.
    """
    measured: Mapping[str, Any] = {}
    if step == config.steps or step % config.log_every == 0:
        measured = method.measured if hasattr(method, "measured") else method.signals
    counts = skipped.list_numbers() | {"problem": made.verdict.problem, "value": made.verdict.value}
    parts: tuple[Mapping[str, Any], ...] = (counts, made.losses, made.norms, measured)
    read = read_numbers({f"{place} {name}": part[name] for place, part in enumerate(parts) for name in part})
    found, losses, norms, signals = (
        {name: read[f"{place} {name}"] for name in part} for place, part in enumerate(parts)
    )
    newest = (int(found["newest_step"]), explain_problem(found["newest_problem"], found["newest_value"], names))
    if found["in_a_row"] >= config.max_skipped:
        before = f", after {found['in_a_row'] - 1:.0f} skipped before it" if found["in_a_row"] > 1 else ""
        raise ChessError(f"{newest[1]} at step {newest[0]}{before}; try a lower learning rate")
    return StepReport(
        step,
        {name: loss for name, loss in losses.items() if math.isfinite(loss)},
        {name: norm for name, norm in norms.items() if math.isfinite(norm)},
        0.0, 0.0, 0.0, explain_problem(found["problem"], found["value"], names),
        int(found["total"]), int(found["overflowed"]), newest, signals,
    )  # fmt: skip


def get_trunk(method: Method) -> nn.Module:
    """Return the encoder that `frozen_steps` freezes; raise `UsageError` for a method without one."""
    trunk = getattr(method, "encoder", None)
    if not isinstance(trunk, nn.Module):
        raise UsageError("training.frozen_steps freezes a method's encoder, and this method has none; set it to 0")
    return trunk


def check_training_config(config: TrainingConfig) -> None:
    """Raise `UsageError` for invalid numbers."""
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
    if config.compile and config.sync_batch_norm:
        raise UsageError(
            "training.compile cannot compile layers that talk to other ranks; set sync_batch_norm to false"
        )
    if config.precision not in get_args(Precision):
        raise UsageError(f"training.precision must be one of {', '.join(get_args(Precision))}")
