"""Prepare batches ahead of the training step, in threads.

The decoder and the warps release Python's lock, so threads scale, and Lance forbids forking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

Prepared = TypeVar("Prepared")


def prepare_ahead(prepare: Callable[[int], Prepared], steps: range, threads: int) -> Generator[Prepared, None, None]:
    """Yield what `prepare` makes of each step, in order, while threads prepare the next ones."""
    cv2.setNumThreads(1)  # these threads are as many as were asked for: OpenCV is to start no more
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
