"""Whether a film is like those that a bone network has learnt from, by its coarse greys and its detail; without torch.

Suffixes: D features; N films.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from chess_cxr.records import ChessError

SIDE, COARSE = 128, 16  # sides of a film, and of its coarse greys
MOST_FILMS = 256
ALLOWANCE = 1.25  # times the largest distance of a training film from the others
LEAST_SPREAD = 0.05  # share of the features' mean spread; features that hardly vary tell nothing
BONE_DARK, UNLIKE = "bone seems to be dark", "unlike the training films"


@dataclass(frozen=True)
class FamiliarFilms:
    """The features of the training films: mean_D, spread_D, and the largest distance that is still like them."""

    mean_D: np.ndarray
    spread_D: np.ndarray
    limit: float

    def measure(self, feature_D: np.ndarray) -> float:
        """Return the root mean square of the features' distances from the mean, in standard deviations."""
        return float(np.sqrt(np.mean(((feature_D - self.mean_D) / self.spread_D) ** 2)))

    def doubt(self, film_HW: np.ndarray) -> tuple[str, ...]:
        """Return why the network may not know a film, float32 [H, W] in [0, 1]; nothing if it is like its films."""
        distance, turned = (self.measure(compute_features(film)) for film in (film_HW, 1 - film_HW))
        if distance <= self.limit:
            return ()
        return (BONE_DARK if turned <= self.limit else f"{UNLIKE} (distance {distance / self.limit:.1f}, limit 1)",)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values, for a model's config.json."""
        mean, spread = ([float(f"{value:.6g}") for value in part] for part in (self.mean_D, self.spread_D))
        return {"mean": mean, "spread": spread, "limit": float(f"{self.limit:.6g}")}


def read_familiar(described: object, folder: object) -> FamiliarFilms | None:
    """Read what `as_json` wrote; None for a model of an earlier version.  Raises ChessError if it is damaged."""
    if described is None:
        return None
    try:
        assert isinstance(described, Mapping)
        mean_D, spread_D = (np.array(described[name], np.float64) for name in ("mean", "spread"))
        limit = float(described["limit"])
        sound = mean_D.ndim == 1 and mean_D.shape == spread_D.shape and np.isfinite(mean_D).all()
        assert sound and (spread_D > 0).all() and np.isfinite(spread_D).all() and 0 < limit < np.inf
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError):
        raise ChessError(f"{folder}: the training films of a bone model have features and a limit") from None
    return FamiliarFilms(mean_D, spread_D, limit)


def describe_familiar(films: Sequence[np.ndarray]) -> FamiliarFilms:
    """Describe training films, evenly chosen among them if there are more than `MOST_FILMS`.

    The limit is `ALLOWANCE` times the largest distance of a film from the mean of the others.
    """
    chosen = np.unique(np.linspace(0, len(films) - 1, min(len(films), MOST_FILMS)).astype(int))
    feature_ND = np.stack([compute_features(films[number]) for number in chosen])
    whole = _fit(feature_ND)
    left_out = [np.delete(feature_ND, number, axis=0) for number in range(len(feature_ND))]
    distances = [_fit(others).measure(one) for others, one in zip(left_out, feature_ND, strict=True) if len(others)]
    return FamiliarFilms(whole.mean_D, whole.spread_D, ALLOWANCE * max([1.0, *distances]))


def _fit(feature_ND: np.ndarray) -> FamiliarFilms:
    spread_D = feature_ND.std(axis=0)
    return FamiliarFilms(feature_ND.mean(axis=0), np.maximum(spread_D, LEAST_SPREAD * spread_D.mean() + 1e-6), 1.0)


def compute_features(film_HW: np.ndarray) -> np.ndarray:
    """Return the coarse greys of a film, and the logarithm of its detail, each with equal weight, float64 [D]."""
    film = cv2.resize(np.asarray(film_HW, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey_D = cv2.resize(film, (COARSE, COARSE), interpolation=cv2.INTER_AREA).ravel()
    detail = np.log(float((film - cv2.GaussianBlur(film, (0, 0), 2)).std()) + 1e-3)
    return np.concatenate([grey_D, np.full(len(grey_D), detail)]).astype(np.float64)
