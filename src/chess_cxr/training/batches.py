"""Batches of view pairs, prepared ahead of the training step by threads.

What step `n` sees is a pure function of the stores, the seed and `n`: there is no loader state to save.
The decoder and the warps let go of Python's lock, so threads scale, and Lance forbids forking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from chess_cxr.film_jpeg import decode_stored
from chess_cxr.records import UsageError
from chess_cxr.store import Store, compute_batch
from chess_cxr.views import ViewConfig, draw_view_pairs

OVERSAMPLING = 1.5  # a film is decoded at no less than this many times the view's side: crops stay sharp


@dataclass(frozen=True)
class FilmPool:
    """The films of some splits of some stores, numbered from 0."""

    stores: tuple[Store, ...]
    store_of_N: np.ndarray
    row_of_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_of_N)

    def read_jpegs(self, films: Sequence[int] | np.ndarray) -> list[bytes]:
        """Read encoded films by number, in this order."""
        films = np.asarray(films)
        jpegs: list[bytes] = [b""] * len(films)
        for number, store in enumerate(self.stores):
            places = np.flatnonzero(self.store_of_N[films] == number)
            for place, jpeg in zip(places, store.read_jpegs(self.row_of_N[films[places]]), strict=True):
                jpegs[place] = jpeg
        return jpegs

    def get_uids(self) -> list[str]:
        """Return the hashed uid of every film."""
        uids = [store.films["uid"].to_numpy() for store in self.stores]
        return [str(uids[s][r]) for s, r in zip(self.store_of_N, self.row_of_N, strict=True)]


def build_film_pool(stores: Sequence[Store], splits: Sequence[str]) -> FilmPool:
    """Gather the films of `splits` ("" means films without a split) from all stores."""
    rows = [np.flatnonzero(store.films["split"].isin(list(splits)).to_numpy()) for store in stores]
    store_of = np.concatenate([np.full(len(row), number) for number, row in enumerate(rows)])
    pool = FilmPool(tuple(stores), store_of, np.concatenate(rows))
    if not len(pool):
        raise UsageError(f"no film of split {' or '.join(repr(s) for s in splits)} in the given stores")
    return pool


def read_view_batches(
    pool: FilmPool,
    views: ViewConfig,
    *,
    batch: int,
    seed: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    threads: int = 1,
) -> Generator[Tensor, None, None]:
    """Yield the uint8 [2, batch / world, 1, size, size] view pairs of steps `first_step` … `steps` - 1.

    batch: films a step over all ranks.  threads: batches prepared at the same time.  Raises `UsageError` at once
    where the ranks cannot share the batch.
    """
    if batch % world:
        raise UsageError(f"a batch of {batch} films cannot be shared by {world} ranks; choose a multiple")
    share = slice(rank * (batch // world), (rank + 1) * (batch // world))

    def prepare(step: int) -> Tensor:
        film_B, position_B = compute_batch(len(pool), batch, step, seed)
        jpegs = pool.read_jpegs(film_B[share])
        films = [decode_stored(jpeg, round(OVERSAMPLING * views.size)) for jpeg in jpegs]
        return torch.from_numpy(draw_view_pairs(films, position_B[share].tolist(), seed, views))

    cv2.setNumThreads(1)
    return _prepare_ahead(prepare, range(first_step, steps), threads)


def _prepare_ahead(prepare: Callable[[int], Tensor], steps: range, threads: int) -> Generator[Tensor, None, None]:
    with ThreadPoolExecutor(threads, thread_name_prefix="views") as executor:
        waiting: deque[Future[Tensor]] = deque()
        try:
            for step in steps:
                waiting.append(executor.submit(prepare, step))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
