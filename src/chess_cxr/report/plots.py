"""Plots as SVG text, made from tables; nothing here computes a result."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0b5394", "#cc4125", "#38761d", "#7f6000", "#674ea7", "#444444")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "chess-cxr",
}


def draw_label_efficiency(table: pd.DataFrame, metric: str = "auroc") -> str:
    """Plot a metric against the number of labelled training films, one line an encoder with its interval; SVG text.

    table: `Comparison.table()`.
    """
    chosen = table[table["metric"] == metric].sort_values("n_train_films")
    figure, (axes,) = _build_figure(1, width=7.5)
    for place, (encoder, rows) in enumerate(chosen.groupby("encoder", sort=False)):
        colour = COLOURS[place % len(COLOURS)]
        axes.fill_between(rows["n_train_films"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(rows["n_train_films"], rows["value"], "o-", color=colour, label=str(encoder), markersize=4)
    axes.set_xscale("log")
    films = sorted(chosen["n_train_films"].unique())
    axes.set_xticks(films, [f"{count:,.0f}" for count in films])
    axes.minorticks_off()
    axes.set_xlabel("labelled training films")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, loc="lower right")
    return _write_svg(figure)


def draw_training_curves(metrics: Sequence[Mapping[str, float]], chance_loss: float | None = None) -> str:
    """Plot loss, kNN AUROC and collapse signals of a run against its steps; SVG text.

    metrics: the lines of `metrics.jsonl`.  chance_loss: the loss of a network that knows nothing, nats.
    """
    figure, (loss, knn, collapse) = _build_figure(3, width=12)
    _plot(loss, metrics, "loss/encoder", "loss", 0)
    if chance_loss is not None:
        loss.axhline(chance_loss, color="#999999", linestyle=":", label="chance")
    loss.set_ylabel("InfoNCE loss, nats")
    names = sorted({name for row in metrics for name in row if name.startswith("probe/knn_auroc")})
    for place, name in enumerate(names):
        mean = name == "probe/knn_auroc"
        label = "mean" if mean else name.removeprefix("probe/knn_auroc/")
        _plot(knn, metrics, name, label, place, width=2.2 if mean else 1.0)
    knn.set_ylabel("kNN AUROC on val films")
    _plot(collapse, metrics, "embedding_std", "embedding std × √D", 0)
    _plot(collapse, metrics, "positive_similarity", "positive similarity", 1)
    collapse.set_ylim(0, 1.05)
    ranks = collapse.twinx()
    ranks.spines["right"].set_visible(True)
    _plot(ranks, metrics, "probe/effective_rank", "effective rank (right)", 2)
    ranks.set_ylim(bottom=0)
    handles = [*collapse.get_lines(), *ranks.get_lines()]
    collapse.legend(handles, [str(line.get_label()) for line in handles], frameon=False, fontsize=8)
    for axes in (loss, knn):
        axes.legend(frameon=False, fontsize=8)
    for axes in (loss, knn, collapse):
        axes.set_xlabel("step")
    return _write_svg(figure)


def draw_film_sheet(films: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> str:
    """Draw films, uint8 [H, W], on a sheet with a title each; SVG text."""
    rows = -(-len(films) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(columns * 1.9, rows * 2.1), layout="constrained")
        for place, (film, title) in enumerate(zip(films, titles, strict=True)):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.imshow(film, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    return _write_svg(figure)


def _build_figure(panels: int, width: float) -> tuple[Figure, list[Axes]]:
    with rc_context(STYLE):
        figure = Figure(figsize=(width, 4.0), layout="constrained")
        axes = [figure.add_subplot(1, panels, place + 1) for place in range(panels)]
    for panel in axes:
        panel.grid(alpha=0.25)
    return figure, axes


def _plot(
    axes: Axes, metrics: Sequence[Mapping[str, float]], name: str, label: str, place: int, width: float = 1.5
) -> None:
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=COLOURS[place % len(COLOURS)], label=label, linewidth=width)


def _write_svg(figure: Figure) -> str:
    content = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]
