"""The page of a pre-training run: its curves, what it was told to do, and views as it saw them."""

from __future__ import annotations

import base64
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes

from chess_cxr.files.whole import read_json
from chess_cxr.methods.batch import take_views
from chess_cxr.pretraining.collapse import CollapseAlarm
from chess_cxr.pretraining.films import FilmPool, build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import PretrainConfig, read_pretrain_config
from chess_cxr.pretraining.runs import read_lines, read_run, say_duration
from chess_cxr.pretraining.watch import find_first_judged_step
from chess_cxr.records import UsageError
from chess_cxr.report.page import write_page
from chess_cxr.report.pictures import encode_png
from chess_cxr.report.plots import COLOURS, INK, build_axes, label_axes, plot_curve, write_svg
from chess_cxr.store import StoreLike, get_store
from chess_cxr.training.run import hash_uids, read_run_config

Metrics = Sequence[Mapping[str, float]]
MOST_POINTS = 400  # of a curve: what lies closer together cannot be seen, and a run of weeks has 75,000 lines
LARGEST_VIEW = 256  # pixels of a side on the page


@dataclass(frozen=True)
class Curve:
    """One line of a panel: the number's name in `metrics.jsonl`, and what the legend calls it."""

    name: str
    label: str


@dataclass(frozen=True)
class RunFacts:
    """What a page tells of a run beside its curves.

    title: such as the run's name.  state: such as "finished, 4,800 of 4,800 steps".  metrics: the lines of
    `metrics.jsonl`.  config, environment: as in the run's JSON files.  notes: what must not be overlooked, such as a
    collapse or that films were generated; one line each.
    probed: one sentence on the probed films, as every number says on which films it was measured.
    """

    title: str
    state: str
    metrics: Metrics
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    probed: str = ""
    synthetic: bool = False


def render_run_page(facts: RunFacts, view_2PHW: np.ndarray | None = None, command: str = "") -> str:
    """Render the page of a run, complete in itself.

    view_2PHW: uint8, two views of each of P films of the training split; None for no sheet.  command: that continues or
    repeats the run.
    """
    template = files("chess_cxr.pretraining").joinpath("run.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["picture"] = lambda film: _embed(encode_png(shrink_view(film)))
    return environment.from_string(template).render(
        facts=facts,
        numbers=list_numbers(facts.metrics),
        figures=draw_run_curves(facts.metrics),
        thinned=len(facts.metrics) > MOST_POINTS,
        pairs=[] if view_2PHW is None else list(zip(view_2PHW[0], view_2PHW[1], strict=True)),
        tables=[("Configuration", list_entries(facts.config)), ("Environment", list_entries(facts.environment))],
        command=command,
    )


def list_numbers(metrics: Metrics) -> list[tuple[str, str, str]]:
    """List a run's headline numbers as (name, value, remark); what was not measured is left out."""
    newest: dict[str, float] = {}
    for line in metrics:
        newest |= line
    found = []
    for name, label in (("probe/knn_auroc", "kNN AUROC"), ("probe/linear_auroc", "linear probe AUROC")):
        if points := [(line[name], line["step"]) for line in metrics if name in line]:
            best, step = max(points)
            found.append((label, f"{points[-1][0]:.3f}", f"best {best:.3f} at step {step:,.0f}"))
    for name, label, form, remark in _HEADLINES:
        if name in newest:
            found.append((label, format(newest[name], form), remark))
    losses = [name for name in newest if name.startswith("loss/")]
    return found + [(f"loss, {name.removeprefix('loss/')}", f"{newest[name]:.3f}", "nats") for name in losses]


_HEADLINES = (
    ("probe/effective_rank", "effective rank", ".0f", "of the features; near 1 is collapse"),
    ("embedding_std", "spread of embeddings", ".2f", "0 … 1; near 0 is collapse"),
    ("images_per_second", "images a second", ",.0f", "newest"),
    ("data_wait_share", "waiting for data", ".1%", "of a step's time"),
    ("gemm_peak_share", "share of the GEMM peak", ".0%", "of the machine's measured matrix product"),
    ("skipped_steps", "skipped steps", ",.0f", "loss or gradient not finite"),
)


def list_entries(described: Any, at: str = "") -> list[tuple[str, str]]:
    """List a nested configuration as (part.entry, text)."""
    if not isinstance(described, Mapping):
        return [(at, described if isinstance(described, str) else json.dumps(described, ensure_ascii=False))]
    return [
        entry for key, value in described.items() for entry in list_entries(value, f"{at}.{key}" if at else str(key))
    ]


def draw_run_curves(metrics: Metrics) -> list[str]:
    """Draw the panels of a run as SVG texts; a panel of which nothing was measured is left out.

    metrics: the lines of `metrics.jsonl`; where there are more than `MOST_POINTS` of a number, means of neighbours.
    """
    names = dict.fromkeys(name for line in metrics for name in line)
    losses = [Curve(name, name.removeprefix("loss/")) for name in names if name.startswith("loss/")]
    knn, linear = _list_probe_curves(names, "knn_auroc"), _list_probe_curves(names, "linear_auroc")
    drawn = [
        _draw(metrics, losses, "loss, nats", "Loss against the steps"),
        _draw(
            metrics, knn, "kNN AUROC, val films", "AUROC of the nearest-neighbour probe against the steps", chance=0.5
        ),
        _draw(metrics, linear, "linear AUROC, val films", "AUROC of the linear probe against the steps", chance=0.5),
        _draw(
            metrics,
            _SPREAD,
            "spread, similarity",
            "Signs of collapse: spread and similarity against the steps",
            limits=(0, 1.05),
        ),
        _draw(metrics, [Curve("probe/effective_rank", "of the features")], "effective rank", "Effective rank"),
        _draw(metrics, _UNIFORMITY, "alignment, uniformity", "Alignment and uniformity against the steps"),
        _draw(metrics, [Curve("learning_rate", "learning rate")], "learning rate", "Learning rate against the steps"),
        _draw_speed(metrics),
    ]
    return [figure for figure in drawn if figure]


_SPREAD = [
    Curve("embedding_std", "spread of embeddings"),
    Curve("probe/feature_std", "spread of features"),
    Curve("positive_similarity", "two views of a film"),
    Curve("negative_similarity", "different films"),
]
_UNIFORMITY = [
    Curve("alignment", "alignment"),
    Curve("uniformity", "uniformity"),
    Curve("probe/alignment", "alignment, features"),
    Curve("probe/uniformity", "uniformity, features"),
]


def _list_probe_curves(names: Mapping[str, None], probe: str) -> list[Curve]:
    inside = [Curve(name, name.removeprefix(f"probe/{probe}/")) for name in names if name.startswith(f"probe/{probe}/")]
    return [Curve(f"probe/{probe}", "mean"), *inside[: len(COLOURS)]]


def _draw(
    metrics: Metrics,
    curves: Sequence[Curve],
    what: str,
    title: str,
    chance: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    shown = [curve for curve in curves if any(curve.name in line for line in metrics)]
    if not shown:
        return ""
    with build_axes(4.2, 3.7) as (figure, axes):
        for place, curve in enumerate(shown):
            is_mean = curve.label == "mean"
            colour = INK if is_mean else COLOURS[place % len(COLOURS)]
            plot_curve(
                axes, thin_curve(metrics, curve.name), curve.name, curve.label, colour, width=2.6 if is_mean else 1.3
            )
        if chance is not None:
            axes.axhline(chance, color="#777777", linestyle=":", label="chance")
        if limits:
            axes.set_ylim(min(limits[0], axes.get_ylim()[0]), limits[1])
        label_axes(axes, what)
        return write_svg(figure, title)


def _draw_speed(metrics: Metrics) -> str:
    if not any("images_per_second" in line for line in metrics):
        return ""
    with build_axes(4.2, 3.7) as (figure, axes):
        plot_curve(axes, thin_curve(metrics, "images_per_second"), "images_per_second", "images a second", COLOURS[0])
        axes.set_ylim(bottom=0)
        shares: Axes = axes.twinx()
        shares.spines["right"].set_visible(True)
        for place, (name, label) in enumerate(
            (("data_wait_share", "waiting for data"), ("gemm_peak_share", "GEMM peak"))
        ):
            points = [{**line, name: 100 * line[name]} for line in thin_curve(metrics, name)]
            plot_curve(shares, points, name, f"{label}, % (right)", COLOURS[1 + place])
        shares.set_ylim(0, 100)
        label_axes(axes, "images a second", [*axes.get_lines(), *shares.get_lines()])
        return write_svg(figure, "Speed and waiting for data against the steps")


def thin_curve(metrics: Metrics, name: str) -> list[dict[str, float]]:
    """Return the lines that hold a number, at most `MOST_POINTS`: means of neighbours at their last step."""
    points = np.array([(line["step"], line[name]) for line in metrics if np.isfinite(line.get(name, np.nan))])
    if not len(points):
        return []
    parts = np.array_split(points, min(len(points), MOST_POINTS))
    return [{"step": float(part[-1, 0]), name: float(part[:, 1].mean())} for part in parts]


def shrink_view(view_HW: np.ndarray) -> np.ndarray:
    """Shrink a uint8 view by a whole factor to at most `LARGEST_VIEW` pixels a side, by means of blocks."""
    factor = -(-max(view_HW.shape) // LARGEST_VIEW)
    height, width = (side // factor * factor for side in view_HW.shape)
    blocks = view_HW[:height, :width].reshape(height // factor, factor, width // factor, factor)
    shrunk: np.ndarray = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return shrunk


def _embed(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def write_run_page(run: Path | str, stores: Sequence[StoreLike] = (), films: int = 12, synthetic: bool = False) -> Path:
    """Write a run's page with its curves, `report.html` in its folder, and return its path.

    stores: that it was trained on, for a sheet with the views that its first step saw of `films` films.
    synthetic: put a banner on it.  Raises `UsageError` where `run` is no run or the stores do not hold its films.
    """
    run = Path(run)
    if films < 1:
        raise UsageError("a sheet of views needs 1 film or more")
    described = read_run_config(run)
    config = read_pretrain_config({key: value for key, value in described.items() if key != "data"})
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


def _draw_first_views(config: PretrainConfig, pool: FilmPool, films: int) -> np.ndarray:
    """Draw the views of the first films of a run, uint8 [2, films, H, W]."""
    training = config.training
    batches = read_view_batches(
        pool, config.views, batch=training.batch, seed=training.seed, first_step=0, steps=1, positives=config.positives,
        crops=config.crops,
    )  # fmt: skip
    views: np.ndarray = take_views(next(batches)).global_GB1SS[:2, :films, 0].numpy()
    batches.close()
    return views
