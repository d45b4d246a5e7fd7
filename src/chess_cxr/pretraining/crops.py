"""The number of views of each film, and their size over the course of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chess_cxr.methods.batch import ViewBatch
from chess_cxr.records import UsageError
from chess_cxr.views import Range, ViewConfig, draw_view

OVERSAMPLING = 1.5  # decode films at no less than this many times the view's side, to keep crops sharp
MOST_GLOBAL, MOST_LOCAL = 16, 32
MORE_VIEWS = 2**62  # first Philox stream of the views after the first two, 48 per position
Sizes = tuple[tuple[float, int], ...]


def check_sizes(sizes: Sizes, size: int) -> None:
    """Raise `UsageError` unless a schedule of sizes ends with the run, at the size of its views."""
    shares = [share for share, _ in sizes]
    if sizes and (shares[-1] != 1 or sorted(set(shares)) != shares or not shares[0] > 0):
        raise UsageError("sizes: (share of the run, size) pairs rise to share 1, such as [[0.5, 64], [1, 96]]")
    if sizes and sizes[-1][1] != size:
        raise UsageError(f"sizes: the last size must be that of the views, {size}, not {sizes[-1][1]}")


def find_size(sizes: Sizes, step: int, steps: int) -> int:
    """Return the side of global views at a step."""
    return next(size for share, size in sizes if step < share * steps)


@dataclass(frozen=True)
class Crops:
    """The number of views of each film, and the size of local ones (multi-crop, Caron et al. 2020).

    global_views: number of views drawn as `views` says.  local_views: number of views drawn likewise, except that they
    have a side of `local_size` pixels and show a share `local_area` of the film's area.
    """

    global_views: int = 2
    local_views: int = 0
    local_size: int = 32
    local_area: Range = (0.05, 0.4)

    def __post_init__(self) -> None:
        if not (2 <= self.global_views <= MOST_GLOBAL and 0 <= self.local_views <= MOST_LOCAL):
            raise UsageError(f"crops: a film gives 2 to {MOST_GLOBAL} global and at most {MOST_LOCAL} local views")
        if not 0 < self.local_area[0] <= self.local_area[1] <= 1:
            raise UsageError("crops: local_area is two shares of the film's area, above 0 and up to 1")

    def check(self, views: ViewConfig) -> None:
        """Raise `UsageError` if local views would be larger than global ones."""
        if self.local_views and not 1 <= self.local_size <= views.size:
            sizes = f"local views of {self.local_size} pixels are larger than the global ones of {views.size}"
            raise UsageError(f"crops: {sizes}")

    def find_decoded_side(self, views: ViewConfig) -> int:
        """Return the side at which to decode films, large enough to keep all views sharp."""
        local = self.local_size / math.sqrt(self.local_area[0]) if self.local_views else 0.0
        return round(max(OVERSAMPLING * views.size, local))

    def build_batch(self, views: ViewConfig, films: int, guides: Sequence[str] = ()) -> ViewBatch:
        """Return an uninitialised batch of views, to measure the cost of a step."""
        global_GB1SS = torch.empty(self.global_views, films, 1, views.size, views.size)
        local_LB1ss = torch.empty(self.local_views, films, 1, self.local_size, self.local_size)
        known = {column: torch.zeros(films, dtype=torch.int64) for column in guides}
        return ViewBatch(global_GB1SS, local_LB1ss if self.local_views else None, known)

    def build_local(self, views: ViewConfig) -> ViewConfig:
        """Return the configuration of local views."""
        return replace(views, size=self.local_size, crop_area=self.local_area, keep=(0.0, 0.0))


def add_views(
    pair_2B1SS: Tensor,
    films: Sequence[np.ndarray],
    position_B: np.ndarray,
    seed: int,
    views: ViewConfig,
    crops: Crops,
) -> Tensor | ViewBatch:
    """Add more global views and local views to pairs of views, if there are any."""
    more, local = crops.global_views - 2, crops.local_views
    if not more and not local:
        return pair_2B1SS
    global_GB1SS = pair_2B1SS
    if more:
        extra = _draw_more(films, position_B, seed, views, range(MOST_LOCAL, MOST_LOCAL + more))
        global_GB1SS = torch.cat([pair_2B1SS, torch.from_numpy(extra)])
    if not local:
        return ViewBatch(global_GB1SS)
    drawn = _draw_more(films, position_B, seed, crops.build_local(views), range(local))
    return ViewBatch(global_GB1SS, torch.from_numpy(drawn))


def _draw_more(
    films: Sequence[np.ndarray], position_B: np.ndarray, seed: int, views: ViewConfig, streams: range
) -> np.ndarray:
    """Draw a view of each film for each stream, from seed, position and stream: uint8 [streams, B, 1, size, size]."""
    drawn = np.empty((len(streams), len(films), 1, views.size, views.size), np.uint8)
    for which, index in np.ndindex(drawn.shape[:2]):
        stream = MORE_VIEWS + (MOST_LOCAL + MOST_GLOBAL) * int(position_B[index]) + streams[which]
        rng = np.random.Generator(np.random.Philox(key=[seed, stream]))
        drawn[which, index, 0] = draw_view(films[index], views, rng)
    return drawn
