"""Batches of view pairs, prepared ahead of the training step by threads.

What step `n` sees is a pure function of the stores, the seed and `n`: there is no loader state to save.
The decoder and the warps let go of Python's lock, so threads scale, and Lance forbids forking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chess_cxr.film_jpeg import decode_stored
from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.ahead import prepare_ahead
from chess_cxr.training.order import compute_balanced_batch, compute_batch
from chess_cxr.views import Range, ViewConfig, draw_view, draw_view_pairs

Positives = Literal["view", "study", "patient"]

OVERSAMPLING = 1.5  # a film is decoded at no less than this many times the view's side: crops stay sharp
HELD_BYTES = 1e9  # of encoded films that a process keeps in memory: some 25,000 of 512 pixels
GUIDING = ("site", "manufacturer", "view", "sex", "patient", "study")
MOST_GLOBAL, MOST_LOCAL = 16, 32
MORE_VIEWS = 2**62  # first of the streams of all views but the first two, 48 a position
SIBLING_STREAM = 2**64 - 1  # second word of a Philox key; epochs and views count up from 0


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


Sizes = tuple[tuple[float, int], ...]


def check_sizes(sizes: Sizes, size: int) -> None:
    """Raise `UsageError` unless a schedule of sizes rises to the end of the run and ends with the run's own size."""
    shares = [share for share, _ in sizes]
    if sizes and (shares[-1] != 1 or sorted(set(shares)) != shares or not shares[0] > 0):
        raise UsageError("sizes: (share of the run, size) pairs rise to share 1, such as [[0.5, 64], [1, 96]]")
    if sizes and sizes[-1][1] != size:
        raise UsageError(f"sizes: the last size is that of the run, {size}, not {sizes[-1][1]}")


def find_size(sizes: Sizes, step: int, steps: int) -> int:
    """Return the side of global views at a step: the first whose share of the run is not over."""
    return next(size for share, size in sizes if step < share * steps)


@dataclass(frozen=True)
class Crops:
    """How many views each film gives, and how large the local ones are (multi-crop, Caron et al. 2020).

    global_views: of the size and kind that `views` says.  local_views: of the same kind but for their size, in pixels,
    and the share of the film's area that they show.
    """

    global_views: int = 2
    local_views: int = 0
    local_size: int = 32
    local_area: Range = (0.05, 0.4)

    def __post_init__(self) -> None:
        if not (2 <= self.global_views <= MOST_GLOBAL and 0 <= self.local_views <= MOST_LOCAL):
            raise UsageError(f"crops: a film gives 2 to {MOST_GLOBAL} global and at most {MOST_LOCAL} local views")
        if not 0 < self.local_area[0] <= self.local_area[1] <= 1:
            raise UsageError("crops: local_area is two shares of the film's area, above 0 and up to 1")

    def check(self, views: ViewConfig) -> None:
        """Raise `UsageError` where local views would be larger than global ones."""
        if self.local_views and not 1 <= self.local_size <= views.size:
            raise UsageError(
                f"crops: local views of {self.local_size} pixels are larger than the global ones of {views.size}"
            )

    def find_decoded_side(self, views: ViewConfig) -> int:
        """Return the shortest side at which a film is decoded, so that no view is much enlarged."""
        local = self.local_size / math.sqrt(self.local_area[0]) if self.local_views else 0.0
        return round(max(OVERSAMPLING * views.size, local))

    def build_batch(self, views: ViewConfig, films: int, guides: Sequence[str] = ()) -> ViewBatch:
        """Return an empty batch of views of so many films, as a step gets it."""
        global_GB1SS = torch.empty(self.global_views, films, 1, views.size, views.size)
        local_LB1ss = torch.empty(self.local_views, films, 1, self.local_size, self.local_size)
        known = {column: torch.zeros(films, dtype=torch.int64) for column in guides}
        return ViewBatch(global_GB1SS, local_LB1ss if self.local_views else None, known)

    def build_local(self, views: ViewConfig) -> ViewConfig:
        """Return what a local view may be."""
        return replace(views, size=self.local_size, crop_area=self.local_area, keep=(0.0, 0.0))


def build_film_pool(stores: Sequence[Store], splits: Sequence[str]) -> FilmPool:
    """Gather the films of `splits` ("" means films without a split) from all stores."""
    rows = [np.flatnonzero(store.films["split"].isin(list(splits)).to_numpy()) for store in stores]
    store_of = np.concatenate([np.full(len(row), number) for number, row in enumerate(rows)])
    pool = FilmPool(tuple(stores), store_of, np.concatenate(rows))
    if not len(pool):
        raise UsageError(f"no film of split {' or '.join(repr(s) for s in splits)} in the given stores")
    return pool


def build_groups(pool: FilmPool, by: str) -> list[np.ndarray]:
    """Divide the films of a pool by a column of the store, by "store" or by "age" (bands of ten years).

    Films of which nothing is known are a group of their own.  Raises `UsageError` where all films are in one group.
    """
    if by == "store":
        code_N = pool.store_of_N
    elif by == "age":
        age_N = np.concatenate([store.films["age_years"].to_numpy(float) for store in pool.stores])[_list_rows(pool)]
        code_N = np.where(np.isnan(age_N), -1, age_N // 10).astype(np.int64)
    else:
        code_N, _ = read_codes(pool, by)
    groups = [np.flatnonzero(code_N == code) for code in np.unique(code_N)]
    if len(groups) < 2:
        raise UsageError(f"all films have the same {by}: there is nothing to balance")
    return groups


def read_codes(pool: FilmPool, column: str) -> tuple[np.ndarray, int]:
    """Number the values of a text column: int64 [N], -1 where it is empty, and how many values there are.

    Raises `UsageError` where the stores lack the column.
    """
    if column not in GUIDING:
        raise UsageError(f"no column {column!r} can guide or balance a run; there are {', '.join(GUIDING)}")
    text_N = np.concatenate([store.films[column].to_numpy(str) for store in pool.stores])[_list_rows(pool)]
    known = sorted(set(text_N) - {""})
    code_of = {value: code for code, value in enumerate(known)}
    return np.array([code_of.get(value, -1) for value in text_N], np.int64), len(known)


def _list_rows(pool: FilmPool) -> np.ndarray:
    """Return the place of each film among the rows of all stores, one after the other."""
    starts = np.cumsum([0, *(len(store) for store in pool.stores[:-1])])
    rows: np.ndarray = starts[pool.store_of_N] + pool.row_of_N
    return rows


def build_reader(pool: FilmPool, most_bytes: float) -> Callable[[np.ndarray], list[bytes]]:
    """Return what reads encoded films by number: from memory where all of the pool fit, else from the stores.

    A random film costs a store several times what it costs the decoder that waits for a small one.
    """
    part = 256
    jpegs = pool.read_jpegs(range(min(part, len(pool))))
    if sum(map(len, jpegs)) / len(jpegs) * len(pool) > most_bytes:
        return pool.read_jpegs
    for start in range(part, len(pool), part):
        jpegs += pool.read_jpegs(range(start, min(start + part, len(pool))))
    return lambda films: [jpegs[film] for film in films]


@dataclass(frozen=True)
class Siblings:
    """Which films of a pool share a study or a patient; 16 bytes a film.

    order_N: film numbers, those of one group side by side.  first_N, place_N, count_N: of each film, where its group
    begins in `order_N`, its own place in the group, and the group's films.
    """

    order_N: np.ndarray
    first_N: np.ndarray
    place_N: np.ndarray
    count_N: np.ndarray

    def draw(self, film_B: np.ndarray, position_B: np.ndarray, seed: int) -> np.ndarray:
        """Draw another film of each film's group, all equally likely; the film itself where it is alone.

        position_B: running positions in the run, without gaps.  The draw is a pure function of (seed, position).
        """
        stream = np.random.Philox(key=np.array([seed, SIBLING_STREAM], np.uint64), counter=int(position_B[0]))
        drawn_B = (stream.random_raw(4 * len(film_B))[::4] >> np.uint64(1)).astype(np.int64)
        count_B = self.count_N[film_B]
        ahead_B = 1 + drawn_B % np.maximum(count_B - 1, 1)
        sibling_B: np.ndarray = self.order_N[self.first_N[film_B] + (self.place_N[film_B] + ahead_B) % count_B]
        return sibling_B


def build_siblings(pool: FilmPool, within: Literal["study", "patient"]) -> Siblings:
    """Find the films of one study (of one patient), or of one patient.

    Films of different stores are no siblings: two data sets may both have a patient "1".  A film whose study or patient
    is not known is alone.  Raises `UsageError` where every film is.
    """
    group_N = _number_groups(pool, within)
    small = np.int32 if len(pool) < 2**31 else np.int64
    order_N = np.argsort(group_N, kind="stable").astype(small)
    sorted_N = group_N[order_N]
    starts = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])).astype(small)
    sizes = np.diff(starts, append=small(len(pool)))
    first_N, place_N, count_N = (np.empty(len(pool), small) for _ in range(3))
    first_N[order_N] = np.repeat(starts, sizes)
    place_N[order_N] = np.arange(len(pool), dtype=small) - first_N[order_N]
    count_N[order_N] = np.repeat(sizes, sizes)
    if count_N.max() == 1:
        raise UsageError(f"no {within} has two films in the given stores; use positives 'view'")
    return Siblings(order_N, first_N, place_N, count_N)


def _number_groups(pool: FilmPool, within: Literal["study", "patient"]) -> np.ndarray:
    """Give every film its group's number, int64 [N]; a film that is alone for sure gets one of its own."""
    group_N = np.empty(len(pool), np.int64)
    numbered = 0
    for number, store in enumerate(pool.stores):
        places = np.flatnonzero(pool.store_of_N == number)
        rows = pool.row_of_N[places]
        group = pd.factorize(store.films["patient"].iloc[rows])[0].astype(np.int64)
        if within == "study":  # some data sets count the studies of each patient from 1
            study = pd.factorize(store.films["study"].iloc[rows])[0]
            group = pd.factorize(group * (len(rows) + 1) + study)[0].astype(np.int64)
        unknown = np.flatnonzero((store.films[within].iloc[rows] == "").to_numpy())
        group[unknown] = len(rows) + unknown
        group_N[places] = numbered + group
        numbered += 2 * len(rows)
    return group_N


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
    positives: Positives = "view",
    crops: Crops = Crops(),  # noqa: B008
    guides: Sequence[str] = (),
    balance: str = "",
    sizes: Sizes = (),
    held_bytes: float = HELD_BYTES,
) -> Generator[Tensor | ViewBatch, None, None]:
    """Yield the uint8 [2, batch / world, 1, size, size] view pairs of steps `first_step` … `steps` - 1.

    batch: films a step over all ranks.  threads: batches prepared at the same time.
    positives: "view" takes both views from one film.  "study" and "patient" take the second from another film of the
    same study or patient where the store has one, drawn anew each time (MedAug, Vu et al. 2021); a lateral film may so
    be paired with a frontal one, and pairs of a patient may be years and diseases apart.  The first views are the same
    films in the same order in any case.
    crops: a film that gives more than two views is decoded once; then batches are `ViewBatch`es.  Further global views
    are the first one's film's, and so are the local ones.
    guides: columns of the store that batches bring along.  balance: as many films of every group of `build_groups`.
    sizes: the side of global views in the course of the run, see `find_size`.
    held_bytes: encoded films are held in memory where all of the pool fit into so many.
    Raises `UsageError` at once where the ranks cannot share the batch or no two films are of one study or patient.
    """
    if positives not in get_args(Positives):
        raise UsageError(f"positives are {', '.join(get_args(Positives))}, not {positives!r}")
    if batch % world:
        raise UsageError(f"a batch of {batch} films cannot be shared by {world} ranks; choose a multiple")
    crops.check(views)
    groups = build_groups(pool, balance) if balance else []
    guide_codes = {column: read_codes(pool, column)[0] for column in guides}
    share = slice(rank * (batch // world), (rank + 1) * (batch // world))

    siblings = None if positives == "view" else build_siblings(pool, positives)
    read_jpegs = build_reader(pool, held_bytes)

    def decode(film_B: np.ndarray, views: ViewConfig) -> list[np.ndarray]:
        return [decode_stored(jpeg, crops.find_decoded_side(views)) for jpeg in read_jpegs(film_B)]

    def prepare(step: int) -> Tensor | ViewBatch:
        at_step = replace(views, size=find_size(sizes, step, steps)) if sizes else views
        if groups:
            film_B, position_B = compute_balanced_batch(groups, batch, step, seed)
        else:
            film_B, position_B = compute_batch(len(pool), batch, step, seed)
        own_B = position_B[share]
        if siblings is None:
            films = decode(film_B[share], at_step)
            pair = draw_view_pairs(films, own_B.tolist(), seed, at_step)
        else:
            pair_2B = np.stack([film_B, siblings.draw(film_B, position_B, seed)])[:, share]
            used, place = np.unique(pair_2B, return_inverse=True)  # a film that a step uses twice is decoded once
            decoded, place_2B = decode(used, at_step), place.reshape(2, -1)
            pair = _draw_views(decoded, place_2B, own_B, seed, at_step)
            films = [decoded[place] for place in place_2B[0]]
        made = _add_views(torch.from_numpy(pair), films, own_B, seed, at_step, crops)
        if not guide_codes:
            return made
        known = {column: torch.from_numpy(code_N[film_B[share]]) for column, code_N in guide_codes.items()}
        return replace(take_views(made), guides=known)

    return prepare_ahead(prepare, range(first_step, steps), threads)


def _add_views(
    pair_2B1SS: Tensor,
    films: Sequence[np.ndarray],
    position_B: np.ndarray,
    seed: int,
    views: ViewConfig,
    crops: Crops,
) -> Tensor | ViewBatch:
    """Add further global views and the local ones to pairs of views; the pairs alone where there are none."""
    more, local = crops.global_views - 2, crops.local_views
    if not more and not local:
        return pair_2B1SS
    global_GB1SS = pair_2B1SS
    if more:
        extra = _draw_more(films, position_B, seed, views, range(MOST_LOCAL, MOST_LOCAL + more))
        global_GB1SS = torch.cat([pair_2B1SS, torch.from_numpy(extra)])
    if not local:
        return ViewBatch(global_GB1SS)
    drawn = _draw_more(films, position_B, seed, crops.build_local(views), range(local))
    return ViewBatch(global_GB1SS, torch.from_numpy(drawn))


def _draw_more(
    films: Sequence[np.ndarray], position_B: np.ndarray, seed: int, views: ViewConfig, streams: range
) -> np.ndarray:
    """Draw a view of each film for each stream, pure in seed, position, stream: uint8 [streams, B, 1, size, size]."""
    drawn = np.empty((len(streams), len(films), 1, views.size, views.size), np.uint8)
    for which, index in np.ndindex(drawn.shape[:2]):
        stream = MORE_VIEWS + (MOST_LOCAL + MOST_GLOBAL) * int(position_B[index]) + streams[which]
        rng = np.random.Generator(np.random.Philox(key=[seed, stream]))
        drawn[which, index, 0] = draw_view(films[index], views, rng)
    return drawn


def _draw_views(
    films: Sequence[np.ndarray], place_2B: np.ndarray, position_B: np.ndarray, seed: int, views: ViewConfig
) -> np.ndarray:
    """Draw the views of pairs of films, uint8 [2, B, 1, size, size], as randomly as `draw_view_pairs` those of one."""
    pairs = np.empty((*place_2B.shape, 1, views.size, views.size), np.uint8)
    for which, index in np.ndindex(place_2B.shape):
        rng = np.random.Generator(np.random.Philox(key=[seed, 2 * int(position_B[index]) + which]))
        pairs[which, index, 0] = draw_view(films[int(place_2B[which, index])], views, rng)
    return pairs
