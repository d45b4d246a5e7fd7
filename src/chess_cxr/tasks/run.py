"""Batches of downstream tasks, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from chess_cxr.training.ahead import prepare_ahead
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.order import compute_batch, share_batch
from chess_cxr.training.run import Rank

Example = TypeVar("Example")
Batch = TypeVar("Batch")


def read_task_batches(
    examples: Sequence[Example],
    draw: Callable[[list[Example], list[int]], Batch],
    training: TrainingConfig,
    first_step: int,
    rank: Rank,
) -> Generator[Batch, None, None]:
    """Yield this rank's share of the batches from a step on, prepared ahead by threads.

    draw: a pure function that builds a batch from examples and their running positions.
    Raises `UsageError` at once if the ranks cannot share the batch.
    """
    share = share_batch(training.batch, rank.number, rank.world)

    def prepare(step: int) -> Batch:
        chosen_B, position_B = compute_batch(len(examples), training.batch, step, training.seed)
        chosen = [examples[int(number)] for number in chosen_B[share]]
        return draw(chosen, position_B[share].tolist())

    return prepare_ahead(prepare, range(first_step, training.steps), training.loader_threads, rank.device)
