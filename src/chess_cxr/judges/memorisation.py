"""Detect memorisation: compare generated and held-out real films by the distance to their nearest training film.

Held-out real films lie at some distance from their nearest training film.  Generated films that lie nearer are copies,
or blurred: a film without detail is near to everything.  So distances are also measured relative to a film's median
distance to all training films, which blur lowers too, but copying does not.  This removes much of the effect of blur,
not all of it.  Only a look at the closest pairs proves a copy.

Of inpainted films, compare the crops around the masks: the rest is a real film by design.

Shape suffixes: N generated, M held-out, T training films, D features, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.intervals import Interval, bootstrap_by_patient
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.judges.frechet import name_groups
from chess_cxr.records import UsageError

Space = Literal["features", "pixels"]

CLOSE_QUANTILE = 0.05
FEWEST_HELDOUT = 20
PIXEL_SIDE = 32
_MOST_DISTANCES = 1 << 22  # held in memory at once


@dataclass(frozen=True)
class ClosePair:
    """A generated film and its nearest training film.

    heldout_share: share of held-out films that are at least as near to theirs.
    """

    generated: int
    train: int
    distance: float
    heldout_share: float


@dataclass(frozen=True)
class Memorisation:
    """Distances of generated films to training films, compared with held-out real films.

    space: "features" (Euclidean, each feature in units of its standard deviation over the training films) or "pixels"
    (1 - normalised cross-correlation).  distance, heldout_distance: median distance to the nearest training film.
    ratio: the first divided by the second; copies and blur lower it below 1.
    close: share of generated films nearer than the held-out films' 5 % quantile; 0.05 is expected without copies.
    close_relative: the same, with each distance divided by the film's median distance to all training films.
    heldout_closest: smallest distance of a held-out film.  pairs: the closest pairs, for a picture.
    Intervals cover the choice of generated and held-out films, for a fixed generator and fixed training films.
    """

    space: Space
    count: int
    heldout_count: int
    train_count: int
    distance: Interval
    heldout_distance: Interval
    ratio: Interval
    close: Interval
    close_relative: Interval
    heldout_closest: float
    pairs: tuple[ClosePair, ...]

    def as_text(self) -> str:
        """Return one readable line."""
        ratio, close, relative = (
            f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (self.ratio, self.close, self.close_relative)
        )
        return (
            f"nearest training film in {self.space}: median distance {ratio} of that of {self.heldout_count} held-out "
            f"films; {close} of {self.count} generated films closer than 5 % of these are, {relative} for their own "
            f"spread; closest pair {self.pairs[0].distance:.4g} (held-out {self.heldout_closest:.4g}); "
            f"{self.train_count} training films"
        )


def measure_memorisation(
    generated_ND: ArrayLike,
    heldout_MD: ArrayLike,
    train_TD: ArrayLike,
    space: Space = "features",
    *,
    group_N: ArrayLike | None = None,
    group_M: ArrayLike | None = None,
    group_T: ArrayLike | None = None,
    closest: int = 8,
    replicates: int = 1000,
    seed: int = 0,
) -> Memorisation:
    """Compare the distances of generated and held-out films to their nearest training films.

    generated_ND, heldout_MD, train_TD: features of one network, or rows of `shrink_films` with space "pixels".
    group_N, group_M, group_T: patients (for a generated film, its source film); a patient in both of the first two is
    resampled in both.
    Raises UsageError for held-out patients among the training patients, whose films are near to training films anyway,
    for fewer than 20 held-out films, for different shapes and for non-finite values.
    """
    generated, heldout, train = (np.asarray(rows, dtype=np.float64) for rows in (generated_ND, heldout_MD, train_TD))
    _check_sets(generated, heldout, train)
    names = name_groups(group_N, len(generated), "generated"), name_groups(group_M, len(heldout), "held-out")
    if group_T is not None and set(names[1]) & {str(name) for name in np.asarray(group_T).tolist()}:
        raise UsageError("held-out patients are among the training patients: hold out other patients")
    scale = _scale_features if space == "features" else _scale_pixels
    generated, heldout, train = scale(generated, train), scale(heldout, train), scale(train, train)
    place_N, near_N, middle_N = _find_nearest(generated, train, space)
    _, near_M, middle_M = _find_nearest(heldout, train, space)
    interval = _bootstrap(
        (near_N, near_M), (near_N / middle_N, near_M / middle_M), np.concatenate(names), replicates, seed
    )
    order = np.argsort(near_N, kind="stable")[:closest]
    pairs = tuple(
        ClosePair(int(n), int(place_N[n]), float(near_N[n]), float((near_M <= near_N[n]).mean())) for n in order
    )
    return Memorisation(
        space, len(generated), len(heldout), len(train), **interval, heldout_closest=float(near_M.min()), pairs=pairs
    )


def shrink_films(films: Sequence[NDArray[np.floating]], side: int = PIXEL_SIDE) -> FloatArray:
    """Shrink films, float [H, W] of any size, to `side` x `side` pixels by area averages: float64 [N, side * side]."""
    small = [_average_rows(_average_rows(film_HW, side).T, side).T.ravel() for film_HW in films]
    return np.array(small, dtype=np.float64).reshape(len(films), side * side)


def _average_rows(film_HW: NDArray[np.floating], side: int) -> FloatArray:
    """Average the rows [H, W] to [side, W], as differences of the cumulative sum at fractional rows."""
    height = film_HW.shape[0]
    total = np.concatenate([np.zeros((1, film_HW.shape[1])), np.cumsum(film_HW, axis=0, dtype=np.float64)])
    edge = np.linspace(0, height, side + 1)
    low = np.minimum(edge.astype(int), height - 1)
    at_edge = total[low] + (edge - low)[:, None] * (total[low + 1] - total[low])
    averaged: FloatArray = np.diff(at_edge, axis=0) * (side / height)
    return averaged


def _check_sets(generated: FloatArray, heldout: FloatArray, train: FloatArray) -> None:
    shapes = [rows.shape for rows in (generated, heldout, train)]
    if any(len(shape) != 2 or shape[1:] != shapes[0][1:] for shape in shapes):
        raise UsageError(f"generated, held-out and training films of {shapes} are not [films, features] of one kind")
    if not len(generated) or len(heldout) < FEWEST_HELDOUT or len(train) < 2:
        raise UsageError(
            f"memorisation needs generated films, {FEWEST_HELDOUT} held-out and 2 training films, not "
            f"{', '.join(str(shape[0]) for shape in shapes)}"
        )
    if not all(np.isfinite(rows).all() for rows in (generated, heldout, train)):
        raise UsageError("films or features hold NaN or infinity")


def _scale_features(rows: FloatArray, train: FloatArray) -> FloatArray:
    """Divide each feature by its standard deviation over the training films; constant features become 0."""
    spread = train.std(axis=0)
    scaled: FloatArray = rows / np.where(spread > 1e-9 * max(float(spread.max()), 1e-300), spread, np.inf)
    return scaled


def _scale_pixels(rows: FloatArray, train: FloatArray) -> FloatArray:
    """Remove brightness and contrast: the inner product of two scaled rows is their cross-correlation."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    if not (length > 0).all():
        raise UsageError("a film of one grey level has no cross-correlation: leave it out")
    scaled: FloatArray = centred / length
    return scaled


def _find_nearest(rows: FloatArray, train: FloatArray, space: Space) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    """Return index and distance of each row's nearest training film, and the row's median distance to all of them."""
    place, near, middle = np.empty(len(rows), np.intp), np.empty(len(rows)), np.empty(len(rows))
    step = max(1, _MOST_DISTANCES // len(train))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        product = part @ train.T
        if space == "pixels":
            distance = 1 - product
        else:
            square = (part**2).sum(axis=1)[:, None] + (train**2).sum(axis=1) - 2 * product
            distance = np.sqrt(np.maximum(square, 0))
        nearest = distance.argmin(axis=1)
        place[start : start + step] = nearest
        middle[start : start + step] = np.median(distance, axis=1)
        # for a copy, the formula above is a difference of large numbers: compute the distance directly
        gap = part - train[nearest]
        near[start : start + step] = (gap**2).sum(axis=1) / 2 if space == "pixels" else np.sqrt((gap**2).sum(axis=1))
    return place, near, middle


def _bootstrap(
    absolute: tuple[FloatArray, FloatArray],
    relative: tuple[FloatArray, FloatArray],
    names: NDArray[np.str_],
    replicates: int,
    seed: int,
) -> dict[str, Interval]:
    count = len(absolute[0])
    near, relative_near = np.concatenate(absolute), np.concatenate(relative)

    def measure(index: NDArray[np.intp]) -> dict[str, float]:
        generated, heldout = index[index < count], index[index >= count]
        keys = ("distance", "heldout_distance", "ratio", "close", "close_relative")
        if not len(generated) or not len(heldout):
            return dict.fromkeys(keys, np.nan)
        middle, heldout_middle = float(np.median(near[generated])), float(np.median(near[heldout]))
        shares = [
            float((values[generated] < np.quantile(values[heldout], CLOSE_QUANTILE)).mean())
            for values in (near, relative_near)
        ]
        ratio = middle / heldout_middle if heldout_middle > 0 else np.nan
        return dict(zip(keys, (middle, heldout_middle, ratio, *shares), strict=True))

    return bootstrap_by_patient(names, measure, replicates, seed)
