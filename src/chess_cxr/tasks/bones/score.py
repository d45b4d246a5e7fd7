"""Score a bone network on pairs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from chess_cxr.judges.lpips import MOST_PIXELS, compute_lpips
from chess_cxr.judges.vgg16 import SMALLEST_SIDE as SMALLEST_PICTURE
from chess_cxr.judges.vgg16 import has_vgg16
from chess_cxr.records import OnCount
from chess_cxr.tasks.bones.inserted import draw_added_nodules
from chess_cxr.tasks.bones.metrics import score_suppression
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import FilmPair, find_spacing
from chess_cxr.tasks.ct_nodules import CtNodule
from chess_cxr.tasks.nodule_contrast import FEWEST_RING_PX, compute_contrast, draw_ring
from chess_cxr.views import resize_longest

ADDED, SMALL_MM, DIMMED = 8, 10.0, 0.8


def score_pairs(
    suppressor: BoneSuppressor, pairs: Sequence[FilmPair], on_pair: OnCount | None = None
) -> list[dict[str, float]]:
    """Score each pair at the network's size, or at the film's own if that is smaller."""
    scores = []
    for done, pair in enumerate(pairs, start=1):
        small = shrink_pair(pair, suppressor.size)
        map_CHW = suppressor.predict_maps(small.film_HW)
        own = score_pair(small, small.film_HW - map_CHW[0]) | score_spread(small, map_CHW)
        scores.append(own | score_added_nodules(suppressor, small))
        if on_pair:
            on_pair(done, len(pairs))
    return scores


def score_spread(pair: FilmPair, map_CHW: np.ndarray) -> dict[str, float]:
    """Score the expected error of a bone image, if there is one, against its true absolute error.

    spread_of_error: the mean of the first over that of the second, 1 if calibrated.  unsure_error: the mean error in
    the least sure tenth of the film over that in the rest, above 1 if the network is right about where it errs.
    """
    if len(map_CHW) < 2:
        return {}
    error_HW, spread_HW = np.abs(pair.film_HW - map_CHW[0] - pair.bone_free_HW), map_CHW[1]
    unsure_HW = spread_HW > np.percentile(spread_HW, 90)
    sure = float(error_HW[~unsure_HW].mean())
    return {
        "spread_of_error": float(spread_HW.mean() / max(error_HW.mean(), 1e-9)),
        "unsure_error": float(error_HW[unsure_HW].mean()) / max(sure, 1e-9) if unsure_HW.any() else math.nan,
    }


def find_spread_scale(suppressor: BoneSuppressor, pairs: Sequence[FilmPair]) -> float:
    """Return the factor that makes the mean expected error of pairs equal to their mean absolute error."""
    found = np.zeros(2)
    for pair in (shrink_pair(pair, suppressor.size) for pair in pairs):
        bone_HW, spread_HW = suppressor.predict_maps(pair.film_HW)
        found += float(np.abs(pair.film_HW - bone_HW - pair.bone_free_HW).mean()), float(spread_HW.mean())
    return float(found[0] / max(found[1], 1e-9))


def shrink_pair(pair: FilmPair, size: int) -> FilmPair:
    """Shrink all pictures of a pair to `size` on their longest side; smaller ones are unchanged."""
    side = min(size, max(pair.film_HW.shape))
    if side == max(pair.film_HW.shape):
        return pair

    def shrink(mask_HW: np.ndarray | None) -> np.ndarray | None:
        return None if mask_HW is None else resize_longest(mask_HW.astype(np.float32), side) > 0.5

    return replace(
        pair,
        film_HW=resize_longest(pair.film_HW, side),
        bone_free_HW=resize_longest(pair.bone_free_HW, side),
        bone_cm_HW=None if pair.bone_cm_HW is None else resize_longest(pair.bone_cm_HW, side),
        lung_HW=shrink(pair.lung_HW),
        nodule_HW=shrink(pair.nodule_HW),
        spacing_mm=pair.spacing_mm and pair.spacing_mm * max(pair.film_HW.shape) / side,
    )


def score_pair(pair: FilmPair, result_HW: np.ndarray) -> dict[str, float]:
    """Score one suppressed film by everything that its pair knows.

    Includes lpips, of result and truth at the pair's size, if the file of VGG16 is installed.
    """
    nodules = list[np.ndarray]()
    if pair.nodule_HW is not None:
        count, part_HW = cv2.connectedComponents(pair.nodule_HW.astype(np.uint8))
        nodules = [part_HW == number for number in range(1, count)]
    scores = score_suppression(
        pair.film_HW, result_HW, pair.bone_free_HW, lung_HW=pair.lung_HW, bone_HW=pair.bone_cm_HW, nodules=nodules
    )
    if has_vgg16() and min(result_HW.shape) >= SMALLEST_PICTURE and result_HW.size <= MOST_PIXELS:
        scores["lpips"] = compute_lpips(result_HW, pair.bone_free_HW)
    return scores


@dataclass(frozen=True)
class KeptNodule:
    """What suppression left of a nodule that was added to a film.

    added: its contrast as it was added.  kept: its contrast in the result as a share of that: 1 if all is left.
    on_bone: mean of the bone's grey there.
    """

    diameter_mm: float
    added: float
    kept: float
    on_bone: float


def measure_added_nodules(
    suppressor: BoneSuppressor, pair: FilmPair, seed: int = 0, ct_nodules: Sequence[CtNodule] = ()
) -> list[KeptNodule]:
    """Add nodules to a film and measure what suppression leaves of each: result with them minus result without.

    Their places, sizes, contrasts and bodies depend on the pair's name and the seed.
    """
    rng = np.random.default_rng([seed, zlib.crc32(pair.name.encode())])
    film_HW, truth_HW = pair.film_HW, pair.bone_free_HW
    drawn = draw_added_nodules(film_HW, truth_HW, find_spacing(pair), ADDED, rng, ct_nodules, pair.lung_HW)
    if not drawn:
        return []
    added_HW = np.sum([nodule.grey_HW for nodule in drawn], axis=0)
    before_HW, after_HW = (suppressor.suppress(film) for film in (film_HW, film_HW + added_HW))
    left_HW = np.asarray(after_HW - before_HW, np.float64)
    found = list[KeptNodule]()
    for nodule in drawn:
        others = [other.grey_HW > 0 for other in drawn if other is not nodule]
        ring_HW = draw_ring(nodule.mask_HW, None, others)
        if ring_HW.sum() < FEWEST_RING_PX:
            continue
        added, left = (
            compute_contrast(it, nodule.mask_HW, ring_HW)[0] for it in (added_HW.astype(np.float64), left_HW)
        )
        on_bone = float((film_HW - truth_HW)[nodule.mask_HW].mean())
        if added > 0:
            found.append(KeptNodule(nodule.diameter_mm, added, left / added, on_bone))
    return found


def score_added_nodules(suppressor: BoneSuppressor, pair: FilmPair) -> dict[str, float]:
    """Score what is left of added nodules: mean over all and over those below `SMALL_MM`; share that is dimmed."""
    kept = measure_added_nodules(suppressor, pair)
    share_K = np.array([nodule.kept for nodule in kept])
    small_K = np.array([nodule.diameter_mm < SMALL_MM for nodule in kept], dtype=bool)
    return {
        "added_nodule_kept": float(share_K.mean()) if len(kept) else math.nan,
        "added_nodule_kept_small": float(share_K[small_K].mean()) if small_K.any() else math.nan,
        "added_nodule_dimmed": float((share_K < DIMMED).mean()) if len(kept) else math.nan,
    }
