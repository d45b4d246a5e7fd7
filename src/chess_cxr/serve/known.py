"""Known films: the films of a store that an encoder finds most like a new one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chess_cxr.records import UsageError
from chess_cxr.store import Store, open_store

if TYPE_CHECKING:
    from chess_cxr.encoders.encoder import Encoder
    from chess_cxr.encoders.onnx_encoder import OnnxEncoder

MOST_SHOWN = 50
FILMS_AT_ONCE = 256


@dataclass(frozen=True)
class KnownFilms:
    """A store, and the features of its films: less their mean, at length 1."""

    store: Store
    labels: tuple[str, ...]
    mean_D: np.ndarray
    unit_ND: np.ndarray

    def find_nearest(self, feature_D: np.ndarray, count: int) -> list[dict[str, Any]]:
        """Return the nearest films with their cosine, keyed hash, labels, and number in the store."""
        cosine_N = self.unit_ND @ _make_unit(feature_D - self.mean_D)
        rows = np.argsort(-cosine_N, kind="stable")[: min(count, MOST_SHOWN)]
        films = self.store.films.iloc[rows]
        return [
            {
                "number": int(row),
                "uid": str(film["uid"]),
                "cosine": float(cosine_N[row]),
                "labels": {name: _read_label(film[name]) for name in self.labels},
            }
            for row, (_, film) in zip(rows, films.iterrows(), strict=True)
        ]

    def read_jpeg(self, number: int) -> bytes:
        """Return a film of the store; raises `UsageError` if there is none of this number."""
        if not 0 <= number < len(self.store):
            raise UsageError("the store has no film of this number")
        return self.store.read_jpegs([number])[0]


def embed_known(location: Path, encoder: Encoder | OnnxEncoder) -> KnownFilms:
    """Embed all films of a store."""
    store = open_store(location)
    if not len(store):
        raise UsageError(f"there is no film of {store.path.name} to embed")
    parts = []
    for start in range(0, len(store), FILMS_AT_ONCE):
        films = store.read_films(np.arange(start, min(start + FILMS_AT_ONCE, len(store))))
        parts.append(encoder.embed([film.astype(np.float32) / 255 for film in films]))
    feature_ND = np.concatenate(parts).astype(np.float64)
    mean_D = feature_ND.mean(0)
    return KnownFilms(store, tuple(store.label_names), mean_D, _make_unit(feature_ND - mean_D))


def _make_unit(feature_D: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(feature_D, axis=-1, keepdims=True)
    unit: np.ndarray = feature_D / np.maximum(length, 1e-12)
    return unit


def _read_label(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
