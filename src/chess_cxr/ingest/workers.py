"""Decoding films in other processes: in order, never far ahead of the reader, and past a crash."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from chess_cxr.ingest.decode import FilmHeader, Undecodable, decode_film
from chess_cxr.records import SourceFilm
from chess_cxr.store import encode_film

WORKER_DIED = "the decoder crashed on it or ran out of memory"


@dataclass(frozen=True)
class EncodedFilm:
    """What a worker sends back: the film ready to be stored, or the reason why there is none."""

    reason: str = ""
    jpeg: bytes = b""
    height: int = 0
    width: int = 0
    spacing_mm: float = math.nan
    header: FilmHeader = field(default_factory=FilmHeader)


def decode_for_store(path: Path, longest_side: int) -> EncodedFilm:
    """Decode one film and encode it with the longest side at most `longest_side`; spacing_mm is of that size."""
    try:
        film = decode_film(path)
    except Undecodable as error:
        return EncodedFilm(reason=str(error))
    jpeg, height, width = encode_film(film.pixels, longest_side)
    shrunk = math.sqrt(film.pixels.size / (height * width))
    return EncodedFilm("", jpeg, height, width, film.spacing_mm * shrunk, film.header)


def build_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of spawned processes, one a core by default: the store's library does not survive a fork."""
    return ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))


def decode_in_order(
    films: Iterable[SourceFilm], longest_side: int, executor: Executor | None, in_flight: int
) -> Generator[tuple[SourceFilm, EncodedFilm], None, None]:
    """Yield every film with its result in the order given, with at most `in_flight` of them under way.

    When a worker process dies, the films under way are decoded again one at a time, so that the one that
    kills its process is known and left out; the others go on in a new pool of this machine's processes.
    """
    if executor is None:
        for film in films:
            yield film, decode_for_store(film.path, longest_side)
        return
    remaining = iter(films)
    with contextlib.ExitStack() as pools:
        while True:
            waiting: deque[tuple[SourceFilm, Future[EncodedFilm] | None]] = deque()
            try:
                yield from _decode_ahead(remaining, longest_side, executor, in_flight, waiting)
                return
            except BrokenExecutor:
                yield from _decode_alone([film for film, _ in waiting], longest_side)
                executor = pools.enter_context(build_pool())


def _decode_ahead(
    remaining: Iterator[SourceFilm],
    longest_side: int,
    executor: Executor,
    in_flight: int,
    waiting: deque[tuple[SourceFilm, Future[EncodedFilm] | None]],
) -> Iterator[tuple[SourceFilm, EncodedFilm]]:
    """Keep `waiting` filled with films not yet yielded, also when it ends by an exception."""
    try:
        for film in remaining:
            waiting.append((film, None))
            waiting[-1] = (film, executor.submit(decode_for_store, film.path, longest_side))
            if len(waiting) >= in_flight:
                yield _take_first(waiting)
        while waiting:
            yield _take_first(waiting)
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


def _take_first(waiting: deque[tuple[SourceFilm, Future[EncodedFilm] | None]]) -> tuple[SourceFilm, EncodedFilm]:
    film, future = waiting[0]
    assert future is not None
    encoded = future.result()
    waiting.popleft()
    return film, encoded


def _decode_alone(films: Sequence[SourceFilm], longest_side: int) -> Iterator[tuple[SourceFilm, EncodedFilm]]:
    pool = build_pool(1)
    try:
        for film in films:
            try:
                encoded = pool.submit(decode_for_store, film.path, longest_side).result()
            except BrokenExecutor:
                encoded = EncodedFilm(reason=WORKER_DIED)
                pool.shutdown()
                pool = build_pool(1)
            yield film, encoded
    finally:
        pool.shutdown()
