"""A Dask cluster as an executor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import Executor

from chess_cxr.records import ChessError, UsageError, import_extra

CONNECT_SECONDS = 10
# Host (IPv6 in brackets) and port, which Dask itself takes a minute to miss.
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})/?")


@contextlib.contextmanager
def connect_cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """Yield the executor of the Dask cluster whose scheduler is at `address`, and how many threads its workers have.

    A task whose worker is lost runs again on another; what is under way at the end is called off.  Raises `UsageError`
    where Dask is not installed or the address makes no sense, `ChessError` where no scheduler answers within ten
    seconds or no worker is there.
    """
    check_address(address)
    distributed = import_extra("distributed", "cluster", "--cluster")
    try:
        # A Client that could not connect would take another minute to go, and complain while it does.
        with _silence():
            asyncio.run(_greet(address))
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception:  # what it is depends on who listens there instead
        raise ChessError(f"no Dask scheduler answers at {address}") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ChessError(f"the Dask cluster at {address} has no worker; start some: dask worker {address}")
        # Not pure: a film that was read before may have changed since.
        executor = client.get_executor(pure=False)
        try:
            yield executor, threads
        finally:
            executor.shutdown(wait=False)


def check_address(address: str) -> None:
    """Raise `UsageError` for what cannot be the address of a scheduler."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise UsageError(f"{address!r} is no address of a Dask scheduler, such as tcp://10.0.0.1:8786")


async def _greet(address: str) -> None:
    distributed = import_extra("distributed", "cluster", "--cluster")
    arguments = distributed.Security().get_connection_args("client")
    asked = distributed.comm.connect(address, timeout=CONNECT_SECONDS, **arguments)
    comm = await asyncio.wait_for(asked, CONNECT_SECONDS)  # to shake hands may take longer than to connect
    await comm.close()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Dask from logging how it failed to connect: whoever asked is told in one line."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
