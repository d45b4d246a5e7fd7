"""The page of a benchmark: what was compared and found, then task by task what stands behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.page.blocks import Block, Cell, Grid, Part, split_grid
from chess_cxr.benchmarking.page.details import (
    build_error_block,
    build_operating_block,
    build_reliability_block,
    build_roc_block,
    build_subgroup_block,
)
from chess_cxr.benchmarking.page.extra import build_extra_parts
from chess_cxr.benchmarking.page.findings import (
    Tables,
    count,
    describe_findings,
    find_weakness,
    name_metric,
    say_films,
    select,
    summarise_findings,
)
from chess_cxr.benchmarking.page.grids import (
    build_class_grid,
    build_encoder_grid,
    build_film_grid,
    build_paper_grid,
    build_result_grid,
    list_headlines,
)
from chess_cxr.benchmarking.predictions import BenchmarkResults, TaskFilms
from chess_cxr.report.page import load_template, write_page
from chess_cxr.report.plots import draw_efficiency_bands


def write_benchmark_page(
    results: BenchmarkResults,
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    command: str,
    thumbnails: Mapping[str, np.ndarray],
    sheets: Mapping[tuple[str, str], bytes] | None = None,
) -> Path:
    """Write the page of a benchmark, complete in itself, whole or not at all, and return its path.

    tables: "summary" and "differences" of `benchmark_tables.build_benchmark_tables`.  out: the file, such as
    `report.html`.  command: what was typed.  thumbnails: small pictures, uint8 [H, W], by the uid of test films; the
    worst errors (`worst_errors.find_worst_errors`) without one are named without a picture.  sheets: PNG of bones and
    nodules, by task and encoder.
    """
    return write_page(out, render_benchmark_page(results, tables, command, thumbnails, sheets))


def render_benchmark_page(
    results: BenchmarkResults,
    tables: Tables,
    command: str = "",
    thumbnails: Mapping[str, np.ndarray] | None = None,
    sheets: Mapping[tuple[str, str], bytes] | None = None,
) -> str:
    """Render the page that `write_benchmark_page` writes."""
    parts = [
        _build_first_part(results, tables),
        _build_comparison_part(results, tables),
        *(
            _build_task_part(results, tables, task, f"task-{place}", thumbnails or {})
            for place, task in enumerate(results.tasks.values())
        ),
        *build_extra_parts(results, tables, sheets or {}),
        _build_last_part(results, tables, command),
    ]
    return load_template("chess_cxr.benchmarking.page", "benchmark.html").render(
        title="Encoder benchmark",
        subtitle=_describe_whole(results),
        parts=[part for part in parts if part.blocks],
        synthetic=results.synthetic,
    )


def _describe_whole(results: BenchmarkResults) -> str:
    tested = [len(task.test.uid_M) for task in results.tasks.values()]
    failed = f"; {count(len(results.failures), 'failure')}" if results.failures else ""
    return (
        f"{count(len(results.encoders), 'encoder')} on {count(len(results.tasks), 'task')}, "
        f"{count(len(results.sets), 'prediction set')} scored on {count(sum(tested), 'test film')}{failed}."
    )


def _build_first_part(results: BenchmarkResults, tables: Tables) -> Part:
    found = [f"{task}, {text}" for task in results.tasks for text in describe_findings(results, tables, task)]
    weakness = find_weakness(results, tables["differences"])
    failed = (
        f"Missing here because it failed: {count(len(results.failures), 'part')} of this benchmark, see Failures."
        if results.failures
        else ""
    )
    return Part(
        "what",
        "What was compared, and what was found",
        (
            Block(
                text=tuple(summarise_findings(results, tables["differences"])),
                items=tuple(found),
                warnings=tuple(filter(None, (weakness, failed))),
            ),
            Block("Films", grid=build_film_grid(results)),
            Block("Encoders", grid=build_encoder_grid(results)),
        ),
    )


def _build_comparison_part(results: BenchmarkResults, tables: Tables) -> Part:
    heads = list(dict.fromkeys(one.head for one in results.sets))
    blocks = [block for head in heads for block in split_grid(f"{head} head", build_paper_grid(results, tables, head))]
    return Part(
        "comparison", "Fewest and all labels", tuple(block for block in blocks if block.grid and block.grid.rows)
    )


def _build_task_part(
    results: BenchmarkResults, tables: Tables, task: TaskFilms, anchor: str, thumbnails: Mapping[str, np.ndarray]
) -> Part:
    val = "" if task.split == "val" else f"; val: {say_films(task, 'val')}"
    about = (
        f"{task.data_set}: {', '.join(task.class_names)}. Scored on the {task.split} split, {say_films(task, 'test')}; "
        f"{count(task.train_total, 'labelled train film')}{val}."
    )
    blocks = [Block(text=(about, *task.notes))]
    heads = [head for head in dict.fromkeys(one.head for one in results.sets) if _has_sets(results, task, head)]
    if not heads:
        return Part(
            anchor, task.name, (*blocks, Block(warnings=("Nothing was computed for this task: see Failures.",)))
        )
    for head in heads:
        blocks += _build_result_blocks(results, tables, task, head)
    first = next((head for head in heads if _has_sets(results, task, head, results.reference)), heads[0])
    details: Sequence[Block | None] = (
        build_roc_block(results, task, first),
        build_reliability_block(results, task, first),
        *build_operating_block(results, task),
        build_subgroup_block(results, task),
        build_error_block(results, task, thumbnails),
    )
    return Part(anchor, task.name, (*blocks, *(block for block in details if block)))


def _build_result_blocks(results: BenchmarkResults, tables: Tables, task: TaskFilms, head: str) -> list[Block]:
    metrics = list_headlines(task, tables["summary"])
    rows = select(tables["summary"], task=task.name, head=head)
    figures = tuple(draw_efficiency_bands(rows, metric, list(results.encoders)) for metric in metrics)
    caption = (
        f"{head.capitalize()} head; mean over label draws; bands: {results.level:.0%} intervals over test patients and "
        "draws. Films on a logarithmic axis."
    )
    columns = [(task.name, subset) for subset in results.list_subsets(task.name)]
    grids = [(metric, build_result_grid(results, tables, head, metric, columns, brief=True)) for metric in metrics]
    by_class = build_class_grid(results, tables, task, head)
    return [
        Block(f"Label efficiency, {head} head", figures=figures, figure_width=25, figure_caption=caption),
        *(block for metric, grid in grids for block in split_grid(f"{name_metric(metric)}, {head} head", grid)),
        *(split_grid(f"AUROC of each {_name_class(task)}, {head} head", by_class) if by_class else []),
    ]


def _name_class(task: TaskFilms) -> str:
    return "class" if task.kind == "multiclass" else "finding"


def _has_sets(results: BenchmarkResults, task: TaskFilms, head: str, encoder: str = "") -> bool:
    return any(
        one.task == task.name and one.head == head and (not encoder or one.encoder == encoder) for one in results.sets
    )


def _build_last_part(results: BenchmarkResults, tables: Tables, command: str) -> Part:
    blocks = []
    if results.failures:
        rows = tuple(
            (
                Cell(one.task),
                Cell(one.encoder),
                Cell(one.head or "all"),
                Cell(one.subset or "all"),
                Cell("all" if one.draw < 0 else str(one.draw)),
                Cell("", (one.reason,), "warn"),
            )
            for one in results.failures
        )
        heads = tuple(map(Cell, ("task", "encoder", "head", "labels", "draw", "reason")))
        blocks.append(Block("Failures", grid=Grid(heads, rows, "These numbers are missing above; the rest is whole.")))
    if notes := _list_notes(results):
        blocks.append(Block("Notes", items=notes))
    blocks.append(Block("Again", text=(_say_provenance(results),), code=command))
    return Part("provenance", "Failures, notes and origin" if results.failures else "Notes and origin", tuple(blocks))


def _list_notes(results: BenchmarkResults) -> tuple[str, ...]:
    """Notes of single fits, each told once for a task with whose sets it is of."""
    seen: dict[tuple[str, str], list[str]] = {}
    for one in results.sets:
        for note in one.notes:
            seen.setdefault((one.task, note), []).append(one.encoder)
    return tuple(
        f"{task}: {note} ({', '.join(dict.fromkeys(encoders))}: {count(len(encoders), 'prediction set')})"
        for (task, note), encoders in seen.items()
    )


def _say_provenance(results: BenchmarkResults) -> str:
    try:
        release = version("chess-cxr")
    except PackageNotFoundError:
        release = "not installed"
    seconds = sum(one.seconds for one in results.sets)
    return (
        f"chess-cxr {release}; seed {results.seed}; {results.replicates:,} bootstrap replicates; {results.level:.0%} "
        f"intervals; {count(seconds, 'second')} of fitting heads in all. Labels are drawn by patient and nested; "
        f"nothing was chosen on {results.split} films."
    )
