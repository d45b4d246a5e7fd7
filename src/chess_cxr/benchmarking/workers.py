"""Cells through an executor: few at a time, past failures and lost workers, and never twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import util

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.cells import Cell, Outcome, compute_cell, run_cell
from chess_cxr.records import ChessError, OnCount
from chess_cxr.workers.cores import count_usable_cores

WORKER_DIED = "its worker died, most likely for want of memory"
IN_FLIGHT_A_WORKER = 2


class CellRunner:
    """Runs cells in processes of this machine, in those of an executor, or here.

    workers: processes of a pool of its own, which is made anew where one of them dies; 0 computes here.
    executor: used instead, with about `workers` cells at once.  strict: raise what stops a cell, here or in the
    executor, instead of reporting it.
    """

    def __init__(self, workers: int = 0, executor: Executor | None = None, strict: bool = False) -> None:
        self._workers = workers
        self._executor = executor
        self._strict = strict
        self._pool: ProcessPoolExecutor | None = None
        self.computed = self.kept = 0

    def run(self, cells: Sequence[Cell], folder: CellFolder, on_done: OnCount | None = None) -> dict[str, str]:
        """Compute the cells that are not in the folder yet; return the reasons of those that failed, by key.

        on_done: called with how much is finished, of all that was missing, in the cells' `size`.
        """
        by_key = {cell.key: cell for cell in cells}
        missing = [cell for key, cell in by_key.items() if not folder.holds(key)]
        self.kept += len(by_key) - len(missing)
        failed: dict[str, str] = {}
        done, total = 0, sum(cell.size for cell in missing)
        if on_done and missing:
            on_done(0, total)
        for outcome in self._compute(missing, folder):
            done += by_key[outcome.key].size
            if outcome.reason:
                failed[outcome.key] = outcome.reason
            else:
                self.computed += 1
            if on_done:
                on_done(done, total)
        return failed

    def _compute(self, cells: Sequence[Cell], folder: CellFolder) -> Iterator[Outcome]:
        if self._executor is not None:
            yield from _run_ahead(self._executor, cells, folder, self._workers, [], self._strict)
        elif self._workers:
            yield from self._compute_in_pool(cells, folder)
        else:
            run = compute_cell if self._strict else run_cell
            for cell in cells:
                yield run(cell, cell.key, folder)

    def _compute_in_pool(self, cells: Sequence[Cell], folder: CellFolder) -> Iterator[Outcome]:
        """A pool that lost a process is lost: what was under way is tried once more at the end, each in its own."""
        suspects: list[Cell] = []
        waiting = list(cells)
        while waiting:
            lost: list[Cell] = []
            finished: set[str] = set()
            for outcome in _run_ahead(self._open_pool(), waiting, folder, self._workers, lost):
                finished.add(outcome.key)
                yield outcome
            if lost:
                self.close()
                suspects += lost
                finished |= {cell.key for cell in lost}
            waiting = [cell for cell in waiting if cell.key not in finished]
        for cell in suspects:
            lost = []
            yield from _run_ahead(self._open_pool(), [cell], folder, 1, lost)
            if lost:
                self.close()
                yield Outcome(cell.key, WORKER_DIED)

    def _open_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # the store's library does not survive a fork
            threads = max(1, count_usable_cores() // self._workers)
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=start_worker, initargs=(threads,)
            )
        return self._pool

    def close(self, at_once: bool = False) -> None:
        """End the processes of the own pool; `at_once` in the middle of what they do."""
        pool, self._pool = self._pool, None
        if pool is not None:
            if at_once:
                for process in list((pool._processes or {}).values()):
                    process.kill()
            pool.shutdown(cancel_futures=True)
            if at_once:
                # Whoever is interrupted may leave without tidying up, and Python would then complain of semaphores.
                util._run_finalizers(0)  # type: ignore[attr-defined]


@contextmanager
def open_runner(workers: int = 0, executor: Executor | None = None, strict: bool = False) -> Iterator[CellRunner]:
    """Yield a runner; where its block is left by an error or Ctrl-C, its processes end at once."""
    runner = CellRunner(workers, executor, strict)
    try:
        yield runner
    except BaseException:
        runner.close(at_once=True)
        raise
    runner.close()


def start_worker(threads: int) -> None:
    """Make a pool's process a good child: silent on Ctrl-C, which its parent handles, and gone with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))  # for what is imported later, torch above all
    threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))  # for what is there already


def _run_ahead(
    executor: Executor,
    cells: Iterable[Cell],
    folder: CellFolder,
    workers: int,
    lost: list[Cell],
    strict: bool = False,
) -> Iterator[Outcome]:
    """Yield outcomes as they come, with a few cells under way; those under way when the pool breaks go to `lost`."""
    run = compute_cell if strict else run_cell
    remaining = deque(cells)
    running: dict[Future[Outcome], Cell] = {}
    try:
        while remaining or running:
            while remaining and len(running) < IN_FLIGHT_A_WORKER * max(1, workers):
                cell = remaining[0]
                running[executor.submit(run, cell, cell.key, folder)] = cell
                remaining.popleft()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result() if strict else _take(future, running[future])
                del running[future]
                yield outcome
    except BrokenExecutor:
        lost += running.values()
    finally:
        for future in running:
            future.cancel()


def _take(future: Future[Outcome], cell: Cell) -> Outcome:
    try:
        return future.result()
    except BrokenExecutor:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # each executor has errors of its own for workers it lost
        return Outcome(cell.key, f"its worker was lost ({type(error).__name__})")


def check_folder(folder: CellFolder) -> None:
    """Make the folder of cells, and clear what killed runs left.  Raises ChessError where it cannot be made."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ChessError(f"{folder.root} cannot be made: {error.strerror}") from None
    folder.clear_partial()
