"""Write the features of a store's films into the store, as a column of the encoder; an interrupted run continues."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from concurrent.futures import Executor
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from chess_cxr.encoders.embed import open_encoder
from chess_cxr.encoders.film_features import FilmEncoder, iterate_features
from chess_cxr.encoders.names import locate_encoder
from chess_cxr.files.locations import is_url, read_location, remove_folder, write_location
from chess_cxr.records import ChessError, OnCount
from chess_cxr.store import Store, open_store
from chess_cxr.workers.pool import run_in_order

ROWS_A_PART = 512  # rows that a kill costs at most
MOST_PART_BYTES = 1 << 28


def write_embedding(
    name: str,
    encoder: FilmEncoder,
    store: Store,
    on_films: OnCount | None = None,
    executor: Executor | None = None,
    in_flight: int = 0,
    device: str = "auto",
) -> Store:
    """Embed all films of a store into its column of this encoder; return the store with the column.

    name: the encoder's, as `load_encoder` takes it; stands in the column.  Nothing happens if the column is there.
    Parts lie beside the store until the column is written, in one commit; the same call continues with them.
    executor: runs the network elsewhere, on machines that see the same store and encoder, on `device`.
    """
    if encoder.key in store.embeddings:
        return store
    parts = _Parts(store, encoder.key)
    done = parts.count()
    starts = range(done * ROWS_A_PART, len(store), ROWS_A_PART)
    if executor:
        embed = partial(_embed_part, _make_absolute(store.location), _make_absolute(locate_encoder(name)), device)
        made = run_in_order([(encoder.key, start) for start in starts], embed, executor, in_flight)
    else:
        made = _cut(iterate_features(encoder, store, np.arange(done * ROWS_A_PART, len(store))))
    with closing(made):
        for number, feature_ND in enumerate(made, done):
            if not np.isfinite(feature_ND).all():
                raise ChessError(f"{name} gives NaN or infinity for a film of {store.path.name}: nothing was written")
            parts.write(number, feature_ND)
            if on_films:
                on_films(min((number + 1) * ROWS_A_PART, len(store)), len(store))
    count = -(-len(store) // ROWS_A_PART)
    width = parts.read(0).shape[1]
    written = store.add_embedding(encoder.key, name, map(parts.read, range(count)), width)
    remove_folder(parts.place)
    return written


def count_embedded(store: Store, key: str) -> int:
    """Return the number of films that an interrupted run has embedded."""
    return min(_Parts(store, key).count() * ROWS_A_PART, len(store))


class _Parts:
    """Features of consecutive rows in files beside a store, on the same disk or in the same bucket."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        place = f"{str(store.location).rstrip('/')}.{key}.partial"
        self.place: Path | str = place if is_url(store.location) else Path(place)

    def count(self) -> int:
        """Return the number of parts from the first on that are there."""
        number = 0
        while number * ROWS_A_PART < len(self._store) and self._try_reading(number) is not None:
            number += 1
        return number

    def read(self, number: int) -> np.ndarray:
        """Read the features of a part, float32 [n, D]."""
        content = read_location(self._name(number), MOST_PART_BYTES)
        feature_ND: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        return feature_ND

    def write(self, number: int, feature_ND: np.ndarray) -> None:
        """Write a part whole or not at all."""
        if isinstance(self.place, Path):
            self.place.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, feature_ND, allow_pickle=False)
        write_location(self._name(number), content.getvalue())

    def _try_reading(self, number: int) -> np.ndarray | None:
        try:
            part = self.read(number)
        except (OSError, ValueError):
            return None
        rows = min(ROWS_A_PART, len(self._store) - number * ROWS_A_PART)
        return part if part.dtype == np.float32 and part.ndim == 2 and len(part) == rows else None

    def _name(self, number: int) -> Path | str:
        name = f"{number:06d}.npy"
        return self.place / name if isinstance(self.place, Path) else f"{self.place}/{name}"


def _cut(features: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
    """Join pieces to parts of `ROWS_A_PART` rows."""
    held = np.empty((0, 0), np.float32)
    for piece in features:
        held = np.concatenate([held, piece]) if len(held) else piece
        while len(held) >= ROWS_A_PART:
            yield held[:ROWS_A_PART]
            held = held[ROWS_A_PART:]
    if len(held):
        yield held


def _make_absolute(location: Path | str) -> str:
    """Return a path that a process in another folder understands; other names stay."""
    is_path = not is_url(location) and Path(location).exists()
    return str(Path(location).resolve()) if is_path else str(location)


def _embed_part(location: str, name: str, device: str, request: tuple[str, int]) -> np.ndarray:
    key, start = request
    encoder, store = _open_both(location, name, device)
    if encoder.key != key:
        raise ChessError(f"a worker finds another encoder under the name {name}; it must see the same files")
    rows = np.arange(start, min(start + ROWS_A_PART, len(store)))
    return np.concatenate(list(iterate_features(encoder, store, rows)))


@lru_cache(maxsize=1)
def _open_both(location: str, name: str, device: str) -> tuple[FilmEncoder, Store]:
    return open_encoder(name, device), open_store(location if is_url(location) else Path(location))
