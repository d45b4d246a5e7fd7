"""Draw saliency maps in colour over films, alone or as a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chess_cxr.report.plots import STYLE

COLOURS_OF_MAP = "inferno"
STRONGEST = 0.65  # how much of the film the brightest point of a map covers
OUTLINE = "#35d0ff"


@dataclass(frozen=True)
class SaliencyRow:
    """A film, uint8 [H, W]; its maps in [0, 1], float [H, W], by name; the region of its finding (None if unknown).

    title: of the film.
    """

    film_HW: np.ndarray
    maps: dict[str, np.ndarray]
    region_HW: np.ndarray | None
    title: str


def draw_overlay(film_HW: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """Draw a map in [0, 1] over a film, uint8 [H, W]: uint8 [H, W, 3]; the film is unchanged where the map is 0."""
    value_HW = np.clip(np.asarray(map_HW, dtype=np.float64), 0.0, 1.0)
    colour_HW3 = colormaps[COLOURS_OF_MAP](value_HW)[..., :3] * 255
    cover_HW1 = STRONGEST * value_HW[..., None]
    laid: np.ndarray = np.rint((1 - cover_HW1) * film_HW[..., None] + cover_HW1 * colour_HW3).astype(np.uint8)
    return laid


def colour_map(map_HW: np.ndarray) -> np.ndarray:
    """Return a map in [0, 1] in colour, uint8 [H, W, 4], as opaque as it is strong."""
    coloured_HW4 = colormaps[COLOURS_OF_MAP](np.clip(map_HW, 0.0, 1.0))
    coloured_HW4[..., 3] = np.clip(map_HW, 0.0, 1.0)
    laid: np.ndarray = np.rint(255 * coloured_HW4).astype(np.uint8)
    return laid


def draw_saliency_sheet(rows: Sequence[SaliencyRow], title: str, dots_per_inch: int = 80) -> bytes:
    """Draw a sheet as PNG: one row per film, with the film, the outline of its finding, and each map over the film.

    The cross is the brightest point of a map.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.maps))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.1 * (1 + len(names)), 2.3 * len(rows) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=9)
        panels = figure.subplots(len(rows), 1 + len(names), squeeze=False)
        for row, axes in zip(rows, panels, strict=True):
            _draw_panel(axes[0], row.film_HW, row.title, row.region_HW)
            for name, panel in zip(names, axes[1:], strict=True):
                map_HW = row.maps[name]
                _draw_panel(panel, draw_overlay(row.film_HW, map_HW), name, row.region_HW)
                if map_HW.max() > 0:
                    y, x = np.unravel_index(int(map_HW.argmax()), map_HW.shape)
                    panel.plot(x, y, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=dots_per_inch)
    return content.getvalue()


def _draw_panel(axes: Axes, picture: np.ndarray, title: str, region_HW: np.ndarray | None) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    if region_HW is not None and 0 < region_HW.sum() < region_HW.size:
        axes.contour(region_HW.astype(np.float64), levels=[0.5], colors=[OUTLINE], linewidths=1.2)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()
