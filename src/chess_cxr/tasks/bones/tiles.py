"""The maps of a whole film, tile by tile, whatever runs the network; without torch."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from chess_cxr.records import ChessError
from chess_cxr.views import resize_longest

Run = Callable[[np.ndarray], np.ndarray]  # of a network, float32 [1, 1, T, T] -> maps [1, C, T, T]


def prepare_film(film_HW: np.ndarray) -> np.ndarray:
    """Return a film, float32 [H, W] in [0, 1] with bone bright, as the network takes it, [1, H, W]."""
    return film_HW[None]


def blend_tiles(run: Run, film_HW: np.ndarray, size: int, tile: int) -> np.ndarray:
    """Return a network's maps of a film at the film's size, float32 [C, H, W]: bone, and its spread if it has one.

    size: longest side at which the network works; the maps are resized to the film, which keeps the film's own detail.
    tile: side of the squares that the network sees; they overlap by half and fade into each other, which leaves no
    seams.
    """
    small_HW = resize_longest(film_HW, size)
    total: np.ndarray | None = None
    weight_HW = np.zeros_like(small_HW)
    fade_TT = _draw_fade(tile)
    for top in _place_tiles(small_HW.shape[0], tile):
        for left in _place_tiles(small_HW.shape[1], tile):
            here = slice(top, top + tile), slice(left, left + tile)
            part_HW = np.ascontiguousarray(small_HW[here])
            found_CHW = run(prepare_film(part_HW)[None])[0]
            if not np.isfinite(found_CHW).all():
                raise ChessError("the bone network gives numbers that are not finite; its weights are broken")
            if total is None:
                total = np.zeros((len(found_CHW), *small_HW.shape), np.float32)
            fade_HW = fade_TT[: part_HW.shape[0], : part_HW.shape[1]]
            total[:, *here] += fade_HW * found_CHW
            weight_HW[here] += fade_HW
    assert total is not None
    size_px = film_HW.shape[::-1]
    back = [cv2.resize(map_HW, size_px, interpolation=cv2.INTER_LINEAR) for map_HW in total / weight_HW]
    clipped: np.ndarray = np.clip(np.stack(back), 0, None)
    return clipped


def _place_tiles(side: int, tile: int) -> list[int]:
    """Return the starts of tiles along a side: evenly spaced, at most half a tile apart."""
    if side <= tile:
        return [0]
    steps = -(-(side - tile) // max(1, tile // 2))
    return [round(step * (side - tile) / steps) for step in range(steps + 1)]


def _draw_fade(tile: int) -> np.ndarray:
    """Return a weight that falls from the middle of a tile to nearly 0 at its edge, float32 [tile, tile]."""
    ramp = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2 + 1e-3
    return np.outer(ramp, ramp).astype(np.float32)
