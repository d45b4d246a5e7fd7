"""Measure how much made nodules differ from each other, compared with real ones.

Everything is measured on the lesion: what a film has beyond its smooth ground, which hides most of the background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from chess_cxr.tasks.nodules.canvas import NoduleBatch, NoduleMaker, build_canvas
from chess_cxr.tasks.nodules.told import find_lesion
from chess_cxr.tasks.nodules.windows import cut_around

PLACES, LATENTS = 8, 16
_FEWEST = 3  # real nodules, for a line and the spread around it
TRAITS = ("size", "contrast", "edge", "texture")


@dataclass(frozen=True)
class NoduleSpread:
    """Standard deviations of traits, see `measure_traits`.

    real: of real nodules, around a line over the log of their diameter.  made: of nodules that differ in the seed
    alone, root mean square over the places.  share: made / real.
    """

    real: Mapping[str, float]
    made: Mapping[str, float]
    share: Mapping[str, float]
    nodules: int
    places: int
    latents: int

    def as_text(self) -> str:
        """Return one readable line."""
        shares = ", ".join(f"{trait} {value:.2f}" for trait, value in self.share.items())
        return (
            f"spread over {self.latents} seeds at {self.places} places, as a share of that of {self.nodules} real "
            f"nodules: {shares}"
        )


def measure_spread(method: NoduleMaker, real: Sequence[NoduleBatch], places: Sequence[NoduleBatch]) -> NoduleSpread:
    """Compare nodules that differ in the seed alone with real ones; real, places: single nodules."""
    real_NT = np.array([_measure_batch(batch, method)[0] for batch in real])
    log_N = np.log([float(batch.mask_B1SS.sum()) for batch in real])
    places = places[:PLACES]
    variance_PT = [_measure_batch(make_each(method, place), method).var(axis=0, ddof=1) for place in places]
    spread = {
        "real": _spread_around_line(log_N, real_NT),
        "made": np.sqrt(np.mean(variance_PT, axis=0)) if places else np.full(len(TRAITS), np.nan),
    }
    spread["share"] = spread["made"] / spread["real"]
    named = {kind: dict(zip(TRAITS, found.tolist(), strict=True)) for kind, found in spread.items()}
    return NoduleSpread(**named, nodules=len(real), places=len(places), latents=LATENTS)


def make_each(method: NoduleMaker, place: NoduleBatch) -> NoduleBatch:
    """Make a nodule of each of `LATENTS` seeds at one place: SYNTHETIC squares with their masks, on the CPU."""
    film_L1SS, mask_L1SS = (part.expand(LATENTS, -1, -1, -1) for part in (place.film_B1SS, place.mask_B1SS))
    made = method.make(NoduleBatch(film_L1SS, mask_L1SS).to(method.steps.device), range(LATENTS))
    return NoduleBatch(made.cpu(), mask_L1SS)


def draw_latents(method: NoduleMaker, place: NoduleBatch, side: int = 96) -> bytes:
    """Draw a real nodule and, in its place, a SYNTHETIC one of each of `LATENTS` seeds, in one grey window: PNG."""
    made, mask_HW = make_each(method, place), place.mask_B1SS[0, 0].numpy() > 0.5
    films = [place.film_B1SS[0, 0].numpy(), *made.film_B1SS[:, 0].numpy()]
    squares = [cut_around(film_HW, mask_HW) for film_HW in films]
    low, high = np.percentile(squares, (1, 99))
    tiles = [cv2.resize(square, (side, side), interpolation=cv2.INTER_CUBIC) for square in squares]
    tiles += [np.full((side, side), high, np.float32)] * (18 - len(tiles))
    grey = np.vstack([np.hstack(tiles[row : row + 6]) for row in range(0, 18, 6)])
    return cv2.imencode(".png", np.clip(255 * (grey - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8))[
        1
    ].tobytes()


def measure_traits(lesion_HW: np.ndarray, mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Measure a lesion, grey beyond the ground [H, W], at its mask, bool.

    Size: root mean square distance of its bright grey from the mask's middle, in radii of the mask.  Contrast: mean
    grey inside the mask.  Edge: by how much the grey falls across the outline, from the quarter radius inside to that
    outside.  Texture: standard deviation inside the mask of detail finer than a third of the radius.
    """
    radius = math.sqrt(mask_HW.sum() / math.pi)
    rows, columns = np.indices(mask_HW.shape)
    row, column = np.argwhere(mask_HW).mean(axis=0)
    bright_HW = np.maximum(lesion_HW, 0)
    moment = float((bright_HW * ((rows - row) ** 2 + (columns - column) ** 2)).sum() / max(bright_HW.sum(), 1e-9))
    depth_HW = ndimage.distance_transform_edt(mask_HW) - ndimage.distance_transform_edt(~mask_HW)
    rim = max(radius / 4, 1.0)
    inner, outer = (depth_HW > 0) & (depth_HW <= rim), (depth_HW < 0) & (depth_HW >= -rim)
    detail_HW = lesion_HW - ndimage.gaussian_filter(lesion_HW, max(radius / 3, 0.5))
    return (
        math.sqrt(moment) / radius,
        float(lesion_HW[mask_HW].mean()),
        float(lesion_HW[inner].mean() - lesion_HW[outer].mean()),
        float(detail_HW[mask_HW].std()),
    )


def _measure_batch(batch: NoduleBatch, method: NoduleMaker) -> np.ndarray:
    """Return the traits of each nodule of a batch, [B, 4]."""
    lesion_B1SS = find_lesion(batch, build_canvas(batch, method.config))
    pairs = zip(lesion_B1SS[:, 0].numpy(), batch.mask_B1SS[:, 0].numpy() > 0.5, strict=True)
    return np.array([measure_traits(lesion_HW, mask_HW) for lesion_HW, mask_HW in pairs])


def _spread_around_line(log_N: np.ndarray, trait_NT: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each trait around its line over the log of the area."""
    if len(log_N) <= _FEWEST:
        return np.full(len(TRAITS), np.nan)
    terms_N2 = np.column_stack([np.ones_like(log_N), log_N])
    rest_NT = trait_NT - terms_N2 @ np.linalg.lstsq(terms_N2, trait_NT, rcond=None)[0]
    spread_T: np.ndarray = np.sqrt((rest_NT**2).sum(axis=0) / (len(log_N) - 2))
    return spread_T
