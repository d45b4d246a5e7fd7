"""What the REST server takes at a time: requests, bytes of bodies on the disk, threads and child processes."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from chess_cxr.serve.child import work_in_child
from chess_cxr.serve.problem import Problem
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

Done = TypeVar("Done")
STILL = 0.9  # of the mean time of requests that is kept when a new one is averaged in


@dataclass
class Desk:
    """Requests at a time, and who works on them.

    most_requests: received, waiting and at work.  most_bytes: of all bodies.  folder: where bodies lie; removed with
    all in it by `close`.  readers judge and encode films as the ingest does, makers do the rest; both own children.
    """

    workers: int
    limits: Limits
    most_requests: int
    most_bytes: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=f"chess-cxr-{os.getpid()}-")))
    requests: int = 0
    bytes: int = 0
    seconds: float = 1.0
    closing: bool = False

    def __post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(self.workers, thread_name_prefix="answer")
        self.readers: Executor = build_ingest_pool(self.workers)
        self.makers: Executor = build_ingest_pool(self.workers)

    @property
    def is_full(self) -> bool:
        """Whether the next request would be sent away."""
        return self.requests >= self.most_requests or self.bytes >= self.most_bytes

    @asynccontextmanager
    async def take_request(self) -> AsyncIterator[Path]:
        """Give a request a folder for its body, and remove it afterwards; raises `Problem` 503 if the desk is full."""
        if self.closing or self.is_full:
            raise self.send_away()
        self.requests += 1
        begun = time.monotonic()
        place = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield place
        finally:
            self.requests -= 1
            self.seconds = STILL * self.seconds + (1 - STILL) * (time.monotonic() - begun)
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    def send_away(self) -> Problem:
        """Return the problem of a full desk, with the seconds after which there may be room."""
        wait = 5 if self.closing else max(1, math.ceil(self.seconds))
        return Problem(503, "the server has as many requests as it takes; try again later", {"Retry-After": str(wait)})

    async def run(self, work: Callable[..., Done], *request: Any) -> Done:
        """Return `work(*request)`, called in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *request)

    def ask(self, step: str, *request: Any) -> Any:
        """Return what a child makes of a film, see `work_in_child`; raises `Undecodable`."""
        return self.makers.submit(call_in_child, work_in_child, self.limits, step, *request).result()

    def close(self) -> None:
        """Finish the work at hand, end the children, remove all bodies."""
        self.closing = True
        for pool in (self.threads, self.readers, self.makers):
            pool.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
