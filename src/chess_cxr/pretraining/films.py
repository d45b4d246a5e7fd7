"""The films of a pre-training run, and batches of view pairs drawn from them ahead of the training step.

A step's batch is a pure function of the stores, the seed and the step, so checkpoints need no loader state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chess_cxr.files.uid_list import read_uid_list
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.pretraining.crops import Crops, Sizes, add_views, find_size
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.ahead import prepare_ahead
from chess_cxr.training.order import compute_balanced_batch, compute_batch, share_batch
from chess_cxr.views import ViewConfig, draw_view, draw_view_pairs

Positives = Literal["view", "study", "patient"]

GUIDING = ("site", "manufacturer", "view", "sex", "patient", "study")
HELD_BYTES = 1e9  # most bytes of encoded films to keep in memory: about 25,000 films of 512 pixels
SIBLING_STREAM = 2**64 - 1  # second word of a Philox key; those of epochs and views count up from 0


@dataclass(frozen=True)
class FilmPool:
    """The films of some splits of some stores, numbered from 0."""

    stores: tuple[Store, ...]
    store_of_N: np.ndarray
    row_of_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_of_N)

    def read_jpegs(self, films: Sequence[int] | np.ndarray) -> list[bytes]:
        """Read encoded films by number, in the given order."""
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


def build_film_pool(stores: Sequence[Store], splits: Sequence[str], listed: str = "") -> FilmPool:
    """Collect the films of `splits` ("" for films without a split) from all stores.

    listed: a file with the uids of the films to take; "" for all.
    """
    wanted = [store.films["split"].isin(list(splits)).to_numpy() for store in stores]
    if listed:
        uids = read_uid_list(Path(listed))
        wanted = [own & store.films["uid"].isin(uids).to_numpy() for own, store in zip(wanted, stores, strict=True)]
        if not any(own.any() for own in wanted):
            raise UsageError(f"no film of {listed} is in the train split, or without a split, in the given stores")
    rows = [np.flatnonzero(own) for own in wanted]
    store_of = np.concatenate([np.full(len(row), number) for number, row in enumerate(rows)])
    pool = FilmPool(tuple(stores), store_of, np.concatenate(rows))
    if not len(pool):
        raise UsageError(f"no film of split {' or '.join(repr(s) for s in splits)} in the given stores")
    return pool


def build_groups(pool: FilmPool, by: str) -> list[np.ndarray]:
    """Group the films of a pool by a column of the store, by "store" or by "age" (bands of ten years).

    Films with an unknown value form a group.  Raises `UsageError` if all films are in one group.
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
    """Return a text column as numbers, int64 [N] with -1 for "", and the number of its values.

    Raises `UsageError` for a column that cannot guide a run.
    """
    if column not in GUIDING:
        raise UsageError(f"no column {column!r} can guide or balance a run; there are {', '.join(GUIDING)}")
    text_N = np.concatenate([store.films[column].to_numpy(str) for store in pool.stores])[_list_rows(pool)]
    known = sorted(set(text_N) - {""})
    code_of = {value: code for code, value in enumerate(known)}
    return np.array([code_of.get(value, -1) for value in text_N], np.int64), len(known)


def _list_rows(pool: FilmPool) -> np.ndarray:
    """Return the index of each film in the concatenated rows of all stores."""
    starts = np.cumsum([0, *(len(store) for store in pool.stores[:-1])])
    rows: np.ndarray = starts[pool.store_of_N] + pool.row_of_N
    return rows


def build_reader(pool: FilmPool, most_bytes: float) -> Callable[[np.ndarray], list[bytes]]:
    """Return a function that reads encoded films by number, from memory if the whole pool fits into `most_bytes`.

    Otherwise it reads from the stores, where a random small film takes several times longer to read than to decode.
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
    """The films of a pool grouped by study or patient, in 16 bytes per film.

    order_N: film numbers sorted by group.  first_N, place_N, count_N: for each film, the start of its group in
    `order_N`, its place in the group, and the size of the group.
    """

    order_N: np.ndarray
    first_N: np.ndarray
    place_N: np.ndarray
    count_N: np.ndarray

    def draw(self, film_B: np.ndarray, position_B: np.ndarray, seed: int) -> np.ndarray:
        """Draw another film from each film's group, uniformly; return the film itself if it is alone.

        position_B: consecutive running positions in the run.  The draw is a pure function of (seed, position).
        """
        stream = np.random.Philox(key=np.array([seed, SIBLING_STREAM], np.uint64), counter=int(position_B[0]))
        drawn_B = (stream.random_raw(4 * len(film_B))[::4] >> np.uint64(1)).astype(np.int64)
        count_B = self.count_N[film_B]
        ahead_B = 1 + drawn_B % np.maximum(count_B - 1, 1)
        sibling_B: np.ndarray = self.order_N[self.first_N[film_B] + (self.place_N[film_B] + ahead_B) % count_B]
        return sibling_B


def build_siblings(pool: FilmPool, within: Literal["study", "patient"]) -> Siblings:
    """Group the films of each study (of the same patient), or of each patient.

    Never groups films of different stores, as two data sets may both have a patient "1", nor films of unknown study or
    patient.  Raises `UsageError` if every film is alone.
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
    """Return the group number of every film, int64 [N]; films of unknown study or patient get their own."""
    group_N = np.empty(len(pool), np.int64)
    numbered = 0
    for number, store in enumerate(pool.stores):
        places = np.flatnonzero(pool.store_of_N == number)
        rows = pool.row_of_N[places]
        group = pd.factorize(store.films["patient"].iloc[rows])[0].astype(np.int64)
        if within == "study":  # some data sets number the studies of each patient from 1
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
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Generator[Tensor | ViewBatch, None, None]:
    """Yield the uint8 [2, batch / world, 1, size, size] view pairs of steps `first_step` … `steps` - 1.

    batch: films per step over all ranks.  threads: number of batches prepared in parallel.
    positives: "view" takes both views from one film.  "study" and "patient" take the second from another film of the
    same study or patient, if there is one, drawn anew each time (MedAug, Vu et al. 2021).  A pair may then be a frontal
    and a lateral film, and a patient's films may be years and diseases apart.  The films and order of the first views
    do not depend on it.
    crops: number of views; more than two make batches `ViewBatch`es.  More views are of the first view's film.
    guides: columns of the store to add to the batches.  balance: draw all groups of `build_groups` equally often.
    sizes: side of global views over the course of the run, see `find_size`.
    held_bytes: keep the encoded films in memory if they all fit into so many bytes.  device: of the batches.
    Raises `UsageError` at once if the ranks cannot share the batch, or if no study or patient has two films.
    """
    if positives not in get_args(Positives):
        raise UsageError(f"positives are {', '.join(get_args(Positives))}, not {positives!r}")
    crops.check(views)
    groups = build_groups(pool, balance) if balance else []
    guide_codes = {column: read_codes(pool, column)[0] for column in guides}
    share = share_batch(batch, rank, world)

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
            used, place = np.unique(pair_2B, return_inverse=True)  # decode each film once
            decoded, place_2B = decode(used, at_step), place.reshape(2, -1)
            pair = _draw_views(decoded, place_2B, own_B, seed, at_step)
            films = [decoded[place] for place in place_2B[0]]
        made = add_views(torch.from_numpy(pair), films, own_B, seed, at_step, crops)
        if not guide_codes:
            return made
        known = {column: torch.from_numpy(code_N[film_B[share]]) for column, code_N in guide_codes.items()}
        return replace(take_views(made), guides=known)

    return prepare_ahead(prepare, range(first_step, steps), threads, device)


def _draw_views(
    films: Sequence[np.ndarray], place_2B: np.ndarray, position_B: np.ndarray, seed: int, views: ViewConfig
) -> np.ndarray:
    """Draw views of pairs of films, uint8 [2, B, 1, size, size], with the random numbers of `draw_view_pairs`."""
    pairs = np.empty((*place_2B.shape, 1, views.size, views.size), np.uint8)
    for which, index in np.ndindex(place_2B.shape):
        rng = np.random.Generator(np.random.Philox(key=[seed, 2 * int(position_B[index]) + which]))
        pairs[which, index, 0] = draw_view(films[int(place_2B[which, index])], views, rng)
    return pairs
