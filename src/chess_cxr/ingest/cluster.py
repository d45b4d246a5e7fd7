"""A Dask cluster as an executor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor

from chess_cxr.records import ChessError, UsageError

CONNECT_SECONDS = 30


@contextlib.contextmanager
def connect_cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """Yield the executor of the Dask cluster whose scheduler is at `address`, and how many threads its workers have.

    A task whose worker is lost runs again on another.  Raises `UsageError` where Dask is not installed or the address
    makes no sense, `ChessError` where no scheduler answers or no worker is there.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--cluster needs Dask: pip install 'chess-cxr[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError):
        raise ChessError(f"no Dask scheduler answers at {address}") from None
    except ValueError:
        raise UsageError(f"{address!r} is no address of a Dask scheduler, such as tcp://10.0.0.1:8786") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ChessError(f"the Dask cluster at {address} has no worker; start some: dask worker {address}")
        # Not pure: a film that was read before may have changed since.
        with client.get_executor(pure=False) as executor:
            yield executor, threads
