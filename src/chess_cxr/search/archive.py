"""The films of a store that an encoder finds most like a film: cosine of features less their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chess_cxr.encoders.film_features import FilmEncoder, iterate_features
from chess_cxr.evaluation.neighbours import make_unit
from chess_cxr.records import UsageError
from chess_cxr.store import Store


@dataclass(frozen=True)
class Archive:
    """A store, and the features of its films: less their mean, at length 1, float32 [N, D]."""

    store: Store
    mean_D: np.ndarray
    unit_ND: np.ndarray

    def find_nearest(
        self, feature_D: np.ndarray, count: int, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the nearest films and their cosines, nearest first; rows: the films to choose from."""
        unit_D = make_unit(feature_D - self.mean_D).astype(np.float32)
        cosine_N = self.unit_ND @ unit_D if rows is None else self.unit_ND[rows] @ unit_D
        near = find_largest(cosine_N, count)
        return near if rows is None else rows[near], cosine_N[near]


def find_largest(value_N: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest values, largest first; of equal ones, the first place first."""
    if count < len(value_N):
        least = np.partition(value_N, len(value_N) - count)[len(value_N) - count]
        place = np.flatnonzero(value_N >= least)
    else:
        place = np.arange(len(value_N))
    return place[np.argsort(-value_N[place], kind="stable")][:count]


def read_archive(store: Store, encoder: FilmEncoder, name: str) -> Archive:
    """Read the features that `chess-cxr embed` wrote; raises `UsageError` with the command if there are none."""
    return build_archive(store, read_features(store, encoder, name))


def read_features(store: Store, encoder: FilmEncoder, name: str) -> np.ndarray:
    """Read the column of an encoder, float32 [N, D]; raises `UsageError` with the command if there is none."""
    if encoder.key in store.embeddings:
        return store.read_embedding(encoder.key)
    others = ", ".join(sorted(filter(None, store.embeddings.values())))
    told = f"; it has those of {others}, with other weights or pixels" if others else ""
    raise UsageError(
        f"{store.path.name} has no embedding of {name}{told}; write it with: chess-cxr embed {name} {store.location}"
    )


def embed_archive(store: Store, encoder: FilmEncoder) -> Archive:
    """Read the features of a store's films, or compute them if the store does not hold them."""
    if encoder.key in store.embeddings:
        return build_archive(store, store.read_embedding(encoder.key))
    return build_archive(store, np.concatenate(list(iterate_features(encoder, store, np.arange(len(store))))))


def build_archive(store: Store, feature_ND: np.ndarray) -> Archive:
    """Take the mean off all features and give them length 1."""
    mean_D = feature_ND.mean(0, dtype=np.float64)
    unit_ND = np.subtract(feature_ND, mean_D.astype(np.float32))
    unit_ND /= np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), 1e-12)
    return Archive(store, mean_D, unit_ND)


def read_labels(film: Mapping[Any, Any], names: Sequence[str]) -> dict[str, float | None]:
    """Return the labels of a film as JSON values, None where unknown."""
    return {name: None if film[name] is None or math.isnan(film[name]) else float(film[name]) for name in names}
