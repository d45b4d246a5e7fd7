"""Augmentations: one resampling for all geometry and one grey-level table for all intensity changes.

A view is drawn from an 8-bit film by composing crop, zoom, shift, rotation, flip and lens distortion into
a single warp, and gamma, contrast, brightness and jitter into a single 256-entry table.  Only filters and
noise touch the pixels once more.  Films and views are uint8 [H, W], air dark and bone bright.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from chess_cxr.records import UsageError

Range = tuple[float, float]
FILTERS = ("gaussian_blur", "median_blur", "motion_blur", "sharpen")


@dataclass(frozen=True)
class ViewConfig:
    """What a random view may be.  Every `*_p` is the probability that the change before it happens.

    size: side of the square view in pixels.
    crop_area, crop_aspect: share of the film's area and width/height ratio of the crop, relative to the film.
    shift, zoom: ± share of the side.  rotate_deg: ± degrees.  distort: ± radial lens distortion at the corner.
    gamma, contrast, brightness, jitter: grey-level changes; gamma is drawn log-uniformly.
    noise: standard deviation range on the 8-bit scale.  grain: ± range of multiplicative noise.
    """

    size: int = 224
    crop_area: Range = (1.0, 1.0)
    crop_aspect: Range = (1.0, 1.0)
    shift: float = 0.0
    zoom: float = 0.0
    rotate_deg: float = 0.0
    affine_p: float = 0.0
    distort: float = 0.0
    distort_p: float = 0.0
    flip_p: float = 0.0
    gamma: Range = (1.0, 1.0)
    gamma_p: float = 0.0
    contrast: Range = (0.0, 0.0)
    brightness: Range = (0.0, 0.0)
    tone_p: float = 0.0
    jitter: float = 0.0
    jitter_p: float = 0.0
    filters: tuple[str, ...] = ()
    filter_p: float = 0.0
    noise: Range = (0.0, 0.0)
    grain: float = 0.0
    noise_p: float = 0.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.filters if name not in FILTERS]
        if unknown:
            raise UsageError(f"views: no filter named {unknown[0]!r}; there are {', '.join(FILTERS)}")
        if self.filter_p and not self.filters:
            raise UsageError("views: filter_p needs at least one filter")


def draw_view(film_HW: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw one random view of a film: uint8 [size, size]."""
    view = _warp(film_HW, config, rng)
    view = cv2.LUT(view, _draw_grey_table(float(view.mean()) / 255, config, rng))
    if rng.random() < config.filter_p:
        view = _filter(view, config.filters[rng.integers(len(config.filters))], rng)
    if rng.random() < config.noise_p:
        view = _add_noise(view, config, rng)
    return view


def resize_film(film_HW: np.ndarray, size: int) -> np.ndarray:
    """Squash a film to uint8 [size, size] without augmentation, as the pixel contract does for training."""
    shrinking = min(film_HW.shape) >= size
    return cv2.resize(film_HW, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def draw_view_pairs(films: Sequence[np.ndarray], positions: Sequence[int], seed: int, config: ViewConfig) -> np.ndarray:
    """Draw two views of each film: uint8 [2, B, 1, size, size].

    The randomness of a view is a pure function of (seed, position in the run, first or second view).
    """
    pairs = np.empty((2, len(films), 1, config.size, config.size), np.uint8)
    for index, (film, position) in enumerate(zip(films, positions, strict=True)):
        for which in (0, 1):
            rng = np.random.Generator(np.random.Philox(key=[seed, 2 * int(position) + which]))
            pairs[which, index, 0] = draw_view(film, config, rng)
    return pairs


def _warp(film_HW: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    matrix = _draw_crop_to_film(film_HW.shape, config, rng)
    size = (config.size, config.size)
    if config.distort and rng.random() < config.distort_p:
        map_x, map_y = _bend(matrix, config.size, rng.uniform(-config.distort, config.distort))
        return cv2.remap(film_HW, map_x, map_y, cv2.INTER_LINEAR)
    return cv2.warpAffine(film_HW, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _draw_crop_to_film(shape: tuple[int, ...], config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw the affine map, float64 [2, 3], that takes view pixels to film pixels."""
    height, width = shape
    area = rng.uniform(*config.crop_area)
    aspect = math.exp(rng.uniform(math.log(config.crop_aspect[0]), math.log(config.crop_aspect[1])))
    crop_w, crop_h = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    centre_x = rng.uniform(crop_w / 2, 1 - crop_w / 2)
    centre_y = rng.uniform(crop_h / 2, 1 - crop_h / 2)
    angle = 0.0
    if rng.random() < config.affine_p:
        angle = math.radians(rng.uniform(-config.rotate_deg, config.rotate_deg))
        zoom = 1 / (1 + rng.uniform(-config.zoom, config.zoom))
        crop_w, crop_h = crop_w * zoom, crop_h * zoom
        centre_x += rng.uniform(-config.shift, config.shift)
        centre_y += rng.uniform(-config.shift, config.shift)
    mirrored = -1.0 if rng.random() < config.flip_p else 1.0
    scale_x, scale_y = mirrored * crop_w * width / config.size, crop_h * height / config.size
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * scale_x, -sin * scale_y, 0.0], [sin * scale_x, cos * scale_y, 0.0]])
    middle = (config.size - 1) / 2
    matrix[:, 2] = (centre_x * width - 0.5, centre_y * height - 0.5) - matrix[:, :2] @ (middle, middle)
    return matrix


def _bend(matrix: np.ndarray, size: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Compose the affine map with a radial distortion of `strength` at the view's corner."""
    middle = (size - 1) / 2
    offset = np.arange(size, dtype=np.float32) - np.float32(middle)
    x, y = offset[None, :], offset[:, None]
    stretch = 1 + strength * (x * x + y * y) / (2 * middle * middle)
    x, y = x * stretch + middle, y * stretch + middle
    rows = matrix.astype(np.float32)
    return rows[0, 0] * x + rows[0, 1] * y + rows[0, 2], rows[1, 0] * x + rows[1, 1] * y + rows[1, 2]


def _draw_grey_table(mean: float, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw one table, uint8 [256], of gamma, then contrast about the view's `mean` and brightness, then jitter."""
    grey = np.arange(256, dtype=np.float32) / 255
    if rng.random() < config.gamma_p:
        power = math.exp(rng.uniform(math.log(config.gamma[0]), math.log(config.gamma[1])))
        grey, mean = grey**power, mean**power
    if rng.random() < config.tone_p:
        grey = (grey - mean) * (1 + rng.uniform(*config.contrast)) + mean + rng.uniform(*config.brightness)
    if rng.random() < config.jitter_p:
        grey = (grey - mean) * (1 + rng.uniform(-config.jitter, config.jitter)) + mean
        grey = grey * (1 + rng.uniform(-config.jitter, config.jitter))
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _filter(view: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    if name == "gaussian_blur":
        return cv2.GaussianBlur(view, (0, 0), rng.uniform(0.3, 1.0) * view.shape[0] / 128)
    if name == "median_blur":
        return cv2.medianBlur(view, 3)
    if name == "motion_blur":
        length = int(rng.choice((3, 5, 7)))
        line = np.zeros((length, length), np.float32)
        reach = (length - 1) / 2
        angle = rng.uniform(0, math.pi)
        step = (int(round(reach * math.cos(angle))), int(round(reach * math.sin(angle))))
        centre = length // 2
        cv2.line(line, (centre - step[0], centre - step[1]), (centre + step[0], centre + step[1]), 1.0)
        return cv2.filter2D(view, -1, line / line.sum())
    strength = rng.uniform(0.2, 0.5)
    edges = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32) * strength
    edges[1, 1] += 1
    return cv2.filter2D(view, -1, edges)


def _add_noise(view: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    noisy = view.astype(np.float32)
    if config.grain and (config.noise[1] == 0 or rng.random() < 0.5):
        noisy *= rng.uniform(1 - config.grain, 1 + config.grain, view.shape).astype(np.float32)
    else:
        noisy += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(view.shape, np.float32)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
