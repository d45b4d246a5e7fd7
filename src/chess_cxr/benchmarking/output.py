"""The folder a benchmark leaves: tables, predictions, text, page; written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from chess_cxr.benchmarking import leaderboard
from chess_cxr.benchmarking.errors import find_worst_errors
from chess_cxr.benchmarking.page.page import write_benchmark_page
from chess_cxr.benchmarking.page.text import render_card_section, render_tables
from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, PredictionSet, TaskFilms
from chess_cxr.benchmarking.run import BenchmarkRun
from chess_cxr.benchmarking.suite import describe_suite
from chess_cxr.benchmarking.tables import BenchmarkTables, build_benchmark_tables
from chess_cxr.files.whole import write_whole_folder

TABLE_FILE = "table.md"
PAGE_FILE = "report.html"
THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class WrittenBenchmark:
    """What was written: the folder, and the tables in it."""

    out: Path
    run: BenchmarkRun
    tables: BenchmarkTables

    def as_json(self) -> dict[str, Any]:
        """Return the summary, the differences and what failed as plain JSON values; NaN is null."""
        found = {name: getattr(self.tables, name) for name in ("summary", "differences", "failures")}
        read = {
            name: json.loads(table.to_json(orient="records")) for name, table in {**found, **self.run.extra}.items()
        }
        cells = {"computed": self.run.computed, "kept": self.run.kept}
        return {"out": str(self.out), "reference": self.run.results.reference, "cells": cells, **read}

    def as_text(self) -> str:
        """Return the tables as Markdown, and where everything stands."""
        return f"{(self.out / TABLE_FILE).read_text('utf-8')}\n{self.out / PAGE_FILE}"


def write_benchmark(
    run: BenchmarkRun, out: Path, command: str, card: str = "", pictures: bool = True
) -> WrittenBenchmark:
    """Write everything a benchmark found to the new folder `out`.

    command: what was typed, for page and table.  card: the encoder that `card_section.md` is of, the reference by
    default.  pictures: whether the page shows the films that are most surely wrong.
    Raises UsageError where `out` exists or `card` is no encoder of the benchmark.
    """
    results = run.results
    tables = build_benchmark_tables(results, run.replicates)
    with write_whole_folder(out) as growing:
        (growing / "predictions").mkdir()
        pa.parquet.write_table(pa.Table.from_pandas(tables.sets, preserve_index=False), growing / "results.parquet")
        tables.summary.to_csv(growing / "summary.csv", index=False)
        tables.differences.to_csv(growing / "differences.csv", index=False)
        tables.failures.to_csv(growing / "failures.csv", index=False)
        (growing / leaderboard.FILE).write_text(json.dumps(leaderboard.describe_results(run, tables.summary)), "utf-8")
        for name, table in run.extra.items():
            table.to_csv(growing / f"{name}.csv", index=False)
        for name, task in results.tasks.items():
            write_predictions(growing / "predictions" / f"{name}.parquet", results, task)
        (growing / TABLE_FILE).write_text(render_tables(results, tables, command, run.extra), "utf-8")
        there = set(tables.summary["encoder"])
        if card or results.reference in there:
            section = render_card_section(results, tables, card or results.reference, run.extra)
            (growing / "card_section.md").write_text(section, "utf-8")
        (growing / "suite.json").write_text(json.dumps(describe_suite(run.suite), indent=1) + "\n", "utf-8")
        thumbnails = read_thumbnails(run) if pictures else {}
        sheets = run.sheets if pictures else {}
        write_benchmark_page(results, {**vars(tables), **run.extra}, growing / PAGE_FILE, command, thumbnails, sheets)
    return WrittenBenchmark(out, run, tables)


def write_predictions(path: Path, results: BenchmarkResults, task: TaskFilms) -> None:
    """Write the probabilities of one task, a row for each film of each prediction set, one set at a time.

    Columns: encoder, head, subset, draw, split, uid (the keyed hash), `label/NAME` (1, 0, null) and `p/NAME`.
    """
    text = pa.dictionary(pa.int32(), pa.string())
    names = task.class_names
    fields = [pa.field(name, text) for name in ("encoder", "head", "subset")]
    fields += [pa.field("draw", pa.int32()), pa.field("split", text), pa.field("uid", pa.string())]
    fields += [pa.field(f"label/{name}", pa.float32()) for name in names]
    fields += [pa.field(f"p/{name}", pa.float32()) for name in names]
    schema = pa.schema(fields)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for one in results.sets:
            if one.task == task.name:
                for split, films, score_MC in (("val", task.val, one.val_MC), ("test", task.test, one.test_MC)):
                    writer.write_table(_build_prediction_table(schema, one, task, split, films, score_MC))


def _build_prediction_table(
    schema: pa.Schema, one: PredictionSet, task: TaskFilms, split: str, films: EvaluatedFilms, score_MC: np.ndarray
) -> pa.Table:
    count = len(films.uid_M)
    label = films.label if task.kind == "multilabel" else np.eye(len(task.class_names))[films.label.astype(np.intp)]
    columns: dict[str, object] = {
        name: pa.array([value] * count, pa.string()).dictionary_encode().cast(schema.field(name).type)
        for name, value in (("encoder", one.encoder), ("head", one.head), ("subset", one.subset), ("split", split))
    }
    columns |= {"draw": np.full(count, one.draw, np.int32), "uid": pa.array(films.uid_M.tolist(), pa.string())}
    for place, name in enumerate(task.class_names):
        columns[f"label/{name}"] = pa.array(label[:, place].astype(np.float32), from_pandas=True)
        columns[f"p/{name}"] = pa.array(score_MC[:, place])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def read_thumbnails(run: BenchmarkRun) -> dict[str, np.ndarray]:
    """Read small pictures, uint8 [H, W], of the worst errors of every task, by hashed uid."""
    pictures: dict[str, np.ndarray] = {}
    for name, task in run.tasks.items():
        worst = find_worst_errors(run.results, name)
        places = task.test[[error.place for error in worst]]
        films = task.store.read_films(task.chosen.rows[places], THUMBNAIL_SIDE) if worst else []
        pictures |= {error.uid: _shrink(film) for error, film in zip(worst, films, strict=True)}
    return pictures


def _shrink(film: np.ndarray) -> np.ndarray:
    scale = THUMBNAIL_SIDE / max(film.shape)
    if scale >= 1:
        return film
    size = max(1, round(film.shape[1] * scale)), max(1, round(film.shape[0] * scale))
    small: np.ndarray = cv2.resize(film, size, interpolation=cv2.INTER_AREA)
    return small
