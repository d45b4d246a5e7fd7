"""Films of uniform grey with noise, and films of a store to be written again."""

from collections.abc import Iterable, Sequence

import numpy as np

from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.store import Store, StoredFilm


def draw_grey_films(
    films: Iterable[tuple[ImageRecord, float]], noise: float = 0.05, jitter: float = 0.0, seed: int = 0, side: int = 40
) -> list[StoredFilm]:
    """Draw a film of each record and grey; jitter: standard deviation of a film's grey, noise: of its pixels'."""
    rng, drawn = np.random.default_rng(seed), []
    for record, grey in films:
        level = grey + rng.normal(0, jitter) if jitter else grey
        pixels = np.clip(level + rng.normal(0, noise, (side, side)), 0, 1).astype(np.float32)
        drawn.append(StoredFilm(record, *encode_film(pixels, side)))
    return drawn


def list_stored(store: Store, labels: Sequence[str]) -> list[StoredFilm]:
    rows = zip(store.films.to_dict("records"), store.read_jpegs(range(len(store))), strict=True)
    return [
        StoredFilm(
            ImageRecord(row["uid"], row["patient"], split=row["split"], labels={name: row[name] for name in labels}),
            jpeg, row["height"], row["width"],
        )
        for row, jpeg in rows
    ]  # fmt: skip
