"""Draw bone suppression as a sheet: film, result, truth, the bone taken away and the error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chess_cxr.evaluation.image_metrics import check_films
from chess_cxr.records import UsageError
from chess_cxr.report.plots import STYLE, shorten

MOST_ROWS = 40  # a sheet of more is too tall for most viewers
PANEL_INCHES = 2.3
COLOURS_OF_DIFFERENCE = "RdBu_r"
BAR_HEIGHT = 0.05  # of a panel's width
LEAST_RANGE = 0.02  # of grey; a smaller range would only show rounding
SHOWN = 99.8  # percentile of the differences with the strongest colour
_CAPTIONS = {True: "SYNTHETIC (generated) films; ", False: "real films; ", None: ""}

Row = tuple[str, NDArray[np.floating], NDArray[np.floating], NDArray[np.floating] | None]


def draw_suppression_sheet(rows: Sequence[Row], path: Path, synthetic: bool | None, dots_per_inch: int = 100) -> None:
    """Write the PNG of `render_suppression_sheet`."""
    path.write_bytes(render_suppression_sheet(rows, synthetic, dots_per_inch))


def render_suppression_sheet(rows: Sequence[Row], synthetic: bool | None, dots_per_inch: int = 100) -> bytes:
    """Return a sheet as PNG: one row per film, with film, result, truth, bone taken away, and result minus truth.

    rows: (name, film, result, truth or None), all float [H, W] in [0, 1], bone bright.  Without any truth its two
    columns are left out.  All rows share one scale of the bone and one, symmetric, of the difference: red is too
    bright, blue too dark.  synthetic: whether the films are generated, which the caption says; None if unknown or
    mixed.
    Raises UsageError for no row, more than 40, and films that cannot be compared.
    """
    if not 0 < len(rows) <= MOST_ROWS:
        raise UsageError(f"a sheet shows 1 to {MOST_ROWS} films, not {len(rows)}")
    for _, film, result, truth in rows:
        check_films(result, film)
        check_films(result, result.clip(0, 1) if truth is None else truth)
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # no font has all letters
        figure = _draw_sheet(rows, _CAPTIONS[synthetic])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return content.getvalue()


def _draw_sheet(rows: Sequence[Row], caption: str) -> Figure:
    with_truth = any(truth is not None for *_, truth in rows)
    names = ["result", "truth", "bone taken away", "result − truth"] if with_truth else ["result", "bone taken away"]
    height = sum(PANEL_INCHES * film.shape[0] / film.shape[1] + 0.25 for _, film, *_ in rows) + 0.9
    figure = Figure(figsize=(PANEL_INCHES * (1 + len(names)), height), layout="constrained")
    figure.suptitle(f"{caption}result: derived, bone-suppressed", fontsize=10)
    ratios = [film.shape[0] / film.shape[1] for _, film, *_ in rows]
    *panels, bars = figure.subplots(len(rows) + 1, 1 + len(names), squeeze=False, height_ratios=[*ratios, BAR_HEIGHT])
    for bar in bars:
        bar.set_axis_off()
    taken = _find_range([film - result for _, film, result, _ in rows])
    gap = _find_range([result - truth for _, _, result, truth in rows if truth is not None])
    for (name, film, result, truth), axes in zip(rows, panels, strict=True):
        _draw_panel(axes[0], film, shorten(name))
        for title, panel in zip(names, axes[1:], strict=True):
            if title == "result":
                _draw_panel(panel, result, title)
            elif title == "bone taken away":
                _draw_panel(panel, film - result, title, -taken / 4, taken)
            elif truth is None:
                _draw_nothing(panel)
            elif title == "truth":
                _draw_panel(panel, truth, title)
            else:
                _draw_panel(panel, result - truth, title, -gap, gap, COLOURS_OF_DIFFERENCE)
    for place in [names.index("bone taken away") + 1, *([len(names)] if with_truth else [])]:
        _draw_bar(figure, [axes[place] for axes in panels], bars[place])
    return figure


def _find_range(differences: Sequence[NDArray[np.floating]]) -> float:
    """Return the grey level of the strongest colour."""
    return max(LEAST_RANGE, *(float(np.percentile(np.abs(one), SHOWN)) for one in differences), LEAST_RANGE)


def _draw_panel(
    axes: Axes, picture: NDArray[np.floating], title: str, low: float = 0.0, high: float = 1.0, colours: str = "gray"
) -> None:
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high)
    # a file name may hold bytes that are no letters, or look like a formula
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in title)
    axes.set_title(shown, fontsize=8, parse_math=False)
    axes.set_axis_off()


def _draw_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no truth", ha="center", va="center", fontsize=8, transform=axes.transAxes)
    axes.set_axis_off()


def _draw_bar(figure: Figure, column: Sequence[Axes], room: Axes) -> None:
    """Draw the colour bar of a column, whose pictures all have one scale."""
    drawn = next(axes.images[0] for axes in column if axes.images)
    room.set_axis_on()
    bar = figure.colorbar(drawn, cax=room, orientation="horizontal", extend="both")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("grey, of [0, 1]", fontsize=7)
