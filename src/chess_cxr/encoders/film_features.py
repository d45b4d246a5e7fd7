"""Features of the films of stores, by any encoder: films are prepared ahead in threads; never torch itself."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from chess_cxr.store import Store
from chess_cxr.workers.cores import count_usable_cores

FILMS_AT_ONCE = 64
MOST_THREADS = 8


@dataclass(frozen=True)
class FilmEncoder:
    """An encoder, or bare pixels, for the uint8 films of stores.

    key: 16 hexadecimal digits, equal for equal weights and pixel contracts.
    prepare: makes the input of uint8 films, in any thread.  embed: makes float32 [N, D] of the input.
    """

    name: str
    key: str
    prepare: Callable[[Sequence[np.ndarray]], Any]
    embed: Callable[[Any], np.ndarray]


def iterate_features(encoder: FilmEncoder, store: Store, rows: np.ndarray) -> Generator[np.ndarray, None, None]:
    """Yield the features of some rows of a store, float32 [n, D] part by part; threads prepare films ahead."""

    def prepare(part: np.ndarray) -> Any:
        return encoder.prepare(store.read_films(part))

    threads = max(1, min(MOST_THREADS, count_usable_cores() - 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        prepared: deque[Future[Any]] = deque()
        for start in range(0, len(rows), FILMS_AT_ONCE):
            prepared.append(pool.submit(prepare, rows[start : start + FILMS_AT_ONCE]))
            if len(prepared) > threads:
                yield encoder.embed(prepared.popleft().result())
        while prepared:
            yield encoder.embed(prepared.popleft().result())


def shorten_key(text: str) -> str:
    """Return the key of an encoder whose hashes are given."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
