"""The pointing game: whether the brightest point of a saliency map lies in the finding (Zhang et al. 2018).

A random point on the film hits it too at times: the chance level is the share of the film that counts as a hit.  A map
is informative if its hits exceed that.

Shape suffixes: H, W pixels of a film, N films.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from chess_cxr.evaluation.intervals import Interval, interval_of_rate
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class PointingScore:
    """Share of films that are hit, with its interval by patient; the chance level of these films; hits minus chance.

    hit_N: 1 or 0 of each film; a share if several points are equally bright.  chance_N: of each film.
    """

    hit: Interval
    chance: float
    above_chance: Interval
    hit_N: FloatArray
    chance_N: FloatArray

    def as_text(self) -> str:
        """Return the score in one line."""
        share, gap = (f"{it.value:.3f} [{it.low:.3f}, {it.high:.3f}]" for it in (self.hit, self.above_chance))
        return f"hit {share}, chance {self.chance:.3f}, above chance {gap}, {len(self.hit_N)} films"


def compute_pointing_score(
    maps: Sequence[ArrayLike],
    regions: Sequence[ArrayLike],
    patient_N: ArrayLike,
    *,
    tolerance_px: float = 0.0,
    within: Sequence[ArrayLike] | None = None,
    level: float = 0.95,
) -> PointingScore:
    """Play the pointing game on N films, each with a map and a region.

    maps: [H, W] each, larger is brighter.  regions: bool [H, W] each, where the finding is.  patient_N: patient of each
    film.  tolerance_px: a point this near to the region counts as a hit.  within: bool [H, W] each, the part of the
    film (such as the lungs) that is searched for the brightest point and defines chance; all of it by default.
    Intervals are those of `intervals.interval_of_rate`: hits are few, and a bootstrap of films without any hit would
    have no width.
    Raises UsageError if shapes differ, a map is not finite, or a film has no region or nothing to search.
    """
    inside = [np.ones(np.shape(region), bool) for region in regions] if within is None else within
    patient = np.asarray(patient_N)
    if not len(maps) == len(regions) == len(inside) == len(patient) or not len(patient):
        raise UsageError(f"{len(maps)} maps do not fit {len(regions)} regions and {len(patient)} patients")
    found = [
        play_pointing_game(one, region, tolerance_px, part)
        for one, region, part in zip(maps, regions, inside, strict=True)
    ]
    hit_N, chance_N = (np.array(values, dtype=np.float64) for values in zip(*found, strict=True))

    hit, chance = interval_of_rate(hit_N, patient, level), float(chance_N.mean())
    above = Interval(hit.value - chance, hit.low - chance, hit.high - chance, level)
    return PointingScore(hit, chance, above, hit_N, chance_N)


def play_pointing_game(
    map_HW: ArrayLike, region_HW: ArrayLike, tolerance_px: float, within_HW: ArrayLike
) -> tuple[float, float]:
    """Return (hit, chance) of one film; if points are equally bright, the share of them that hits."""
    brightness = np.asarray(map_HW, dtype=np.float64)
    region, inside = np.asarray(region_HW, dtype=bool), np.asarray(within_HW, dtype=bool)
    if not brightness.shape == region.shape == inside.shape or brightness.ndim != 2:
        raise UsageError(f"a map of {brightness.shape} does not fit a region of {region.shape}")
    if not np.all(np.isfinite(brightness)):
        raise UsageError("a saliency map holds NaN or infinity: the network that made it has diverged")
    if not region.any() or not inside.any():
        raise UsageError("a film has no region or nothing to search; leave it out")
    near = ndimage.distance_transform_edt(~region) <= tolerance_px
    brightest = inside & (brightness == brightness[inside].max())
    return float(near[brightest].mean()), float(near[inside].mean())


def draw_disc(height: int, width: int, x_px: float, y_px: float, radius_px: float) -> NDArray[np.bool_]:
    """Return a filled circle as bool [height, width]; a circle smaller than a pixel is the pixel of its centre."""
    row_H1, column_1W = np.arange(height)[:, None], np.arange(width)[None]
    disc: NDArray[np.bool_] = (row_H1 - y_px) ** 2 + (column_1W - x_px) ** 2 <= max(radius_px, 0.71) ** 2
    return disc
