"""What a benchmark's differences say in words, and never more than they say.

A difference counts as shown where its p-value, corrected by Holm over the comparisons of its task and metric, is below
1 minus the level of the intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from chess_cxr.benchmarking.predictions import BenchmarkResults, TaskFilms
from chess_cxr.report.plots import METRIC_NAMES

Tables = Mapping[str, pd.DataFrame]
FINDING_METRIC = "auroc"


def judge_difference(row: Any, level: float) -> str:
    """Return "ahead" or "behind" (the encoder of a row of differences, of the reference), "" where none is shown."""
    p, value = float(row.p_holm), float(row.value)
    if math.isnan(p) or p >= compute_limit(level) or value == 0:
        return ""
    return "ahead" if value > 0 else "behind"


def compute_limit(level: float) -> float:
    """Return what a p-value has to be below: 0.05 for a level of 0.95, without the rounding of the difference."""
    return round(1 - level, 12)


def summarise_findings(results: BenchmarkResults, differences: pd.DataFrame) -> list[str]:
    """Return one sentence for each other encoder: in how many comparisons the reference is ahead of it or behind."""
    if differences.empty:
        return ["No two encoders can be compared: only one has results."]
    chosen = differences[differences["metric"] == FINDING_METRIC]
    sentences = []
    for encoder in results.encoders:
        rows = list_rows(chosen[chosen["encoder"] == encoder])
        if not rows:
            continue
        # The verdicts are of the other encoder: where it is behind, the reference is ahead.
        verdicts = [judge_difference(row, results.level) for row in rows]
        told = [("ahead", "behind"), ("behind", "ahead"), ("no difference shown", "")]
        parts = [f"{words} in {verdicts.count(verdict)}" for words, verdict in told if verdict in verdicts]
        parts[0] += f" of {count(len(rows), 'comparison')}"
        sentences.append(f"{results.reference} against {encoder}: {', '.join(parts)}.")
    return sentences


def describe_findings(results: BenchmarkResults, tables: Tables, task: str) -> list[str]:
    """Return the sentences of one task: the reference against each other encoder, with fewest and with all labels."""
    summary, differences = tables["summary"], tables["differences"]
    sentences = []
    subsets = results.list_subsets(task)
    for head in dict.fromkeys(one.head for one in results.sets):
        for subset in dict.fromkeys([*subsets[:1], *subsets[-1:]]):
            mine = select(summary, task=task, head=head, subset=subset, metric=FINDING_METRIC)
            own = select(mine, encoder=results.reference)
            if own.empty:
                continue
            first = list_rows(own)[0]
            gaps = select(differences, task=task, head=head, subset=subset, metric=FINDING_METRIC)
            told = _tell_gaps(results, gaps)
            sentences.append(
                f"with {count(first.n_train_films, 'labelled film')} ({subset}, {count(first.draws, 'draw')}, "
                f"{head} head) {results.reference} has {name_metric(FINDING_METRIC)} {say_value(first)}"
                + (f"; {told}." if told else ".")
            )
    return sentences


def find_weakness(results: BenchmarkResults, differences: pd.DataFrame) -> str:
    """Return a warning where the bootstrap has too few replicates for any corrected p to fall below the limit."""
    if differences.empty:
        return ""
    chosen = differences[(differences["metric"] == FINDING_METRIC) & ~differences["floor"]]
    family = int(chosen.groupby("task").size().max()) if len(chosen) else 0
    floor, limit = family * 2 / (results.replicates + 1), compute_limit(results.level)
    if floor < limit:
        return ""
    needed = math.floor(round(family * 2 / limit, 6))
    return (
        f"{results.replicates:,} replicates cannot show a difference after Holm: with {family} comparisons the "
        f"smallest corrected p is {floor:.3f}. Take at least {needed:,} replicates."
    )


def _tell_gaps(results: BenchmarkResults, gaps: pd.DataFrame) -> str:
    """Say how far the reference is from each other encoder: signs are of reference minus other."""
    told: dict[str, list[str]] = {"behind": [], "ahead": [], "": []}
    for row in list_rows(gaps):
        verdict = judge_difference(row, results.level)
        # A lead is told as a positive number, whoever has it.
        numbers = (row.value, row.low, row.high) if verdict == "ahead" else (-row.value, -row.high, -row.low)
        value, low, high = (say(number, "+.3f") for number in numbers)
        text = f"[{low}, {high}], p {say_p(row, 'p_holm')}"
        if verdict:
            told[verdict].append(f"{row.encoder} by {value.removeprefix('+')} {text}")
        else:
            told[verdict].append(f"{row.encoder} ({value} {text})")
    parts = [f"it is ahead of {join(told['behind'])}"] if told["behind"] else []
    parts += [f"it is behind {join(told['ahead'])}"] if told["ahead"] else []
    parts += [f"no difference is shown to {join(told[''])}"] if told[""] else []
    return "; ".join(parts)


def say_value(row: Any) -> str:
    """Return "0.853 [0.824, 0.880]" for a row with value, low and high."""
    value, low, high = (say(getattr(row, name)) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def say_p(row: Any, column: str = "p") -> str:
    """Return "= 0.032", or "≤ 0.002" where no replicate lay on the other side, so that it may be smaller still."""
    p, raw = float(getattr(row, column)), float(row.p)
    if math.isnan(p):
        return "unknown"
    least = raw <= 2 / (row.replicates - row.undefined + 1) + 1e-12
    text = f"{p:.3f}" if p >= 0.0005 else f"{p:.1g}"
    return f"{'≤' if least and p < 1 else '='} {text}"


def say(value: Any, form: str = ".3f") -> str:
    """Return a number, "–" where there is none."""
    number = float(value)
    return "–" if math.isnan(number) else f"{number:{form}}".replace("-", "−")


def say_films(task: TaskFilms, split: str) -> str:
    """Return "519 films of 400 patients" of a split."""
    films = getattr(task, split)
    return f"{count(len(films.uid_M), 'film')} of {count(len(set(films.patient_M.tolist())), 'patient')}"


def count(number: float, what: str) -> str:
    """Return "1 film" or "1,234 films"."""
    return f"{number:,.0f} {what}{'' if round(number) == 1 else 's'}"


def join(texts: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def name_metric(metric: str) -> str:
    """Return what a reader calls a metric."""
    whole, _, part = metric.partition("/")
    return METRIC_NAMES.get(whole, whole) + (f", {part}" if part else "")


def list_rows(table: pd.DataFrame) -> list[Any]:
    """Return the rows of a table, columns as attributes."""
    return list(table.itertuples(index=False))


def select(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Return the rows of a table that have these values; an empty table stays one."""
    for column, value in wanted.items():
        if not table.empty:
            table = table[table[column] == value]
    return table
