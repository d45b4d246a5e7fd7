"""The order of the films: a pure function of seed and step, so checkpoints need no loader state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from chess_cxr.records import UsageError

BLOCKS, GROUPS = 2**61, 2**60  # second words of Philox keys; those of epochs and views count up from 0


@lru_cache(maxsize=2)
def compute_epoch_order(films: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which one epoch visits `films` films: a pure function of seed and epoch, read-only.

    Caches the last two orders, as shuffling 5 million films takes longer than a step should.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(films)
    order.flags.writeable = False
    return order


def compute_batch(films: int, batch: int, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the films of a step, and the running position of each in the run.

    A run is a sequence of epochs, each a new permutation; a batch may span two epochs, so no film is dropped.  The
    positions seed the views.  Ranks take slices of both arrays.
    """
    position_B = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epoch_B = position_B // films
    film_B = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epoch_B):
        chosen = epoch_B == epoch
        film_B[chosen] = compute_epoch_order(films, seed, int(epoch))[position_B[chosen] % films]
    return film_B, position_B


def share_batch(batch: int, rank: int, world: int) -> slice:
    """Return a rank's share of every batch; raises `UsageError` if the ranks cannot share it."""
    if batch % world:
        raise UsageError(f"a batch of {batch} films cannot be shared by {world} ranks; choose a multiple")
    own = batch // world
    return slice(rank * own, (rank + 1) * own)


def compute_balanced_batch(
    groups: Sequence[np.ndarray], batch: int, step: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return films and positions of a step like `compute_batch`, but with equally many films of every group.

    groups: film numbers of each group.  A run is a sequence of blocks that hold one film of each group in random order.
    Each group has its own epochs, so the films of a small group occur more often.
    """
    position_B = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    block_B, place_B = position_B // len(groups), position_B % len(groups)
    film_B = np.empty(batch, dtype=np.int64)
    for index, (block, place) in enumerate(zip(block_B.tolist(), place_B.tolist(), strict=True)):
        group = int(_draw_block(len(groups), seed, block)[place])
        films = groups[group]
        epoch, within = divmod(block, len(films))
        film_B[index] = films[_draw_group_order(len(films), seed, group, epoch)[within]]
    return film_B, position_B


@lru_cache(maxsize=1024)
def _draw_block(groups: int, seed: int, block: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, BLOCKS + block])).permutation(groups)


@lru_cache(maxsize=64)
def _draw_group_order(films: int, seed: int, group: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, GROUPS + (group << 40) + epoch])).permutation(films)
