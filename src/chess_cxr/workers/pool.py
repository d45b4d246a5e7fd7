"""Run films through an executor: in order, never far ahead of the reader, past every crash."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from chess_cxr.records import ChessError, Undecodable
from chess_cxr.workers.child import (
    ChildDied,
    ChildGone,
    ChildGroup,
    ChildLate,
    Limits,
    check_not_ended,
    drop_child,
    get_child,
)
from chess_cxr.workers.cores import count_usable_cores

WORKER_DIED = "the decoder crashed on it or ran out of memory"
LATE = "not decoded within"
FILMS_A_TASK = 8
ALL_AT_ONCE = 1 << 30  # films in flight, where all results are kept anyway
Request = TypeVar("Request")
Done = TypeVar("Done")


class ChildLost(Undecodable):
    """The child died or was too late with a film; on a machine without memory or time, that is no fault of the film."""


def tells_of_loss(reason: str) -> bool:
    """Whether this is the text of a `ChildLost`."""
    return reason == WORKER_DIED or reason.startswith(LATE)


def build_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of spawned processes, one a core by default; Lance does not survive a fork."""
    return ProcessPoolExecutor(workers or count_usable_cores(), mp_context=multiprocessing.get_context("spawn"))


def build_ingest_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Return a pool of threads, one a core by default, each owning one child process.

    If an error or Ctrl-C leaves its `with` block, the children are killed at once.
    """
    return _ChildPool(workers or count_usable_cores())


class _ChildPool(ThreadPoolExecutor):
    def __init__(self, workers: int) -> None:
        self._group = ChildGroup()
        super().__init__(workers, thread_name_prefix="ingest", initializer=self._group.adopt_thread)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._group.end()
        self.shutdown(cancel_futures=kind is not None)


# ---------------------------------------------------------------- one film


def call_in_child(task: Callable[..., Done], limits: Limits, *request: object) -> Done:
    """Return `task(*request)`, called in this thread's child.

    Raises what the task raises, `ChildLost` if the film killed the child or took too long, `NoChild` if none can be
    started, `ChessError` if the source of the films cannot be reached or the run was ended.
    """
    try:
        answer = _ask_child(task, limits, request)
    except (ChildDied, ChildGone):
        drop_child()
        check_not_ended()
        raise ChildLost(WORKER_DIED) from None
    except ChildLate:
        drop_child()
        raise ChildLost(f"{LATE} {limits.film_seconds:g} seconds") from None
    except ConnectionError:
        raise ChessError(
            "the store or server that holds the films cannot be reached or refuses to answer; check network and "
            "credentials and run the same command again; it continues where it stopped"
        ) from None
    return answer  # type: ignore[return-value]  # the child calls this very task


def _ask_child(task: Callable[..., object], limits: Limits, request: Sequence[object]) -> object:
    try:
        return get_child(task, limits).ask(*request)
    except (ChildGone, ChildDied):  # perhaps killed to free memory for others: try once more
        drop_child()
        return get_child(task, limits).ask(*request)


# ---------------------------------------------------------------- many films


def run_in_order(
    requests: Iterable[Request], work: Callable[[Request], Done], executor: Executor | None, in_flight: int
) -> Generator[Done, None, None]:
    """Yield `work(request)` for each request, in order, computed in `executor` or, without one, here.

    in_flight: about how many requests are submitted at a time.  Raises `ChessError` if `work` does or the executor is
    lost.
    """
    if executor is None:  # still through a pool: Lance asks for films from changing threads
        with build_ingest_pool(1) as pool:
            yield from run_in_order(requests, work, pool, 1)
        return
    remaining = iter(requests)
    waiting: deque[Future[list[Done] | str]] = deque()
    try:
        while batch := list(itertools.islice(remaining, min(FILMS_A_TASK, in_flight))):
            with _explain_lost_workers():
                waiting.append(executor.submit(work_batch, work, batch))
            if len(waiting) * FILMS_A_TASK >= in_flight:
                yield from _take_first(waiting)
        while waiting:
            yield from _take_first(waiting)
    finally:
        for future in waiting:
            future.cancel()


def work_batch(work: Callable[[Request], Done], requests: Sequence[Request]) -> list[Done] | str:
    """Compute some requests, one after the other: the task that an executor runs.

    Returns the text of a `ChessError` instead of raising it: clusters log a failed task with its arguments, and file
    names may name patients.
    """
    try:
        return [work(request) for request in requests]
    except ChessError as error:
        return str(error)


@contextlib.contextmanager
def _explain_lost_workers() -> Iterator[None]:
    try:
        yield
    except (Exception, CancelledError) as error:  # every executor has its own errors for lost workers
        raise ChessError(
            f"the workers were lost ({type(error).__name__}); run the same command again; it continues where it stopped"
        ) from None


def _take_first(waiting: deque[Future[list[Done] | str]]) -> list[Done]:
    with _explain_lost_workers():
        done = waiting.popleft().result()
    if isinstance(done, str):
        raise ChessError(done)
    return done
