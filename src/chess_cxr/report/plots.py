"""Plot tables as SVG text; no result is computed here.

Every figure is small enough for a phone; a page lays several of them side by side or below each other.
Text stays text, so that it can be read aloud and searched.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK = "#1c1f24"
COLOURS = ("#0b5394", "#cc4125", "#38761d", "#b07800", "#674ea7", "#008b8b", "#c2417c", "#7a5230")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METRIC_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}
MOST_LETTERS = 28  # of a name in a legend
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "chess-cxr",
}


def draw_efficiency_bands(table: pd.DataFrame, metric: str, encoders: Sequence[str]) -> str:
    """Plot a metric against the number of labelled training films, a line and a band an encoder; SVG text.

    table: summary rows of one task and head (`benchmarking.tables.build_summary_table`) or of a comparison.  encoders:
    all encoders of the page, each of which keeps its colour from plot to plot.
    """
    chosen = table[table["metric"] == metric].sort_values("n_train_films", kind="stable")
    name = METRIC_NAMES.get(metric, metric)
    with build_axes(4.6, 3.7) as (figure, axes):
        for encoder in encoders:
            rows = chosen[chosen["encoder"] == encoder]
            if rows.empty:
                continue
            colour, marker = get_look(encoder, encoders)
            films = rows["n_train_films"]
            axes.fill_between(films, rows["low"], rows["high"], color=colour, alpha=0.13, linewidth=0)
            if len(rows) == 1:  # a band of one point has no width
                axes.vlines(films, rows["low"], rows["high"], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(films, rows["value"], color=colour, label=encoder, marker=marker, markersize=4.5, linewidth=1.8)
        axes.set_xscale("log")
        counts = _thin_ticks(sorted(chosen["n_train_films"].unique()))
        axes.set_xticks(counts, [f"{count:,.0f}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("labelled training films")
        axes.set_ylabel(name)
        _put_legend_below(axes)
        return write_svg(figure, f"{name} against the number of labelled training films")


def draw_roc_curves(curves: Mapping[str, pd.DataFrame], order: Sequence[str], title: str) -> str:
    """Plot ROC curves with their bands; SVG text.

    curves: label -> rows of one curve of `benchmarking.roc_curves.compute_roc_curves`.  order: all labels of the page,
    each of which keeps its colour.
    """
    with build_axes(3.8, 4.4) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#777777", linestyle=":", linewidth=1)
        for label, rows in curves.items():
            colour, _ = get_look(label, order)
            rate = np.r_[0.0, rows["false_positive_rate"]]
            axes.fill_between(rate[1:], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
            axes.plot(rate, np.r_[0.0, rows["sensitivity"]], color=colour, label=label, linewidth=1.8)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xlabel("1 − specificity")
        axes.set_ylabel("sensitivity")
        axes.set_title(title, fontsize=10)
        _put_legend_below(axes)
        return write_svg(figure, f"ROC curves, {title}")


def draw_reliability(before: pd.DataFrame, after: pd.DataFrame | None, title: str, colour: str) -> str:
    """Plot observed frequency against predicted probability, before and after scaling; SVG text.

    before, after: `evaluation.reliability.compute_reliability` of one name; after: None if nothing could be scaled.
    """
    with build_axes(3.1, 3.7) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#777777", linestyle=":", linewidth=1)
        parts = [(before, "#8a9099", "before", "s")] + ([(after, colour, "after", "o")] if after is not None else [])
        for rows, ink, label, marker in parts:
            axes.vlines(rows["confidence"], rows["low"], rows["high"], color=ink, linewidth=1.1, alpha=0.6)
            axes.plot(rows["confidence"], rows["rate"], color=ink, label=label, marker=marker, ms=3.8, linewidth=1.3)
        ticks = np.linspace(0.0, 1.0, 6)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks)
        axes.set_xlabel("probability given")
        axes.set_ylabel("share that came true")
        axes.set_title(title, fontsize=10)
        _put_legend_below(axes)
        return write_svg(figure, f"Reliability, {title}")


def draw_film(film: np.ndarray, title: str) -> str:
    """Draw a film, uint8 [H, W], under its title; SVG text."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1.9, 2.1), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(film, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        return write_svg(figure, title)


def get_look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the colour and marker of one of these names."""
    place = list(names).index(name)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def shorten(name: str) -> str:
    """Shorten a long name to fit below a panel by leaving out its middle."""
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 11]}…{name[-10:]}"


@contextmanager
def build_axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of this size in inches with one panel, in our style."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.25)
        yield figure, axes


def plot_curve(
    axes: Axes, metrics: Sequence[Mapping[str, float]], name: str, label: str, colour: str, width: float = 1.5
) -> None:
    """Plot one metric of a run against its steps, or nothing if it was never measured."""
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 10 else ""
        axes.plot(steps, values, color=colour, label=label, linewidth=width, marker=marker, ms=4)


def label_axes(axes: Axes, what: str, lines: Sequence[Line2D] | None = None) -> None:
    """Label the axes of a run's curve and put the legend of its lines (all by default) below."""
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    handles = axes.get_lines() if lines is None else lines
    if handles:
        names = [str(line.get_label()) for line in handles]
        axes.legend(handles, names, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def write_svg(figure: Figure, title: str) -> str:
    """Return a figure as SVG text with a title for screen readers."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = content.getvalue()
    spoken = f'<svg role="img" aria-label="{escape(title, quote=True)}"'
    return text[text.index("<svg") :].replace("<svg", spoken, 1)


def _thin_ticks(counts: Sequence[float]) -> list[float]:
    """Keep the first and the last number, and others whose labels have room on a logarithmic axis."""
    kept = list(counts[-1:])
    room = max(counts[-1] / counts[0], 1.0) ** (1 / 6) if counts else 1.0
    for count in reversed(counts[:-1]):
        if kept[-1] / count >= room and (count == counts[0] or count / counts[0] >= room):
            kept.append(count)
    return kept[::-1]


def _put_legend_below(axes: Axes) -> None:
    # A legend broader than its panel would squeeze the panel to nothing.
    handles, names = axes.get_legend_handles_labels()
    short = [shorten(str(name)) for name in names]
    columns = 2 if max(map(len, short), default=0) <= MOST_LETTERS // 2 else 1
    anchor = (0.5, -0.17)
    axes.legend(handles, short, frameon=False, fontsize=9, ncols=columns, loc="upper center", bbox_to_anchor=anchor)
