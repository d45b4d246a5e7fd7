"""The page of a pre-training run: its headline numbers, curves, configuration, and view pairs as it saw them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes

from chess_cxr.files.whole import read_json
from chess_cxr.methods.batch import take_views
from chess_cxr.pretraining.collapse import CollapseAlarm
from chess_cxr.pretraining.films import FilmPool, build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import PretrainConfig, read_pretrain_config
from chess_cxr.pretraining.runs import read_lines, read_run, say_duration
from chess_cxr.pretraining.watch import find_first_judged_step
from chess_cxr.records import UsageError
from chess_cxr.report.page import load_template, write_page
from chess_cxr.report.pictures import embed_picture, encode_png
from chess_cxr.report.plots import COLOURS, INK, build_axes, label_axes, plot_curve, write_svg
from chess_cxr.store import StoreLike, get_store
from chess_cxr.training.config import flatten_config
from chess_cxr.training.run import hash_uids, read_run_config

Metrics = Sequence[Mapping[str, float]]
Curves = Mapping[str, str]  # names in `metrics.jsonl` -> labels in the legend
MOST_POINTS = 400  # of a curve: more cannot be seen, and a run of weeks has 75,000 lines
LARGEST_VIEW = 256  # pixels of a side on the page
FIGURE_SIZE = (4.2, 3.7)
HEADLINES = (
    ("probe/effective_rank", "effective rank", ".0f", "of the features; near 1 is collapse"),
    ("embedding_std", "spread of embeddings", ".2f", "0 … 1; near 0 is collapse"),
    ("images_per_second", "images a second", ",.0f", "newest"),
    ("data_wait_share", "waiting for data", ".1%", "of a step's time"),
    ("gemm_peak_share", "share of the GEMM peak", ".0%", "of the machine's measured matrix product"),
    ("skipped_steps", "skipped steps", ",.0f", "loss or gradient not finite"),
)
SPREAD = {
    "embedding_std": "spread of embeddings",
    "probe/feature_std": "spread of features",
    "positive_similarity": "two views of a film",
    "negative_similarity": "different films",
}
UNIFORMITY = {
    "alignment": "alignment",
    "uniformity": "uniformity",
    "probe/alignment": "alignment, features",
    "probe/uniformity": "uniformity, features",
}


@dataclass(frozen=True)
class RunFacts:
    """The facts about a run that its page shows.

    title: such as the run's name.  state: such as "finished, 4,800 of 4,800 steps".  metrics: the lines of
    `metrics.jsonl`.  config, environment: the run's JSON files.  notes: warnings, one line each, such as a collapse.
    probed: a sentence on the films that the probe was measured on.
    """

    title: str
    state: str
    metrics: Metrics
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    probed: str = ""
    synthetic: bool = False


def write_run_page(run: Path | str, stores: Sequence[StoreLike] = (), films: int = 12, synthetic: bool = False) -> Path:
    """Write the page of a run to `report.html` in its folder; return its path.

    stores: the stores it was trained on, to show the view pairs of `films` films in its first step.
    synthetic: show a banner that the films were generated.
    Raises `UsageError` if `run` is not a run, or if the stores do not hold its films.
    """
    run = Path(run)
    if films < 1:
        raise UsageError("a sheet of views needs 1 film or more")
    described = read_run_config(run)
    config = read_pretrain_config(described)
    summary, metrics = read_run(run, time.time()), read_lines(run / "metrics.jsonl")
    alarm = CollapseAlarm(first_step=find_first_judged_step(config.training))
    notes = [line for values in metrics if (line := alarm.judge(int(values["step"]), values))]
    state = f"{summary.state}, {summary.step:,} of {summary.steps:,} steps, {say_duration(summary.seconds)} of training"
    facts = RunFacts(
        summary.name, state, metrics, described, read_json(run / "environment.json"), tuple(notes),
        "Probes learn from up to 1,000 labelled train films and are scored on up to 500 val films.", synthetic,
    )  # fmt: skip
    pool = build_film_pool([get_store(store) for store in stores], config.splits) if stores else None
    if pool and hash_uids(pool.get_uids()) != described.get("data", {}).get("uids_sha256"):
        raise UsageError(f"{run} was trained on other films than these; give --store all of its stores, in its order")
    views = _draw_first_views(config, pool, films) if pool else None
    again = shlex.join(["chess-cxr", "pretrain", "STORE", "--config", str(run / "config.json"), "--out", str(run)])
    return write_page(run / "report.html", render_run_page(facts, views, again))


def render_run_page(facts: RunFacts, view_2PHW: np.ndarray | None = None, command: str = "") -> str:
    """Render the self-contained page of a run.

    view_2PHW: uint8, two views of each of P training films; None for no sheet.  command: continues or repeats the run.
    """
    template = load_template(
        "chess_cxr.pretraining", "run.html", picture=lambda view: embed_picture(encode_png(shrink_view(view)))
    )
    tables = {"Configuration": facts.config, "Environment": facts.environment}
    return template.render(
        facts=facts,
        numbers=list_numbers(facts.metrics),
        figures=list(draw_run_curves(facts.metrics).values()),
        thinned=len(facts.metrics) > MOST_POINTS,
        pairs=[] if view_2PHW is None else list(zip(view_2PHW[0], view_2PHW[1], strict=True)),
        tables=[(title, list(flatten_config(described).items())) for title, described in tables.items()],
        command=command,
    )


def list_numbers(metrics: Metrics) -> list[tuple[str, str, str]]:
    """List a run's headline numbers as (name, value, remark), leaving out what was not measured."""
    newest: dict[str, float] = {}
    for line in metrics:
        newest |= line
    found = []
    for name, label in (("probe/knn_auroc", "kNN AUROC"), ("probe/linear_auroc", "linear probe AUROC")):
        if points := [(line[name], line["step"]) for line in metrics if name in line]:
            best, step = max(points)
            found.append((label, f"{points[-1][0]:.3f}", f"best {best:.3f} at step {step:,.0f}"))
    for name, label, form, remark in HEADLINES:
        if name in newest:
            found.append((label, format(newest[name], form), remark))
    losses = [name for name in newest if name.startswith("loss/")]
    return found + [(f"loss, {name.removeprefix('loss/')}", f"{newest[name]:.3f}", "nats") for name in losses]


def draw_run_curves(metrics: Metrics, chance_loss: float | None = None) -> dict[str, str]:
    """Draw the figures of a run as SVG texts by name, leaving out figures without any measurement.

    metrics: the lines of `metrics.jsonl`, thinned to `MOST_POINTS` by averaging neighbours.  chance_loss: loss of an
    untrained network, nats.
    """
    names = dict.fromkeys(name for line in metrics for name in line)
    losses = {name: name.removeprefix("loss/") for name in names if name.startswith("loss/")}
    knn, linear = (_list_probe_curves(names, probe) for probe in ("knn_auroc", "linear_auroc"))
    rank, rate = {"probe/effective_rank": "of the features"}, {"learning_rate": "learning rate"}
    spread_title = "Signs of collapse: spread and similarity against the steps"
    probe_title = "AUROC of the {} probe against the steps"
    drawn = {
        "loss": _draw(metrics, losses, "loss, nats", "Loss against the steps", chance_loss),
        "knn": _draw(metrics, knn, "kNN AUROC, val films", probe_title.format("nearest-neighbour"), 0.5),
        "linear": _draw(metrics, linear, "linear AUROC, val films", probe_title.format("linear"), 0.5),
        "collapse": _draw(metrics, SPREAD, "spread, similarity", spread_title, limits=(0, 1.05)),
        "rank": _draw(metrics, rank, "effective rank", "Effective rank"),
        "uniformity": _draw(metrics, UNIFORMITY, "alignment, uniformity", "Alignment and uniformity against the steps"),
        "rate": _draw(metrics, rate, "learning rate", "Learning rate against the steps"),
        "speed": _draw_speed(metrics),
    }
    return {name: figure for name, figure in drawn.items() if figure}


def thin_curve(metrics: Metrics, name: str) -> list[dict[str, float]]:
    """Return the lines that hold a number, averaged to at most `MOST_POINTS`, each at the last step of its part."""
    points = np.array([(line["step"], line[name]) for line in metrics if np.isfinite(line.get(name, np.nan))])
    if not len(points):
        return []
    parts = np.array_split(points, min(len(points), MOST_POINTS))
    return [{"step": float(part[-1, 0]), name: float(part[:, 1].mean())} for part in parts]


def shrink_view(view_HW: np.ndarray) -> np.ndarray:
    """Shrink a uint8 view by an integer factor to at most `LARGEST_VIEW` pixels a side, by averaging blocks."""
    factor = -(-max(view_HW.shape) // LARGEST_VIEW)
    height, width = (side // factor for side in view_HW.shape)
    cut_HW = view_HW[: height * factor, : width * factor]
    shrunk: np.ndarray = cv2.resize(cut_HW, (width, height), interpolation=cv2.INTER_AREA)
    return shrunk


def _list_probe_curves(names: Mapping[str, None], probe: str) -> Curves:
    prefix = f"probe/{probe}/"
    by_label = [name for name in names if name.startswith(prefix)][: len(COLOURS)]
    return {f"probe/{probe}": "mean"} | {name: name.removeprefix(prefix) for name in by_label}


def _draw(
    metrics: Metrics,
    curves: Curves,
    what: str,
    title: str,
    chance: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    shown = {name: label for name, label in curves.items() if any(name in line for line in metrics)}
    if not shown:
        return ""
    with build_axes(*FIGURE_SIZE) as (figure, axes):
        for place, (name, label) in enumerate(shown.items()):
            colour, width = (INK, 2.6) if label == "mean" else (COLOURS[place % len(COLOURS)], 1.3)
            plot_curve(axes, thin_curve(metrics, name), name, label, colour, width=width)
        if chance is not None:
            axes.axhline(chance, color="#777777", linestyle=":", label="chance")
        if limits:
            axes.set_ylim(min(limits[0], axes.get_ylim()[0]), limits[1])
        label_axes(axes, what)
        return write_svg(figure, title)


def _draw_speed(metrics: Metrics) -> str:
    if not any("images_per_second" in line for line in metrics):
        return ""
    with build_axes(*FIGURE_SIZE) as (figure, axes):
        plot_curve(axes, thin_curve(metrics, "images_per_second"), "images_per_second", "images a second", COLOURS[0])
        axes.set_ylim(bottom=0)
        shares: Axes = axes.twinx()
        shares.spines["right"].set_visible(True)
        for name, label, colour in (
            ("data_wait_share", "waiting for data", COLOURS[1]),
            ("gemm_peak_share", "GEMM peak", COLOURS[2]),
        ):
            points = [{**line, name: 100 * line[name]} for line in thin_curve(metrics, name)]
            plot_curve(shares, points, name, f"{label}, % (right)", colour)
        shares.set_ylim(0, 100)
        label_axes(axes, "images a second", [*axes.get_lines(), *shares.get_lines()])
        return write_svg(figure, "Speed and waiting for data against the steps")


def _draw_first_views(config: PretrainConfig, pool: FilmPool, films: int) -> np.ndarray:
    """Draw the view pairs of the run's first films, uint8 [2, films, H, W]."""
    training = config.training
    batches = read_view_batches(
        pool, config.views, batch=training.batch, seed=training.seed, first_step=0, steps=1, positives=config.positives,
        crops=config.crops,
    )  # fmt: skip
    views: np.ndarray = take_views(next(batches)).global_GB1SS[:2, :films, 0].numpy()
    batches.close()
    return views
