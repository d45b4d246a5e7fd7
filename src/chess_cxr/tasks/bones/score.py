"""Score a bone network on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from chess_cxr.judges.lpips import MOST_PIXELS, compute_lpips
from chess_cxr.judges.vgg16 import SMALLEST_SIDE as SMALLEST_PICTURE
from chess_cxr.judges.vgg16 import has_vgg16
from chess_cxr.records import OnCount
from chess_cxr.tasks.bones.metrics import score_suppression
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import FilmPair
from chess_cxr.views import resize_longest


def score_pairs(
    suppressor: BoneSuppressor, pairs: Sequence[FilmPair], on_pair: OnCount | None = None
) -> list[dict[str, float]]:
    """Score each pair at the network's size, or at the film's own if that is smaller."""
    scores = []
    for done, pair in enumerate(pairs, start=1):
        small = shrink_pair(pair, suppressor.size)
        scores.append(score_pair(small, suppressor.suppress(small.film_HW)))
        if on_pair:
            on_pair(done, len(pairs))
    return scores


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
