"""Results that travel: the file that a benchmark leaves, and many of them merged into one leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from chess_cxr.benchmarking.cards import build_card, identify_card, tell_difference, tell_version
from chess_cxr.benchmarking.page.blocks import Block, Cell, Grid, Part, split_grid
from chess_cxr.benchmarking.page.findings import count, say
from chess_cxr.benchmarking.page.text import render_parts
from chess_cxr.benchmarking.run import BenchmarkRun
from chess_cxr.files.whole import read_json, write_whole_folder
from chess_cxr.records import UsageError
from chess_cxr.report.page import load_template, write_page

FORMAT = "chess-cxr leaderboard 1"
FILE = "leaderboard.json"
METRIC = "auroc"
ENTRY = ("task", "encoder", "encoder_is", "head", "subset", "metric", "value", "low", "high", "draws", "n_train_films")


@dataclass(frozen=True)
class Merged:
    """A leaderboard: its folder, the cards of its tasks by identity, and its entries."""

    out: Path
    tasks: Mapping[str, Mapping[str, Any]]
    entries: pd.DataFrame

    def as_json(self) -> dict[str, Any]:
        """Return tasks and entries as plain JSON values."""
        entries = json.loads(self.entries.to_json(orient="records"))
        return {"out": str(self.out), "tasks": dict(self.tasks), "entries": entries}

    def as_text(self) -> str:
        """Return the tables as Markdown, and where the page stands."""
        return f"{(self.out / 'table.md').read_text('utf-8')}\n{self.out / 'report.html'}"


def describe_results(run: BenchmarkRun, summary: pd.DataFrame) -> dict[str, Any]:
    """Return what a benchmark found as JSON values that can be merged: task cards, and means with their intervals."""
    cards = {name: build_card(name, task, run.suite) for name, task in run.tasks.items()}
    identity = {name: identify_card(card) for name, card in cards.items()}
    rows = summary[~summary["metric"].str.contains("/")] if len(summary) else summary
    entries = [
        {"task": identity[row["task"]], "encoder_is": run.results.encoders[row["encoder"]]}
        | {name: row[name] for name in ENTRY if name not in ("task", "encoder_is")}
        | {"floor": row["encoder"] in run.results.floors, "synthetic": run.results.synthetic}
        for row in rows.to_dict("records")
    ]
    plain = [{name: _make_plain(value) for name, value in entry.items()} for entry in entries]
    made_by = f"chess-cxr {tell_version()}"
    return {"format": FORMAT, "made_by": made_by, "tasks": {identity[n]: cards[n] for n in cards}, "entries": plain}


def merge_results(places: Sequence[Path], out: Path) -> Merged:
    """Merge result files, or the folders that hold them, into the new folder `out`: JSON, CSV, Markdown and a page.

    Tasks are one where their cards have one identity; the same entry twice is told once.  Raises UsageError for what is
    no result file, or without any.
    """
    if not places:
        raise UsageError("name the folders of at least one benchmark")
    tasks, rows = dict[str, Mapping[str, Any]](), list[dict[str, Any]]()
    for place in places:
        found = _read_results(place)
        tasks |= found["tasks"]
        name = place.parent.name if place.name == FILE else place.stem
        rows += [{"source": name} | entry for entry in found["entries"]]
    entries = pd.DataFrame(rows)
    same = [name for name in entries.columns if name != "source"]
    entries = entries.drop_duplicates(same).reset_index(drop=True)
    with write_whole_folder(out) as growing:
        board = {"format": FORMAT, "made_by": f"chess-cxr {tell_version()}", "tasks": tasks}
        board["entries"] = json.loads(entries.to_json(orient="records"))
        (growing / FILE).write_text(json.dumps(board, indent=1) + "\n", "utf-8")
        named = entries.assign(task_name=[tasks[one]["name"] for one in entries["task"]])
        named.to_csv(growing / "leaderboard.csv", index=False)
        parts = build_leaderboard(tasks, entries)
        (growing / "table.md").write_text("# Leaderboard\n\n" + render_parts(parts), "utf-8")
        page = load_template("chess_cxr.benchmarking.page", "benchmark.html").render(
            title="Leaderboard",
            subtitle=f"{count(len(places), 'result')}, {count(len(tasks), 'task')}.",
            parts=parts,
            synthetic=bool(entries["synthetic"].any()) if len(entries) else False,
        )
        write_page(growing / "report.html", page)
    return Merged(out, tasks, entries)


def build_leaderboard(tasks: Mapping[str, Mapping[str, Any]], entries: pd.DataFrame) -> list[Part]:
    """Return one part a task: encoders down, best first with all labels; label subsets across."""
    parts = []
    for place, (identity, card) in enumerate(tasks.items()):
        chosen = entries[(entries["task"] == identity) & (entries["metric"] == METRIC)]
        blocks = [Block(text=(_describe(card, identity),), warnings=tuple(_warn(identity, tasks)))]
        for head, rows in chosen.groupby("head", sort=False):
            blocks += _build_blocks(str(head), rows)
        twins = sum(one["name"] == card["name"] for one in tasks.values()) > 1
        parts.append(Part(f"task-{place}", card["name"] + (f" ({identity[:8]})" if twins else ""), tuple(blocks)))
    return parts


def _build_blocks(head: str, rows: pd.DataFrame) -> list[Block]:
    films = rows.groupby("subset")["n_train_films"].mean().sort_values()
    subsets = list(films.index)
    lines = []
    for (source, encoder), mine in rows.groupby(["source", "encoder"], sort=False):
        by_subset = mine.set_index("subset")
        cells = [
            Cell(say(by_subset.loc[name, "value"]), (_say_interval(by_subset.loc[name]),))
            if name in by_subset.index
            else Cell("–")
            for name in subsets
        ]
        best = float(by_subset["value"].get(subsets[-1], math.nan))
        marks = (str(source), *(("SYNTHETIC",) if mine["synthetic"].any() else ()))
        lines.append((-best if best == best else math.inf, (Cell(str(encoder), marks), *cells)))
    heads = (Cell("encoder"), *(Cell(name, (count(films[name], "film"),)) for name in subsets))
    caption = (
        "AUROC, mean over label draws, with the interval of the result it comes from; by the last column. Rows of "
        "different results were not tested against each other."
    )
    grid = Grid(heads, tuple(row for _, row in sorted(lines, key=lambda line: line[0])), caption)
    return split_grid(f"{head} head", grid)


def _describe(card: Mapping[str, Any], identity: str) -> str:
    test = card["films"][card["protocol"]["scored"]]
    return (
        f"{card['data_set']}: {', '.join(card['labels'])}; {card['protocol']['scored']} split, "
        f"{count(test['films'], 'film')} of {count(test['patients'], 'patient')}; identity {identity[:16]}."
    )


def _warn(identity: str, tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    card = tasks[identity]
    others = [one for key, one in tasks.items() if key != identity and one["name"] == card["name"]]
    return [
        f"Another task has this name, and its numbers cannot be compared: {tell_difference(card, one)}."
        for one in others
    ]


def _read_results(place: Path) -> dict[str, Any]:
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise UsageError(f"there is no {file}; name the folder that chess-cxr benchmark has written")
    found = read_json(file)
    entries, tasks = found.get("entries"), found.get("tasks")
    if found.get("format") != FORMAT or not isinstance(entries, list) or not isinstance(tasks, dict):
        raise UsageError(f"{file} is not what a benchmark writes; copy it again")
    if not entries:
        raise UsageError(f"{file} holds no result: all parts of that benchmark failed, and its failures.csv says why")
    numbers = ("value", "low", "high", "draws", "n_train_films")
    for entry in entries:
        if not isinstance(entry, dict) or not {*ENTRY, "synthetic", "floor"} <= set(entry):
            raise UsageError(f"{place}: an entry lacks one of {', '.join(ENTRY)}")
        if entry["task"] not in tasks or identify_card(tasks[entry["task"]]) != entry["task"]:
            raise UsageError(f"{place}: an entry has no card, or another than it was measured with")
        if not all(isinstance(entry[name], int | float | None) for name in numbers):
            raise UsageError(f"{place}: an entry has a number that is none")
    return found


def _say_interval(row: Any) -> str:
    return f"[{say(row['low'])}, {say(row['high'])}]"


def _make_plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
