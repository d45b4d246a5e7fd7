"""Encoding films in an executor: in order, never far ahead of the reader, past every crash."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from chess_cxr.ingest.child import ChildDied, ChildGone, ChildLate, Limits, drop_child, get_child
from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions
from chess_cxr.records import ChessError, SourceFilm

WORKER_DIED = "the decoder crashed on it or ran out of memory"
FILMS_A_TASK = 8
Waiting = deque[tuple[list[SourceFilm], "Future[list[EncodedFilm] | str]"]]


def build_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of spawned processes, one a core by default: the store's library does not survive a fork."""
    return ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))


def build_ingest_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Return a pool of threads, one a core by default, each of which will own one decoding process."""
    return ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="ingest")


def encode_in_child(location: Path | str, options: EncodeOptions, limits: Limits) -> EncodedFilm:
    """Encode one film in this thread's child; a film that kills it or takes too long is a reason like any other.

    Raises `ChessError` where no child can be started or the films' store cannot be reached.
    """
    try:
        encoded = _ask_child(location, options, limits)
    except (ChildDied, ChildGone):
        drop_child()
        return EncodedFilm(reason=WORKER_DIED)
    except ChildLate:
        drop_child()
        return EncodedFilm(reason=f"not decoded within {limits.film_seconds:g} seconds")
    except ConnectionError:
        raise ChessError(
            "the object store that holds the films cannot be reached; run the same again, it goes on where it stopped"
        ) from None
    assert isinstance(encoded, EncodedFilm)
    return encoded


def _ask_child(location: Path | str, options: EncodeOptions, limits: Limits) -> object:
    try:
        return get_child(limits).ask(location, options)
    except ChildGone:  # it was killed while it had nothing to do; the film never reached it
        drop_child()
        return get_child(limits).ask(location, options)


def encode_batch(locations: Sequence[Path | str], options: EncodeOptions, limits: Limits) -> list[EncodedFilm] | str:
    """Encode some films, one after the other: the task that an executor is given.

    Returns what went wrong with the worker itself as text: clusters log a task that raises, with its arguments, and
    file names may name patients.
    """
    try:
        return [encode_in_child(location, options, limits) for location in locations]
    except ChessError as error:
        return str(error)


def encode_in_order(
    films: Iterable[SourceFilm], options: EncodeOptions, limits: Limits, executor: Executor | None, in_flight: int
) -> Generator[tuple[SourceFilm, EncodedFilm], None, None]:
    """Yield every film with its result in the order given, with about `in_flight` of them under way.

    Raises `ChessError` where the executor itself is lost.
    """
    if executor is None:
        for film in films:
            yield film, encode_in_child(film.path, options, limits)
        return
    remaining = iter(films)
    waiting: Waiting = deque()
    try:
        while batch := list(islice(remaining, min(FILMS_A_TASK, in_flight))):
            with _explain_lost_workers():
                future = executor.submit(encode_batch, [film.path for film in batch], options, limits)
            waiting.append((batch, future))
            if len(waiting) * FILMS_A_TASK >= in_flight:
                yield from _take_first(waiting)
        while waiting:
            yield from _take_first(waiting)
    finally:
        for _, future in waiting:
            future.cancel()


@contextlib.contextmanager
def _explain_lost_workers() -> Iterator[None]:
    try:
        yield
    except (Exception, CancelledError) as error:  # each executor has errors of its own for workers it lost
        raise ChessError(
            f"the workers were lost ({type(error).__name__}); run the same again, it goes on where it stopped"
        ) from None


def _take_first(waiting: Waiting) -> Iterator[tuple[SourceFilm, EncodedFilm]]:
    batch, future = waiting.popleft()
    with _explain_lost_workers():
        encoded = future.result()
    if isinstance(encoded, str):
        raise ChessError(encoded)
    yield from zip(batch, encoded, strict=True)
