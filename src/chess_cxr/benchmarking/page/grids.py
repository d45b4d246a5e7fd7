"""A benchmark's tables as a page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.page.blocks import Cell, Grid
from chess_cxr.benchmarking.page.findings import (
    FINDING_METRIC,
    Tables,
    count,
    judge_difference,
    list_rows,
    name_metric,
    say,
    say_films,
    say_p,
    say_value,
    select,
)
from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, TaskFilms
from chess_cxr.benchmarking.tables import HEADLINES


def build_film_grid(results: BenchmarkResults) -> Grid:
    """Tasks down: data set, classes, films and patients of each split."""
    heads = ("task", "data set", "told apart", "train", "val", "test", "test films with each")
    rows = []
    for name, task in results.tasks.items():
        kind = f"{len(task.class_names)} classes" if task.kind == "multiclass" else "findings"
        cells = [name, task.data_set, kind, count(task.train_total, "labelled film")]
        cells += [say_films(task, split) for split in ("val", "test")]
        rows.append((*map(Cell, cells), Cell("", _count_classes(task, task.test))))
    return Grid(tuple(map(Cell, heads)), tuple(rows), "Train films are the labelled ones that draws are taken from.")


def build_encoder_grid(results: BenchmarkResults) -> Grid:
    """Encoders down: what each is, and for how many sets it has predictions."""
    rows = []
    for name, about in results.encoders.items():
        sets = sum(one.encoder == name for one in results.sets)
        rows.append(
            (Cell(name, mark_encoder(results, name)), Cell(about), Cell(f"{sets:,}", tone="" if sets else "warn"))
        )
    heads = (Cell("encoder"), Cell("what it is"), Cell("prediction sets"))
    return Grid(heads, tuple(rows), "A prediction set is one head, fitted to one draw of labelled films.")


def build_paper_grid(results: BenchmarkResults, tables: Tables, head: str, metric: str = FINDING_METRIC) -> Grid:
    """The paper's form: encoders down, each task with its fewest and all labels across."""
    columns = list_paper_columns(results, select(tables["summary"], head=head, metric=metric))
    return build_result_grid(results, tables, head, metric, columns, name_tasks=True)


def list_paper_columns(results: BenchmarkResults, summary: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (task, subset) for the fewest and for all labels of each task that has rows in `summary`."""
    columns = []
    for task in results.tasks:
        subsets, there = results.list_subsets(task), set(select(summary, task=task)["subset"])
        columns += [(task, subset) for subset in dict.fromkeys([*subsets[:1], *subsets[-1:]]) if subset in there]
    return columns


def build_result_grid(
    results: BenchmarkResults,
    tables: Tables,
    head: str,
    metric: str,
    columns: Sequence[tuple[str, str]],
    *,
    name_tasks: bool = False,
    brief: bool = False,
) -> Grid:
    """Encoders down, (task, subset) across: value with interval; below it the difference to the reference with p."""
    summary = select(tables["summary"], head=head, metric=metric)
    differences = select(tables["differences"], head=head, metric=metric)
    heads = [Cell("encoder")]
    for task, subset in columns:
        here = select(summary, task=task, subset=subset)
        films = (f"{count(here['n_train_films'].mean(), 'film')} · {_say_draws(here)}",) if len(here) else ()
        heads.append(Cell(task, (subset, *films)) if name_tasks else Cell(subset, films))
    rows = []
    for encoder in results.encoders:
        row = [Cell(encoder, mark_encoder(results, encoder))]
        for task, subset in columns:
            value = select(summary, task=task, subset=subset, encoder=encoder)
            gap = select(differences, task=task, subset=subset, encoder=encoder)
            row.append(_build_result_cell(results, value, gap))
        if any(cell.text != "–" for cell in row[1:]):
            rows.append(tuple(row))
    return Grid(tuple(heads), tuple(rows), say_caption(results, metric, brief))


def mark_encoder(results: BenchmarkResults, name: str) -> tuple[str, ...]:
    """Say below an encoder's name that the others are compared with it."""
    return ("reference",) if name == results.reference else ()


def say_caption(results: BenchmarkResults, metric: str, brief: bool = False) -> str:
    """What the numbers of a result grid are; brief where a whole caption stands above on the page."""
    if brief:
        return (
            f"{name_metric(metric)}, {results.split} split, mean over label draws [{results.level:.0%}]; Δ to "
            f"{results.reference}, p after Holm."
        )
    return (
        f"{name_metric(metric)}, {results.split} split, mean over label draws with its {results.level:.0%} interval "
        f"(bootstrap over {results.split} patients and, where there are several, draws; {results.replicates:,} "
        f"replicates, seed {results.seed}). Δ: difference to {results.reference}, on the same patients and draws, with "
        "two-sided p after Holm over the encoders, heads and label subsets of the task. Coloured where p is below "
        f"{1 - results.level:.2g}: ▲ ahead of {results.reference}, ▼ behind."
    )


def build_class_grid(results: BenchmarkResults, tables: Tables, task: TaskFilms, head: str) -> Grid | None:
    """Classes or findings down, encoders across: AUROC of each with all labels; None with fewer than two classes."""
    subsets = results.list_subsets(task.name)
    chosen = select(tables["summary"], task=task.name, head=head, subset=subsets[-1])
    encoders = [encoder for encoder in results.encoders if encoder in set(chosen["encoder"])]
    if len(task.class_names) < 2 or not encoders:
        return None
    test = dict(zip(task.class_names, _count_positives(task, task.test), strict=True))
    rows = []
    for name in task.class_names:
        cells = [Cell(name, (f"{test[name]:,} of {_count_known(task, name):,} films",))]
        for encoder in encoders:
            found = select(chosen, metric=f"{FINDING_METRIC}/{name}", encoder=encoder)
            cells.append(Cell("–") if found.empty else _split_value(list_rows(found)[0]))
        rows.append(tuple(cells))
    caption = f"{name_metric(FINDING_METRIC)} of each against the rest, {subsets[-1]} of the labels, {head} head."
    return Grid((Cell(""), *map(Cell, encoders)), tuple(rows), caption)


def list_headlines(task: TaskFilms, summary: pd.DataFrame) -> list[str]:
    """Return the metrics that a task is told by and that there are numbers of."""
    there = set() if summary.empty else set(select(summary, task=task.name)["metric"])
    return [metric for metric in HEADLINES[task.kind] if metric in there]


def _build_result_cell(results: BenchmarkResults, value: pd.DataFrame, gap: pd.DataFrame) -> Cell:
    if value.empty:
        return Cell("–")
    plain = _split_value(list_rows(value)[0])
    if gap.empty:
        return plain
    row = list_rows(gap)[0]
    tone = judge_difference(row, results.level)
    arrow = {"ahead": "▲ ", "behind": "▼ ", "": ""}[tone]
    ends = f"[{say(row.low, '+.3f')}, {say(row.high, '+.3f')}]"
    told = (f"{arrow}Δ {say(row.value, '+.3f')} {ends}", f"p {say_p(row, 'p_holm')}")
    return Cell(plain.text, (*plain.small, *told), tone)


def _split_value(row: Any) -> Cell:
    value, interval = say_value(row).split(" ", 1)
    return Cell(value, (interval,))


def _say_draws(table: pd.DataFrame) -> str:
    counts = sorted(set(table["draws"].tolist()))
    return count(counts[0], "draw") if len(counts) == 1 else f"{counts[0]}–{counts[-1]} draws"


def _count_positives(task: TaskFilms, films: EvaluatedFilms) -> list[int]:
    if task.kind == "multiclass":
        counts: list[int] = np.bincount(films.label.astype(np.intp), minlength=len(task.class_names)).tolist()
        return counts
    present: list[int] = (films.label == 1).sum(axis=0).tolist()
    return present


def _count_known(task: TaskFilms, name: str) -> int:
    if task.kind == "multiclass":
        return len(task.test.label)
    return int((~np.isnan(task.test.label[:, task.class_names.index(name)].astype(np.float64))).sum())


def _count_classes(task: TaskFilms, films: EvaluatedFilms) -> tuple[str, ...]:
    return tuple(
        f"{name} {number:,}" for name, number in zip(task.class_names, _count_positives(task, films), strict=True)
    )
