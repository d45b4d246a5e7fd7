"""Plots as SVG text, made from tables; nothing here computes a result.

Every figure is small enough to be read on a phone: a page lays several of them side by side or below each other.
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
DODGE = 1.04  # encoders at the same number of films stand side by side, by this factor
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "chess-cxr",
}


def draw_label_efficiency(table: pd.DataFrame, metric: str = "auroc") -> str:
    """Plot a metric against the number of labelled training films, one line an encoder with its intervals; SVG text.

    table: `Comparison.table()`.
    """
    chosen = table[table["metric"] == metric].sort_values("n_train_films", kind="stable")
    encoders = list(dict.fromkeys(table["encoder"]))
    name = METRIC_NAMES.get(metric, metric)
    with build_axes(5.6, 3.6) as (figure, axes):
        for place, encoder in enumerate(encoders):
            rows = chosen[chosen["encoder"] == encoder]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            films = rows["n_train_films"] * DODGE ** (place - (len(encoders) - 1) / 2)
            axes.vlines(films, rows["low"], rows["high"], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(films, rows["value"], marker=marker, color=colour, label=encoder, markersize=5)
        axes.set_xscale("log")
        counts = sorted(chosen["n_train_films"].unique())
        axes.set_xticks(counts, [f"{count:,.0f}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("labelled training films")
        axes.set_ylabel(name)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        return write_svg(figure, f"{name} against the number of labelled training films")


def draw_efficiency_bands(table: pd.DataFrame, metric: str, encoders: Sequence[str]) -> str:
    """Plot a metric against the number of labelled training films, a line and a band an encoder; SVG text.

    table: summary rows of one task and head (`benchmark_tables.build_summary_table`).  encoders: all of the benchmark,
    so that each keeps its colour from plot to plot.
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

    curves: label -> rows of one curve of `roc_curves.compute_roc_curves`.  order: all labels that may appear, so that
    each keeps its colour.
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
    """Plot the share that came true against the probability given, before and after scaling; SVG text.

    before, after: `reliability.compute_reliability` of one name; after None where nothing could be scaled.
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


def get_look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the colour and marker of one of these names, by its place."""
    place = list(names).index(name)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _thin_ticks(counts: Sequence[float]) -> list[float]:
    """Keep the first and last number, and of the others those whose labels have room on a logarithmic axis."""
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


def shorten(name: str) -> str:
    """Return a name that fits below a panel: the middle of a long one is left out."""
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 11]}…{name[-10:]}"


def draw_training_curves(
    metrics: Sequence[Mapping[str, float]], chance_loss: float | None = None
) -> tuple[str, str, str]:
    """Plot loss, kNN AUROC and collapse signals of a run against its steps; three times SVG text.

    metrics: the lines of `metrics.jsonl`.  chance_loss: the loss of a network that knows nothing, nats.
    """
    return _draw_loss(metrics, chance_loss), _draw_knn(metrics), _draw_collapse(metrics)


def _draw_loss(metrics: Sequence[Mapping[str, float]], chance_loss: float | None) -> str:
    with build_axes(4.2, 3.7) as (figure, axes):
        names = sorted({name for row in metrics for name in row if name.startswith("loss/")})
        for place, name in enumerate(names):
            plot_curve(axes, metrics, name, name.removeprefix("loss/"), COLOURS[place % len(COLOURS)])
        if chance_loss is not None:
            axes.axhline(chance_loss, color="#777777", linestyle=":", label="chance")
        label_axes(axes, "loss, nats")
        return write_svg(figure, "Loss of pre-training against its steps")


def _draw_knn(metrics: Sequence[Mapping[str, float]]) -> str:
    with build_axes(4.2, 3.7) as (figure, axes):
        names = sorted({name for row in metrics for name in row if name.startswith("probe/knn_auroc/")})
        for place, name in enumerate(names):
            plot_curve(
                axes, metrics, name, name.removeprefix("probe/knn_auroc/"), COLOURS[place % len(COLOURS)], width=1.0
            )
        plot_curve(axes, metrics, "probe/knn_auroc", "mean", INK, width=2.6)
        axes.axhline(0.5, color="#777777", linestyle=":", label="chance")
        label_axes(axes, "kNN AUROC, val films")
        return write_svg(figure, "AUROC of a nearest-neighbour probe against the steps of pre-training")


def _draw_collapse(metrics: Sequence[Mapping[str, float]]) -> str:
    with build_axes(4.2, 3.7) as (figure, axes):
        plot_curve(axes, metrics, "embedding_std", "spread of embeddings", COLOURS[0])
        plot_curve(axes, metrics, "positive_similarity", "similarity of views", COLOURS[1])
        axes.set_ylim(0, 1.05)
        ranks = axes.twinx()
        ranks.spines["right"].set_visible(True)
        plot_curve(ranks, metrics, "probe/effective_rank", "effective rank (right)", COLOURS[2])
        ranks.set_ylim(0, 1.1 * max((row.get("probe/effective_rank", 1.0) for row in metrics), default=1.0))
        label_axes(axes, "share of the best", [*axes.get_lines(), *ranks.get_lines()])
        return write_svg(figure, "Signs of collapse against the steps of pre-training")


def draw_film(film: np.ndarray, title: str) -> str:
    """Draw a film, uint8 [H, W], under its title; SVG text."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1.9, 2.1), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(film, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        return write_svg(figure, title)


@contextmanager
def build_axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure of this size in inches with one panel, with the style in force."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.25)
        yield figure, axes


def plot_curve(
    axes: Axes, metrics: Sequence[Mapping[str, float]], name: str, label: str, colour: str, width: float = 1.5
) -> None:
    """Plot one number of a run's metrics against its steps; nothing where it was never measured."""
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 10 else ""
        axes.plot(steps, values, color=colour, label=label, linewidth=width, marker=marker, ms=4)


def label_axes(axes: Axes, what: str, lines: Sequence[Line2D] | None = None) -> None:
    """Name the axes of a run's curve and put the legend of its lines, all by default, below."""
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    handles = axes.get_lines() if lines is None else lines
    if handles:
        names = [str(line.get_label()) for line in handles]
        axes.legend(handles, names, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def write_svg(figure: Figure, title: str) -> str:
    """Write a figure as SVG text with a title to be read aloud."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = content.getvalue()
    spoken = f'<svg role="img" aria-label="{escape(title, quote=True)}"'
    return text[text.index("<svg") :].replace("<svg", spoken, 1)
