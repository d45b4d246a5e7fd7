"""Connect to a Dask cluster and use it as an executor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import Executor

from chess_cxr.records import ChessError, UsageError, import_extra

CONNECT_SECONDS = 10
# Host (IPv6 in brackets) and port; Dask itself takes a minute to reject a wrong address.
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})/?")


@contextlib.contextmanager
def connect_cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """Yield the executor of the Dask cluster with its scheduler at `address`, and the number of its worker threads.

    A task whose worker is lost runs again on another; tasks still running at the end are cancelled.  Raises
    `UsageError` if Dask is not installed or the address is invalid, `ChessError` if no scheduler answers within ten
    seconds or there is no worker.
    """
    check_address(address)
    distributed = import_extra("distributed", "cluster", "--cluster")
    try:
        # A Client that cannot connect takes another minute to end, and logs errors meanwhile.
        with _silence():
            asyncio.run(_greet(address))
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception:  # depends on what listens there
        raise ChessError(f"no Dask scheduler answers at {address}") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ChessError(f"the Dask cluster at {address} has no worker; start some: dask worker {address}")
        # pure=False: a film may have changed since it was last read.
        executor = client.get_executor(pure=False)
        try:
            yield executor, threads
        finally:
            executor.shutdown(wait=False)


def check_address(address: str) -> None:
    """Raise `UsageError` unless `address` can be that of a scheduler."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise UsageError(f"{address!r} is not the address of a Dask scheduler, such as tcp://10.0.0.1:8786")


async def _greet(address: str) -> None:
    distributed = import_extra("distributed", "cluster", "--cluster")
    arguments = distributed.Security().get_connection_args("client")
    asked = distributed.comm.connect(address, timeout=CONNECT_SECONDS, **arguments)
    comm = await asyncio.wait_for(asked, CONNECT_SECONDS)  # the handshake may take longer than the connection
    await comm.close()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Dask from logging a failed connection; the user gets one line."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
