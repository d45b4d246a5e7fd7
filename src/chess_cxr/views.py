"""Augmentations: one resampling for all geometry and one grey-level table for all intensity changes.

Crop, zoom, shift, rotation, flip, lens distortion and elastic deformation are composed into a single warp; gamma,
contrast, brightness and jitter into a single 256-entry table.  Only filters and noise touch the pixels again, and
changes that are not drawn cost nothing.  Antialiased views are resampled more finely and then averaged.  Films and
views are uint8 [H, W], air dark and bone bright.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import cv2
import numpy as np

from chess_cxr.records import UsageError

Range = tuple[float, float]
FILTERS = ("gaussian_blur", "median_blur", "motion_blur", "sharpen")
BORDERS = {"air": cv2.BORDER_CONSTANT, "mirror": cv2.BORDER_REFLECT_101}
ROWS_AT_ONCE = 48  # of a bent view: sampling maps of this size stay in the cache
GREY_LEVELS = np.arange(256, dtype=np.float32) / 255
# 256 equally likely values of a normal distribution with standard deviation 1, and of a uniform one on [-1, 1]
NORMAL_LEVELS = np.array([NormalDist().inv_cdf((level + 0.5) / 256) for level in range(256)])
NORMAL_LEVELS /= NORMAL_LEVELS.std()
UNIFORM_LEVELS = (np.arange(256) + 0.5) / 128 - 1
MOST_SIDE = 4096  # pixels, the largest side that a store holds
ABOVE_ZERO = ("crop_area", "crop_aspect", "gamma")
NOT_BELOW_ZERO = ("shift", "zoom", "rotate_deg", "distort", "elastic", "jitter", "lift", "noise", "grain", "gain")
FOLD_FREE = 0.4  # a spline grid never folds if its points move by less than this share of their spacing


@dataclass(frozen=True)
class ViewConfig:
    """Ranges from which a random view is drawn.  Every `*_p` is the probability of the change before it.

    size: side of the square view in pixels.
    crop_area, crop_aspect: share of the film's area and width/height ratio of the crop, relative to the film.
    shift, zoom: ± share of the side.  rotate_deg: ± degrees.  distort: ± radial lens distortion at the corner.
    keep: width and height, as shares of the film, of a central box that crop, zoom and shift never cut; rotation,
    distortion and elastic deformation may then move its rim a little.
    elastic: ± share of the side by which the control points of a cubic spline grid move; the grid has `elastic_cells`
    cells a side.
    antialias: where a view shrinks the film, average all film pixels under each pixel of the view, instead of
    interpolating between the nearest four, which turns fine structures into false patterns.
    border: content beyond the film: air (0) or the mirrored film.
    gamma, contrast, brightness, jitter: grey-level changes; gamma is drawn log-uniformly.
    contrast_about: grey level that contrast leaves unchanged, the mean of the view or black.
    lift: ± shift of all grey levels, as a share of the scale, drawn together with jitter.
    filters: one of them is drawn; a name given twice is twice as likely.
    noise: range of the standard deviation on the 8-bit scale.  grain: ± range of multiplicative noise, one factor a
    pixel.  gain: ± range of one factor for the whole view.  Those of noise, grain and gain that are set are equally
    likely.
    quick_noise: draw noise and grain from 256 equally likely values, which is several times faster.
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
    keep: Range = (0.0, 0.0)
    elastic: float = 0.0
    elastic_cells: int = 4
    elastic_p: float = 0.0
    antialias: bool = False
    border: Literal["air", "mirror"] = "air"
    flip_p: float = 0.0
    gamma: Range = (1.0, 1.0)
    gamma_p: float = 0.0
    contrast: Range = (0.0, 0.0)
    brightness: Range = (0.0, 0.0)
    contrast_about: Literal["mean", "black"] = "mean"
    tone_p: float = 0.0
    jitter: float = 0.0
    lift: float = 0.0
    jitter_p: float = 0.0
    filters: tuple[str, ...] = ()
    filter_p: float = 0.0
    noise: Range = (0.0, 0.0)
    grain: float = 0.0
    gain: float = 0.0
    quick_noise: bool = False
    noise_p: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        unknown = [name for name in self.filters if name not in FILTERS]
        if unknown:
            raise UsageError(f"views: no filter named {unknown[0]!r}; there are {', '.join(FILTERS)}")
        if self.filter_p and not self.filters:
            raise UsageError("views: filter_p needs at least one filter")
        if not all(0 <= share <= 1 for share in self.keep):
            raise UsageError("views: keep is two shares of the film's width and height, from 0 to 1")
        if self.elastic_cells < 1 or self.elastic * self.elastic_cells > FOLD_FREE:
            raise UsageError(f"views: elastic above {FOLD_FREE} / elastic_cells would fold the film; lower one of them")


def _check_numbers(config: ViewConfig) -> None:
    """Raise `UsageError` naming the first number out of range."""
    if not 1 <= config.size <= MOST_SIDE:
        raise UsageError(f"views: size must be 1 to {MOST_SIDE} pixels")
    if not config.zoom < 1 or not config.crop_area[1] <= 1:
        raise UsageError("views: zoom must be below 1, and crop_area no more than 1")
    for name, value in vars(config).items():
        if isinstance(value, bool | str) or name == "filters":
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) for number in numbers):
            raise UsageError(f"views: {name} must be a finite number")
        if name.endswith("_p") and not 0 <= value <= 1:
            raise UsageError(f"views: {name} is a probability, from 0 to 1")
        if isinstance(value, tuple) and name != "keep" and value[0] > value[1]:
            raise UsageError(f"views: {name} should be its smallest and its largest number, in this order")
        if name in ABOVE_ZERO and not numbers[0] > 0:
            raise UsageError(f"views: {name} must be above 0")
        if name in NOT_BELOW_ZERO and not numbers[0] >= 0:
            raise UsageError(f"views: {name} must be 0 or more")


def draw_view(film_HW: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw one random view of a film: uint8 [size, size], never sharing memory with the film."""
    view = _change_grey(_warp(film_HW, config, rng), config, rng)
    if rng.random() < config.filter_p:
        view = _filter(view, config.filters[rng.integers(len(config.filters))], rng)
    if rng.random() < config.noise_p:
        view = _add_noise(view, config, rng)
    return view.copy() if view is film_HW else view


def resize_film(film_HW: np.ndarray, size: int) -> np.ndarray:
    """Squash a film to uint8 [size, size] without augmentation, as the pixel contract does."""
    shrinking = min(film_HW.shape) >= size
    return cv2.resize(film_HW, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def resize_longest(film_HW: np.ndarray, size: int) -> np.ndarray:
    """Resample a film so that its longest side is `size`: area averages to shrink, bilinear to grow."""
    scale = size / max(film_HW.shape)
    height, width = (max(1, round(side * scale)) for side in film_HW.shape)
    if (height, width) == film_HW.shape:
        return film_HW.astype(np.float32, copy=False)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(film_HW.astype(np.float32), (width, height), interpolation=method))


def draw_view_pairs(films: Sequence[np.ndarray], positions: Sequence[int], seed: int, config: ViewConfig) -> np.ndarray:
    """Draw two views of each film: uint8 [2, B, 1, size, size].

    A view is a pure function of its film, the configuration, seed, position in the run, and first or second view.
    """
    pairs = np.empty((2, len(films), 1, config.size, config.size), np.uint8)
    for index, (film, position) in enumerate(zip(films, positions, strict=True)):
        for which in (0, 1):
            rng = np.random.Generator(np.random.Philox(key=[seed, 2 * int(position) + which]))
            pairs[which, index, 0] = draw_view(film, config, rng)
    return pairs


def _warp(film_HW: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw the geometry and resample; return the film itself if nothing moves."""
    matrix = _draw_crop_to_film(film_HW.shape, config, rng)
    if config.antialias and (finer := _count_samples(matrix)) > 1:
        fine = _warp_along(film_HW, _refine(matrix, finer), replace(config, size=finer * config.size), rng)
        return cv2.resize(fine, (config.size, config.size), interpolation=cv2.INTER_AREA)
    return _warp_along(film_HW, matrix, config, rng)


def _count_samples(matrix: np.ndarray) -> int:
    """Return how many samples across a view pixel lie no more than about one film pixel apart."""
    return max(1, math.ceil(float(np.linalg.norm(matrix[:, :2], axis=0).max()) - 0.01))


def _refine(matrix: np.ndarray, finer: int) -> np.ndarray:
    """Return the map to film pixels from a view with `finer` times as many pixels a side."""
    refined = matrix / finer
    refined[:, 2] = matrix[:, 2] + matrix[:, :2].sum(1) * (0.5 / finer - 0.5)
    return refined


def _warp_along(film_HW: np.ndarray, matrix: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw distortion and elastic deformation, and resample along them and the affine map."""
    bend, elastic_2KK = 0.0, None
    if config.distort and rng.random() < config.distort_p:
        bend = rng.uniform(-config.distort, config.distort)
    if config.elastic and rng.random() < config.elastic_p:
        knots = config.elastic_cells + 3
        elastic_2KK = np.rint(rng.uniform(-config.elastic, config.elastic, (2, knots, knots)) * config.size * 256) / 256
    if bend or elastic_2KK is not None:
        return _warp_bent(film_HW, matrix, bend, elastic_2KK, config)
    size = (config.size, config.size)
    if film_HW.shape == size and matrix.tolist() == [[1, 0, 0], [0, 1, 0]]:
        return film_HW
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(film_HW, matrix, size, flags=flags, borderMode=BORDERS[config.border])


def _draw_crop_to_film(shape: tuple[int, ...], config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw the affine map from view pixels to film pixels, float64 [2, 3]."""
    height, width = shape
    area = rng.uniform(*config.crop_area)
    aspect = math.exp(rng.uniform(math.log(config.crop_aspect[0]), math.log(config.crop_aspect[1])))
    crop_w, crop_h = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    keep_w, keep_h = config.keep
    crop_w, crop_h = max(crop_w, keep_w), max(crop_h, keep_h)
    centre_x = _draw_centre(crop_w, keep_w, rng)
    centre_y = _draw_centre(crop_h, keep_h, rng)
    angle = 0.0
    if rng.random() < config.affine_p:
        angle = math.radians(rng.uniform(-config.rotate_deg, config.rotate_deg))
        zoom = 1 / (1 + rng.uniform(-config.zoom, config.zoom))
        crop_w, crop_h = crop_w * zoom, crop_h * zoom
        centre_x += rng.uniform(-config.shift, config.shift)
        centre_y += rng.uniform(-config.shift, config.shift)
        crop_w, centre_x = _cover(crop_w, centre_x, keep_w)
        crop_h, centre_y = _cover(crop_h, centre_y, keep_h)
    mirrored = -1.0 if rng.random() < config.flip_p else 1.0
    scale_x, scale_y = mirrored * crop_w * width / config.size, crop_h * height / config.size
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * scale_x, -sin * scale_y, 0.0], [sin * scale_x, cos * scale_y, 0.0]])
    middle = (config.size - 1) / 2
    matrix[:, 2] = (centre_x * width - 0.5, centre_y * height - 0.5) - matrix[:, :2] @ (middle, middle)
    return matrix


def _draw_centre(side: float, keep: float, rng: np.random.Generator) -> float:
    """Draw the centre of a window inside the film that covers the central `keep`; all are shares of the side."""
    reach = (side - keep) / 2 if keep else 0.5
    return rng.uniform(max(side / 2, 0.5 - reach), min(1 - side / 2, 0.5 + reach))


def _cover(side: float, centre: float, keep: float) -> tuple[float, float]:
    """Widen and move a window just enough to cover the central `keep`; return side and centre."""
    if not keep:
        return side, centre
    side = max(side, keep)
    reach = (side - keep) / 2
    return side, min(max(centre, 0.5 - reach), 0.5 + reach)


def _warp_bent(
    film_HW: np.ndarray, matrix: np.ndarray, bend: float, elastic_2KK: np.ndarray | None, config: ViewConfig
) -> np.ndarray:
    """Compose the affine map with a radial distortion of `bend` at the view's corner and a spline displacement.

    elastic_2KK: control displacements in x and y, in 256ths of a pixel of the view (free-form deformation, Rueckert et
    al. 1999, https://doi.org/10.1109/42.796284).
    """
    size = config.size
    middle = (size - 1) / 2
    offset = np.arange(size, dtype=np.float32) - np.float32(middle)
    affine = matrix.astype(np.float32)
    turned = affine[0, 1] != 0 or affine[1, 0] != 0
    view = np.empty((size, size), np.uint8)
    for top in range(0, size, ROWS_AT_ONCE):
        rows = slice(top, min(top + ROWS_AT_ONCE, size))
        x, y = offset[None, :], offset[rows, None]
        if bend:
            stretch = x * x + y * y
            stretch *= bend
            stretch /= 2 * middle * middle
            stretch += 1
            x, y = x * stretch, y * stretch
        x, y = x + middle, y + middle
        if elastic_2KK is not None:
            weight_SK = _build_spline_weights(size, config.elastic_cells)
            moved_2RS = (weight_SK[rows] @ elastic_2KK @ weight_SK.T).astype(np.float32)
            x, y = x + moved_2RS[0], y + moved_2RS[1]
        if turned:
            map_x, map_y = affine[0, 0] * x + affine[0, 1] * y, affine[1, 0] * x + affine[1, 1] * y
        else:
            map_x, map_y = affine[0, 0] * x, affine[1, 1] * y
        map_x += affine[0, 2]
        map_y += affine[1, 2]
        view[rows] = cv2.remap(film_HW, map_x, map_y, cv2.INTER_LINEAR, borderMode=BORDERS[config.border])
    return view


@lru_cache(maxsize=16)
def _build_spline_weights(size: int, cells: int) -> np.ndarray:
    """Compute the weights of `cells` + 3 control points of a uniform cubic B-spline at `size` pixels, float64 [S, K].

    Weights are multiples of 2^-16 and displacements of 2^-8, so float64 sums of their products are exact in any order
    of summation: every machine computes the same warp.
    """
    place = (np.arange(size) + 0.5) / size * cells
    cell = np.minimum(place.astype(int), cells - 1)
    t = place - cell
    basis = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    weight_SK = np.zeros((size, cells + 3))
    for number, values in enumerate(basis):
        weight_SK[np.arange(size), cell + number] = np.rint(values * 65536) / 65536
    weight_SK.setflags(write=False)
    return weight_SK


def _change_grey(view: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw gamma, then contrast and brightness, then jitter and lift; apply them as one table, uint8 [256]."""
    grey, power = GREY_LEVELS, 1.0

    def compute_mean() -> float:
        mean: float = cv2.sumElems(view)[0] / view.size / 255
        return float(mean**power)

    if rng.random() < config.gamma_p:
        power = math.exp(rng.uniform(math.log(config.gamma[0]), math.log(config.gamma[1])))
        grey = grey**power
    if rng.random() < config.tone_p:
        pivot = compute_mean() if config.contrast_about == "mean" else 0.0
        grey = (grey - pivot) * (1 + rng.uniform(*config.contrast)) + pivot + rng.uniform(*config.brightness)
    if rng.random() < config.jitter_p:
        mean = compute_mean() if config.jitter else 0.0
        grey = (grey - mean) * (1 + rng.uniform(-config.jitter, config.jitter)) + mean
        grey = grey * (1 + rng.uniform(-config.jitter, config.jitter))
        if config.lift:
            grey = grey + rng.uniform(-config.lift, config.lift)
    if grey is GREY_LEVELS:
        return view
    return cv2.LUT(view, np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8))


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
    kinds = [kind for kind in ("grain", "gain") if getattr(config, kind)]
    if config.noise[1] > 0 or not kinds:
        kinds.append("noise")
    kind = kinds[int(rng.random() * len(kinds))] if len(kinds) > 1 else kinds[0]
    if kind == "gain":
        levels = GREY_LEVELS * (255 * rng.uniform(1 - config.gain, 1 + config.gain))
        return cv2.LUT(view, np.rint(np.clip(levels, 0, 255)).astype(np.uint8))
    if config.quick_noise:
        return _add_quick_noise(view, kind, config, rng)
    noisy = view.astype(np.float32)
    if kind == "grain":
        noisy *= rng.uniform(1 - config.grain, 1 + config.grain, view.shape).astype(np.float32)
    else:
        noisy += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(view.shape, np.float32)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


def _add_quick_noise(view: np.ndarray, kind: str, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw a byte a pixel and look up its noise; integer noise is the same to the bit on every machine."""
    if kind == "grain":
        factors = (1 + config.grain * UNIFORM_LEVELS).astype(np.float32)
        return cv2.multiply(view, cv2.LUT(_draw_bytes(view, rng), factors), dtype=cv2.CV_8U)
    steps = np.rint(rng.uniform(*config.noise) * NORMAL_LEVELS).astype(np.int16)
    return cv2.add(view, cv2.LUT(_draw_bytes(view, rng), steps), dtype=cv2.CV_8U)


def _draw_bytes(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a byte a pixel from the raw stream of the generator, which NumPy keeps stable across versions."""
    raw = rng.bit_generator.random_raw(view.size // 8 + 1).astype("<u8", copy=False)
    return raw.view(np.uint8)[: view.size].reshape(view.shape)
