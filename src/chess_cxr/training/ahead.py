"""Prepare batches ahead of the training step, in threads.

Threads scale, as decoding and warping release Python's lock; worker processes could not be forked, as Lance forbids it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

Prepared = TypeVar("Prepared")


def prepare_ahead(prepare: Callable[[int], Prepared], steps: range, threads: int) -> Generator[Prepared, None, None]:
    """Yield `prepare(step)` for each step in order, while threads prepare the next ones."""
    cv2.setNumThreads(1)  # OpenCV must not start threads of its own besides these
    with ThreadPoolExecutor(threads, thread_name_prefix="views") as executor:
        waiting: deque[Future[Prepared]] = deque()
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
