"""Training examples of a nodule generator: squares around nodules, or whole films as squares.

Only these are held in memory while thousands of films are read; a film is read again when it is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from chess_cxr.judges.crops import crop_around
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.films import FilmSource, NoduleFilm, read_source, resample_nodule_film, square_film
from chess_cxr.tasks.nodules.region import compute_region, find_window
from chess_cxr.views import resize_longest


@dataclass(frozen=True)
class WindowPlan:
    """The configuration of training examples.

    mode, size, film_size: as in `NodulesConfig`.  margin, margin_px: of the region around a nodule, see
    `compute_region`.
    """

    mode: Literal["inpaint", "film"]
    size: int
    film_size: int
    margin: float
    margin_px: int


@dataclass(frozen=True)
class NoduleWindow:
    """The part of a film from which squares around a nodule are cut, or a whole film as a square.

    lung_HW: only for whole films.  start: row and column of the square with the nodule in its middle, before it is
    moved into the part; None if the part is the square.  slack: by how much the square may move and still hold the
    nodule and its region.  malignant: 1, 0 or NaN.
    """

    film_HW: np.ndarray
    mask_HW: np.ndarray
    lung_HW: np.ndarray | None = None
    start: tuple[int, int] | None = None
    slack: tuple[int, int] = (0, 0)
    malignant: float = math.nan


@dataclass(frozen=True)
class NoduleExample:
    """What is kept of a film for training.  can_make: see the function.  source: to read the film again."""

    name: str
    group: str
    kind: str
    has_nodule: bool
    can_make: bool
    windows: tuple[NoduleWindow, ...]
    source: FilmSource


def take_example(source: FilmSource, plan: WindowPlan) -> NoduleExample:
    """Read a film and cut its training examples."""
    film = read_source(source)
    windows = tuple(list_windows(film, plan))
    return NoduleExample(film.name, film.group, film.kind, film.has_nodule, can_make(film, plan), windows, source)


def list_windows(film: NoduleFilm, plan: WindowPlan) -> list[NoduleWindow]:
    """Cut the training examples of a film: each nodule that fits its window, or the whole film."""
    if plan.mode == "film":
        square = square_film(film, plan.size)
        return [NoduleWindow(square.film_HW, square.mask_HW, square.lung_HW)]
    small = resample_nodule_film(film, plan.film_size)
    count, part_HW = cv2.connectedComponents(small.mask_HW.astype(np.uint8))
    windows = []
    for number in range(1, count):
        nodule_HW = part_HW == number
        region_HW = compute_region(nodule_HW, plan.margin, plan.margin_px)
        try:
            find_window(region_HW, plan.size)
        except UsageError:  # larger than the window: no example of what fits into it
            continue
        windows.append(_take_window(small, nodule_HW, region_HW, plan.size))
    return windows


def _take_window(film: NoduleFilm, nodule_HW: np.ndarray, region_HW: np.ndarray, size: int) -> NoduleWindow:
    """Cut the part of a film that squares around a nodule can show."""
    if film.film_HW.shape == (size, size):
        return NoduleWindow(film.film_HW, film.mask_HW, malignant=film.malignant)
    starts, slacks, here = [], [], []
    for axis, side in enumerate(film.film_HW.shape):
        inner, outer = (np.flatnonzero(part_HW.any(1 - axis)) for part_HW in (nodule_HW, region_HW))
        slack = min((size - int(np.ptp(inner)) - 1) // 4, (size - int(np.ptp(outer)) - 1) // 2)  # it stays inside
        start = (int(outer[0]) + int(outer[-1]) + 1 - size) // 2
        first, last = (min(max(start + moved, 0), side - size) for moved in (-slack, slack))
        starts.append(start - first)
        slacks.append(slack)
        here.append(slice(first, last + size))
    film_HW, mask_HW = (part_HW[tuple(here)].copy() for part_HW in (film.film_HW, film.mask_HW))
    return NoduleWindow(film_HW, mask_HW, None, (starts[0], starts[1]), (slacks[0], slacks[1]), film.malignant)


def can_make(film: NoduleFilm, plan: WindowPlan) -> bool:
    """Return whether all nodules of a film can be made at once: at least one is visible, and all fit the window."""
    if plan.mode == "film":
        return square_film(film, plan.size).has_nodule
    mask_HW = resize_longest(film.mask_HW, plan.film_size) > 0.5
    try:
        return bool(mask_HW.any()) and bool(
            find_window(compute_region(mask_HW, plan.margin, plan.margin_px), plan.size)
        )
    except UsageError:
        return False


def cut_square(window: NoduleWindow, size: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Cut film, mask and, for whole films, lung.  rng: varies place, side and grey; None cuts the middle."""
    start = [0, 0]
    if window.start is not None:
        for axis in (0, 1):
            slack = window.slack[axis]
            moved = window.start[axis] + (int(rng.integers(-slack, slack + 1)) if rng else 0)
            start[axis] = int(np.clip(moved, 0, window.film_HW.shape[axis] - size))
    here = tuple(slice(first, first + size) for first in start)
    whole = [part for part in (window.film_HW, window.mask_HW, window.lung_HW) if part is not None]
    parts = [part[here] for part in whole]
    if rng is not None:
        if rng.random() < 0.5:
            parts = [part[:, ::-1] for part in parts]
        exponent, gain = np.exp(rng.uniform(-0.15, 0.15)), 1 + rng.uniform(-0.05, 0.05)
        parts[0] = np.clip(np.power(parts[0], exponent) * gain, 0, 1)
    return parts


def cut_nodules(source: FilmSource) -> tuple[str, np.ndarray] | None:
    """Read a film and cut the square around its nodules, with the patient's name; None without nodules."""
    film = read_source(source)
    return (film.group, cut_around(film.film_HW, film.mask_HW)) if film.has_nodule else None


def cut_around(film_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """Cut the square around the nodules of a film."""
    top, left, height, width = crop_around(mask_HW)
    return film_HW[top : top + height, left : left + width].copy()
