"""The order of the films: a pure function of seed and step, so checkpoints need no loader state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chess_cxr.records import UsageError


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
