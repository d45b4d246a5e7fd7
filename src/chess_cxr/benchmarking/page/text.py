"""A benchmark as Markdown: the table in the paper's form, the tables of each task, the section of a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from chess_cxr.benchmarking.page.blocks import Cell, Part
from chess_cxr.benchmarking.page.extra import build_audit_part, build_extra_parts
from chess_cxr.benchmarking.page.grids import list_paper_columns
from chess_cxr.benchmarking.predictions import BenchmarkResults, TaskFilms
from chess_cxr.benchmarking.tables import HEADLINES, BenchmarkTables
from chess_cxr.records import UsageError
from chess_cxr.report.plots import METRIC_NAMES

SYNTHETIC = "**SYNTHETIC: the films were generated. These numbers show that the software works, not what it is worth.**"
PAPER_METRIC = "auroc"


def render_tables(
    results: BenchmarkResults, tables: BenchmarkTables, command: str, extra: Mapping[str, pd.DataFrame] | None = None
) -> str:
    """Render `table.md`: first the paper's form, then every task with all its label subsets, then what failed.

    command: what was typed; it stands below.  extra: tables that only some suites have.
    """
    parts = ["# Encoder benchmark", *([SYNTHETIC] if results.synthetic else [])]
    parts += [f"- {_escape(name)}: {_escape(about)}" for name, about in results.encoders.items()]
    heads = list(dict.fromkeys(tables.summary["head"]))
    parts += [
        f"## {_name_metric(PAPER_METRIC)}, fewest and all labels, {head} head\n\n"
        + _render_paper(results, tables, head)
        for head in heads
    ]
    parts += [_render_task(results, tables, task, head) for task in results.tasks for head in heads]
    parts += [render_parts(build_extra_parts(results, extra or {}, {}))]
    if results.failures:
        rows = [
            [one.task, one.encoder, one.head, one.subset or "all", "all" if one.draw < 0 else one.draw, one.reason]
            for one in results.failures
        ]
        head_row = ["task", "encoder", "head", "subset", "draw", "reason"]
        parts.append(f"## Failures\n\n{_render_grid(head_row, rows)}")
    return "\n\n".join([*(part for part in parts if part), f"    {command}"]) + "\n"


def render_parts(parts: Sequence[Part], level: int = 2) -> str:
    """Render the tables of a page's parts as Markdown, without figures and pictures; "" for none.

    level: of the parts' headings; those within are one deeper.
    """
    lines = []
    for part in (part for part in parts if part.blocks):
        lines.append(f"{'#' * level} {part.heading}")
        for block in part.blocks:
            lines += [*block.text, *block.warnings]
            if block.grid:
                heads, *rows = [[_join_cell(cell) for cell in row] for row in (block.grid.heads, *block.grid.rows)]
                lines += [*([f"{'#' * level}# {block.heading}"] if block.heading else []), _render_grid(heads, rows)]
                lines += [block.grid.caption] if block.grid.caption else []
    return "\n\n".join(lines)


def _join_cell(cell: Cell) -> str:
    return " ".join(filter(None, (cell.text, *cell.small)))


def render_card_section(
    results: BenchmarkResults,
    tables: BenchmarkTables,
    encoder: str,
    extra: Mapping[str, pd.DataFrame] | None = None,
) -> str:
    """Render what a model card says of one encoder: its numbers, its distance to the others, and what to know.

    extra: tables that only some suites have; of these the card takes the audit.
    Markdown for `weights.write_card`.  Raises UsageError where the encoder is not in the benchmark.
    """
    if encoder not in set(tables.summary.get("encoder", ())):
        there = ", ".join(dict.fromkeys(tables.summary.get("encoder", ())))
        raise UsageError(f"no predictions of an encoder named {encoder!r} in this benchmark; there are {there}")
    parts = [SYNTHETIC] if results.synthetic else []
    for name, task in results.tasks.items():
        mine = _select(tables.summary, task=name, encoder=encoder)
        if mine.empty:
            continue
        rows = [
            [row.subset, f"{row.n_train_films:.0f}", row.draws, row.head, _name_metric(row.metric), _say_value(row)]
            for row in mine.itertuples()
            if row.metric in HEADLINES[task.kind]
        ]
        head_row = ["labels", "films", "draws", "head", "metric", "value [interval]"]
        parts.append(f"**{_escape(name)}** ({_say_films(results, task)})\n\n{_render_grid(head_row, rows)}")
        parts += _list_gaps(results, tables, name, encoder)
        parts += [_escape(note) for note in task.notes if note.startswith(f"{encoder} ") or note.startswith(name)]
    if extra and "audit" in extra:
        parts += filter(
            None, [render_parts([build_audit_part(results, {"audit": _select(extra["audit"], encoder=encoder)})], 3)]
        )
    return "\n\n".join(parts) + "\n"


def _list_gaps(results: BenchmarkResults, tables: BenchmarkTables, task: str, encoder: str) -> list[str]:
    """List what the encoder was compared with, in the headline metric of the paper's form: one table, or none."""
    if tables.differences.empty:
        return []
    chosen = _select(tables.differences, task=task, metric=PAPER_METRIC)
    chosen = chosen if encoder == results.reference else chosen[chosen["encoder"] == encoder]
    rows = [[f"{row.encoder} − {row.reference}", row.subset, row.head, _say_gap(row)] for row in chosen.itertuples()]
    head_row = ["difference", "labels", "head", f"{_name_metric(PAPER_METRIC)}, p (after Holm)"]
    return [_render_grid(head_row, rows)] if rows else []


def _render_paper(results: BenchmarkResults, tables: BenchmarkTables, head: str) -> str:
    """Encoders down; across, each task with its fewest and its most labels; the differences below the numbers."""
    summary = _select(tables.summary, head=head, metric=PAPER_METRIC)
    columns = list_paper_columns(results, summary)
    heads = ["encoder"]
    for task, subset in columns:
        here = _select(summary, task=task, subset=subset)
        films = f" ({here['n_train_films'].iloc[0]:.0f} films, {_say_draws(here)})" if len(here) else ""
        heads.append(f"{_escape(task)}, {subset}{films}")
    failed = {failure.encoder for failure in results.failures if failure.head in ("", head)}
    told = set(summary["encoder"]) | failed
    encoders = [encoder for encoder in results.encoders if encoder in told]
    rows = []
    for encoder in encoders:
        cells = [_select(summary, task=task, subset=subset, encoder=encoder) for task, subset in columns]
        rows.append([encoder, *(_say_value(_first(cell)) if len(cell) else "–" for cell in cells)])
    below = []
    if not tables.differences.empty:
        gaps = _select(tables.differences, head=head, metric=PAPER_METRIC)
        for encoder in encoders:
            cells = [_select(gaps, task=task, subset=subset, encoder=encoder) for task, subset in columns]
            if encoder != results.reference:
                texts = [_say_gap(_first(cell)) if len(cell) else "–" for cell in cells]
                below.append([f"{encoder} − {results.reference}", *texts])
    caption = " ".join(
        [
            f"Mean over label draws [{results.level:.0%} interval: bootstrap over test patients and, where there are "
            f"several, draws; {results.replicates} replicates; seed {results.seed}].",
            "Differences are paired, on the same patients and draws; p is two-sided, in brackets after Holm over the "
            "encoders and label subsets of the task.",
        ]
    )
    return f"{caption}\n\n{_render_grid(heads, [*rows, *below])}"


def _render_task(results: BenchmarkResults, tables: BenchmarkTables, name: str, head: str) -> str:
    task = results.tasks[name]
    summary = _select(tables.summary, task=name, head=head)
    if summary.empty:
        return ""
    parts = [f"## {_escape(name)}, {head} head", _say_films(results, task), *map(_escape, task.notes)]
    subsets = [subset for subset in results.list_subsets(name) if subset in set(summary["subset"])]
    for metric in HEADLINES[task.kind]:
        chosen = _select(summary, metric=metric)
        heads = ["encoder"]
        for subset in subsets:
            here = _select(chosen, subset=subset)
            heads.append(f"{subset} ({here['n_train_films'].iloc[0]:.0f} films, {_say_draws(here)})")
        rows = [
            [encoder, *_say_cells(chosen, subsets, encoder, _say_value)]
            for encoder in results.encoders
            if encoder in set(chosen["encoder"])
        ]
        if not tables.differences.empty:
            gaps = _select(tables.differences, task=name, head=head, metric=metric)
            rows += [
                [f"{encoder} − {results.reference}", *_say_cells(gaps, subsets, encoder, _say_gap)]
                for encoder in dict.fromkeys(gaps["encoder"])
            ]
        parts.append(f"{_name_metric(metric)}\n\n{_render_grid(heads, rows)}")
    return "\n\n".join(parts)


def _say_films(results: BenchmarkResults, task: TaskFilms) -> str:
    patients = len(set(task.test.patient_M.tolist()))
    return (
        f"{_escape(task.data_set)}, {task.split} split: {len(task.test.uid_M)} films of {patients} patients; "
        f"{task.train_total} labelled training films; {', '.join(map(_escape, task.class_names))}; seed {results.seed}"
    )


def _say_cells(table: pd.DataFrame, subsets: list[str], encoder: str, say: Callable[[object], str]) -> list[str]:
    found = {str(row.subset): say(row) for row in table[table["encoder"] == encoder].itertuples()}
    return [found.get(subset, "–") for subset in subsets]


def _say_value(row: object) -> str:
    return f"{_say(row, 'value')} [{_say(row, 'low')}, {_say(row, 'high')}]"


def _say_gap(row: object) -> str:
    values = [_say(row, name, "+.3f") for name in ("value", "low", "high")]
    return f"{values[0]} [{values[1]}, {values[2]}], p {_say(row, 'p')} ({_say(row, 'p_holm')})"


def _say(row: object, name: str, form: str = ".3f") -> str:
    value = float(getattr(row, name))
    return "–" if math.isnan(value) else f"{value:{form}}".replace("-", "−")


def _say_draws(table: pd.DataFrame) -> str:
    counts = sorted(set(table["draws"].tolist()))
    most = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{most} draw{'' if counts[-1] == 1 else 's'}"


def _select(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def _first(table: pd.DataFrame) -> object:
    return next(iter(table.itertuples()))


def _name_metric(metric: object) -> str:
    return METRIC_NAMES.get(str(metric), str(metric))


def _render_grid(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[*heads], ["---"] * len(heads), *([_escape(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
