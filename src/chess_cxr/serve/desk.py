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
FETCHERS = 8
STILL = 0.9  # of the mean time of requests that is kept when a new one is averaged in


@dataclass
class Desk:
    """Requests at a time, and who works on them.

    most_requests: received, waiting and at work.  most_bytes: of all bodies.  folder: where bodies lie; removed with
    all in it by `close`.  held: bytes of each request's bodies, by its folder.  readers judge and encode films as the
    ingest does, makers do the rest; both own children.  fetchers wait for DICOMweb servers.
    """

    workers: int
    limits: Limits
    most_requests: int
    most_bytes: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=f"chess-cxr-{os.getpid()}-")))
    held: dict[Path, int] = field(default_factory=dict)
    seconds: float = 1.0
    closing: bool = False

    def __post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(self.workers, thread_name_prefix="answer")
        self.readers: Executor = build_ingest_pool(self.workers)
        self.makers: Executor = build_ingest_pool(self.workers)
        self.fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")

    @property
    def requests(self) -> int:
        """Requests at hand."""
        return len(self.held)

    @property
    def is_full(self) -> bool:
        """Whether the next request would be sent away."""
        return self.requests >= self.most_requests or sum(self.held.values()) >= self.most_bytes

    @asynccontextmanager
    async def take_request(self) -> AsyncIterator[Path]:
        """Give a request a folder for its body, and remove it afterwards; raises `Problem` 503 if the desk is full."""
        if self.closing or self.is_full:
            raise self.send_away()
        begun, place = time.monotonic(), Path(tempfile.mkdtemp(dir=self.folder))
        self.held[place] = 0
        try:
            yield place
        finally:
            self.seconds = STILL * self.seconds + (1 - STILL) * (time.monotonic() - begun)
            try:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            finally:
                del self.held[place]

    def hold(self, place: Path, count: int) -> None:
        """Count bytes that a request puts on the disk, until it ends; raises `Problem` 503 if that is too much."""
        self.held[place] += count
        if sum(self.held.values()) > self.most_bytes:
            raise self.send_away()

    def send_away(self) -> Problem:
        """Return the problem of a full desk, with the seconds after which there may be room."""
        wait = 5 if self.closing else max(1, math.ceil(self.seconds))
        return Problem(503, "the server has as many requests as it takes; try again later", {"Retry-After": str(wait)})

    async def run(self, work: Callable[..., Done], *request: Any) -> Done:
        """Return `work(*request)`, called in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *request)

    async def fetch(self, work: Callable[..., Done], *request: Any) -> Done:
        """Return `work(*request)`, called where waiting for another server holds up nobody else."""
        return await asyncio.get_running_loop().run_in_executor(self.fetchers, work, *request)

    def ask(self, step: str, *request: Any) -> Any:
        """Return what a child makes of a film, see `work_in_child`; raises `Undecodable`."""
        return self.makers.submit(call_in_child, work_in_child, self.limits, step, *request).result()

    def close(self) -> None:
        """Finish the work at hand, end the children, remove all bodies."""
        self.closing = True
        for pool in (self.threads, self.readers, self.makers, self.fetchers):
            pool.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
