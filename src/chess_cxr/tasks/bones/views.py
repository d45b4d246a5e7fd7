"""Augment both films of a pair with the same resampling and the same grey curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from chess_cxr.tasks.bones.inserted import draw_added_nodules
from chess_cxr.tasks.bones.objective import PairBatch, ramp_nodules
from chess_cxr.tasks.ct_nodules import CtNodule

PAIR_STREAM = 1 << 41  # keeps these draws apart from those of pre-training and fine-tuning


@dataclass(frozen=True)
class PairViews:
    """Augmentation of a pair, the same for both of its films.

    crop: side of the crop in pixels.  flip: probability of a left-right flip.  rotate_deg, scale: largest rotation, and
    largest relative change of size.  gamma: largest natural logarithm of the exponent of grey levels.  contrast,
    brightness: largest change of gain and offset.  strengthen_bone: largest factor of the bone's grey; the least is 1.
    nodules: largest number of nodules to add, 0 for none.
    """

    crop: int
    flip: float = 0.5
    rotate_deg: float = 7.0
    scale: float = 0.1
    gamma: float = 0.2
    contrast: float = 0.1
    brightness: float = 0.05
    strengthen_bone: float = 1.0
    nodules: int = 0
    ct_nodules: Sequence[CtNodule] = ()


def draw_pair(
    film_HW: np.ndarray, bone_free_HW: np.ndarray, views: PairViews, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the same augmented square out of both films of a pair, float32 [crop, crop].

    The grey curve keeps the order of grey levels.
    """
    height, width = film_HW.shape
    crop = views.crop
    turn, size = np.deg2rad(rng.uniform(-1, 1) * views.rotate_deg), 1 + rng.uniform(-1, 1) * views.scale
    mirror = -1.0 if rng.random() < views.flip else 1.0
    matrix = size * np.array([[mirror * np.cos(turn), -np.sin(turn)], [mirror * np.sin(turn), np.cos(turn)]])
    # the middle of the square, random inside the film; the film's own middle if the film is smaller
    centre = np.array([_draw_middle(side, crop, rng) for side in (width, height)])
    inverse = np.column_stack([matrix, centre - matrix @ np.full(2, (crop - 1) / 2)])
    exponent = np.exp(rng.uniform(-1, 1) * views.gamma)
    gain, offset = 1 + rng.uniform(-1, 1) * views.contrast, rng.uniform(-1, 1) * views.brightness
    strength = views.strengthen_bone ** rng.random() if views.strengthen_bone > 1 else 1.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    film, bone_free = (
        cv2.warpAffine(picture_HW, inverse, (crop, crop), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for picture_HW in (film_HW, bone_free_HW)
    )
    if strength > 1:
        film = bone_free + strength * (film - bone_free)

    curved = (np.power(np.clip(square, 0, 1), exponent) * gain + offset for square in (film, bone_free))
    cut = [np.clip(square, 0, 1).astype(np.float32) for square in curved]
    return cut[0], cut[1]


def _draw_middle(side: int, crop: int, rng: np.random.Generator) -> float:
    slack = max(0, side - crop) / 2
    return float((side - 1) / 2 + rng.uniform(-slack, slack))


@dataclass(frozen=True)
class TrainingPair:
    """A film, the same film without bone, float32 [H, W], and their pixel spacing.

    weight: how much the pair counts in the loss; None if all pairs count alike.
    """

    film_HW: np.ndarray
    bone_free_HW: np.ndarray
    spacing_mm: float
    weight: float | None = None


def draw_pair_batch(
    pairs: Sequence[TrainingPair], positions: Sequence[int], seed: int, views: PairViews, progress: float = 1.0
) -> PairBatch:
    """Augment pairs of films and draw nodules for them, each as a pure function of (seed, position).

    progress: of the training, 0 to 1.
    """
    drawn, nodule_BKHW = [], np.zeros((len(pairs), views.nodules, views.crop, views.crop), np.float32)
    for number, (pair, position) in enumerate(zip(pairs, positions, strict=True)):
        rng = np.random.Generator(np.random.Philox(key=[seed, PAIR_STREAM + int(position)]))
        drawn.append(draw_pair(pair.film_HW, pair.bone_free_HW, views, rng))
        if views.nodules:
            count = int(rng.integers(1, views.nodules + 1))
            added = draw_added_nodules(*drawn[-1], pair.spacing_mm, count, rng, views.ct_nodules)
            for place, nodule in enumerate(added):
                nodule_BKHW[number, place] = nodule.grey_HW
    film, bone_free = (torch.from_numpy(np.stack(side)[:, None]) for side in zip(*drawn, strict=True))
    weights = [pair.weight for pair in pairs if pair.weight is not None]
    batch = PairBatch(film, bone_free, weight_B=torch.tensor(weights) if weights else None)
    if not views.nodules:
        return batch
    share = torch.tensor(ramp_nodules(progress))
    return replace(batch, nodule_BKHW=torch.from_numpy(nodule_BKHW), nodule_share=share)
