"""What the runs of all downstream tasks have in common: which films a step sees, and who looks on."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch

from chess_cxr.records import UsageError
from chess_cxr.training.ahead import prepare_ahead
from chess_cxr.training.loop import Method, StepReport, TrainingConfig
from chess_cxr.training.order import compute_batch
from chess_cxr.training.run import Rank
from chess_cxr.training.run_log import RunLog


class Movable(Protocol):
    """A batch of tensors."""

    def to(self, device: torch.device) -> Self:
        """Return it on a device."""


Example = TypeVar("Example")
Batch = TypeVar("Batch", bound=Movable)


def read_task_batches(
    examples: Sequence[Example],
    draw: Callable[[list[Example], list[int]], Batch],
    training: TrainingConfig,
    first_step: int,
    rank: Rank,
) -> Generator[Batch, None, None]:
    """Yield this rank's share of the batches from a step on, prepared ahead by threads.

    draw: makes a batch of examples and of their running positions, as a pure function of these.
    Raises `UsageError` at once where the ranks cannot share the batch.
    """
    share = share_batch(training.batch, rank.number, rank.world)

    def prepare(step: int) -> Batch:
        chosen_B, position_B = compute_batch(len(examples), training.batch, step, training.seed)
        chosen = [examples[int(number)] for number in chosen_B[share]]
        return draw(chosen, position_B[share].tolist()).to(rank.device)

    return prepare_ahead(prepare, range(first_step, training.steps), training.loader_threads)


def share_batch(batch: int, rank: int, world: int) -> slice:
    """Return a rank's share of every batch; raises `UsageError` where the ranks cannot share it."""
    if batch % world:
        raise UsageError(f"{world} ranks cannot share a batch of {batch}; choose a multiple")
    own = batch // world
    return slice(rank * own, (rank + 1) * own)


class TaskWatch:
    """Logs a run's numbers, and those of held-out films at every `probe_every` steps and the last.

    measure: called with the step; returns the numbers of held-out films and leaves the weights as they were.
    is_over: whether these numbers end the run.
    """

    has_collapsed = False

    def __init__(
        self,
        log: RunLog,
        method: Method,
        training: TrainingConfig,
        measure: Callable[[int], Mapping[str, float]],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._method, self._training, self._measure, self._is_over = method, training, measure, is_over

    @property
    def is_over(self) -> bool:
        """Whether held-out films gain no more."""
        return self._is_over()

    def look(self, report: StepReport) -> None:
        """Log a step that was made, and look at the held-out films where it is time."""
        training, step, last = self._training, report.step, report.step == self._training.steps
        values = dict[str, float]()
        if report.problem:
            self.log.say(f"step {step} was skipped: {report.problem}; {report.skipped_steps} so far")
        if last or step % training.log_every == 0:
            values = self.log.summarise(report, self._method.signals, training.batch)
        if last or step % training.probe_every == 0:
            self.probe = {name: value for name, value in self._measure(step).items() if math.isfinite(value)}
            values |= self.probe
        if values:
            self.log.write(step, values)
