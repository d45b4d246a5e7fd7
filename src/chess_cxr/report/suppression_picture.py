"""Films beside themselves without bone, as a sheet to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from chess_cxr.report.plots import STYLE

PANEL = 2.2  # inches
FAINT = 0.15  # grey levels at which the colours of a difference end
Row = tuple[str, np.ndarray, np.ndarray, np.ndarray | None]


def draw_suppression_sheet(rows: Sequence[Row], path: Path, synthetic: bool = False) -> None:
    """Write a PNG with one row a film: film, result, bone taken away, and the truth with the error where it is known.

    rows: name, film, result and truth (or None), each float [H, W] in [0, 1] with bone bright.  synthetic: whether the
    films are generated, which the sheet then says.
    """
    known = any(truth is not None for *_, truth in rows)
    titles = ["film", "bones suppressed", "bone taken away"] + (["truth", "result − truth"] if known else [])
    with rc_context(STYLE):
        size = (PANEL * len(titles) + 0.6, PANEL * len(rows) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        for row, (name, film, result, truth) in enumerate(rows):
            pictures = [film, result, film - result] + ([truth] if known else [])
            for place, picture in enumerate(pictures):
                if picture is not None:
                    top = 2 * FAINT if place == 2 else 1
                    axes[row, place].imshow(picture, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            if truth is not None:
                error = axes[row, 4].imshow(result - truth, cmap="RdBu_r", vmin=-FAINT, vmax=FAINT)
                figure.colorbar(error, ax=axes[row, 4], shrink=0.8)
            axes[row, 0].set_ylabel(name[:24], fontsize=8)
        for place, title in enumerate(titles):
            axes[0, place].set_title(title + (" (SYNTHETIC)" if synthetic and place == 0 else ""), fontsize=9)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
