"""Lay the films of an archive out in the plane, so that like films are near each other."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Literal

import numpy as np

from chess_cxr.records import import_extra

Layout = Literal["auto", "umap", "pca"]
UMAP_NEIGHBOURS = 15


def choose_layout(layout: Layout) -> Literal["umap", "pca"]:
    """Return the layout itself, or for "auto" UMAP if it is installed; raises `UsageError` if it is missing."""
    if layout == "auto":
        return "umap" if find_spec("umap") else "pca"
    if layout == "umap":
        import_extra("umap", "map", "--layout umap")
    return layout


def lay_out(
    unit_ND: np.ndarray, near_NK: np.ndarray, cosine_NK: np.ndarray, layout: Literal["umap", "pca"], seed: int
) -> np.ndarray:
    """Return a point for each film, float32 [N, 2] in [-0.95, 0.95].

    near_NK, cosine_NK: the nearest films of each, from `find_nearest_of_all`.  UMAP (McInnes et al. 2018) uses
    them instead of its own approximate ones; PCA keeps the two directions of the largest variance.
    """
    if layout == "pca" or near_NK.shape[1] < 2:
        _, axis_DD = np.linalg.eigh(unit_ND.T @ unit_ND)
        axis_D2 = axis_DD[:, : -min(3, len(axis_DD) + 1) : -1]
        axis_D2 = axis_D2 * np.where(axis_D2[np.abs(axis_D2).argmax(0), np.arange(axis_D2.shape[1])] < 0, -1, 1)
        point_N2 = unit_ND @ axis_D2
    else:
        point_N2 = _run_umap(unit_ND, near_NK, cosine_NK, seed)
    middle = (point_N2.max(0) + point_N2.min(0)) / 2
    reach = float(np.abs(point_N2 - middle).max()) or 1.0
    return np.asarray(0.95 * (point_N2 - middle) / reach, np.float32)


def _run_umap(unit_ND: np.ndarray, near_NK: np.ndarray, cosine_NK: np.ndarray, seed: int) -> np.ndarray:
    umap = import_extra("umap", "map", "--layout umap")
    count = min(UMAP_NEIGHBOURS, near_NK.shape[1] + 1)
    own = np.arange(len(near_NK))[:, None]
    index = np.concatenate([own, near_NK[:, : count - 1]], axis=1)
    distance = np.concatenate([np.zeros((len(own), 1), np.float32), 1 - cosine_NK[:, : count - 1]], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread, and that the search tree is not kept
        reducer = umap.UMAP(
            n_neighbors=count, metric="cosine", random_state=seed,
            precomputed_knn=(index, distance.astype(np.float32), None),
        )  # fmt: skip
        point_N2: np.ndarray = reducer.fit_transform(unit_ND)
    return point_N2
