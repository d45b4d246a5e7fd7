"""What `evaluate` found, as tables for programs and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.predictions import BenchmarkResults
from chess_cxr.benchmarking.tables import (
    Replicates,
    build_difference_table,
    build_set_table,
    build_summary_table,
)
from chess_cxr.records import UsageError

SUBSET_COLUMNS = ["subset", "fraction", "n_train_films", "n_train_patients", "draws", "data_set", "split"]
SUBSET_COLUMNS += ["n_test", "n_test_patients", "seed", "interval_covers", "metric", "value", "low", "high"]
TABLE_COLUMNS = ["encoder", *SUBSET_COLUMNS, "level", "replicates", "undefined"]
DIFFERENCE_COLUMNS = ["encoder", "reference", *SUBSET_COLUMNS, "p", "p_holm", "level", "replicates", "undefined"]
DRAW_COLUMNS = ["encoder", "subset", "draw", "seed", "n_train_films", "strength"]


@dataclass(frozen=True)
class Comparison:
    """Encoders compared by linear probes on one split of one store.

    results: a benchmark of this one task, whose "test" films are those of the split that is scored.
    parts: every metric, draw by draw, on all films and on shared resamples of the patients.
    encoders: in the order they were given in.  subsets: of labelled films, smallest first.
    notes: what a reader of the numbers has to know beside them, a sentence each.
    """

    results: BenchmarkResults
    parts: Replicates
    data_set: str
    split: str
    encoders: tuple[str, ...]
    subsets: tuple[str, ...]
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Return one row for each encoder, subset and metric: the mean over draws, its interval and its provenance.

        interval_covers says whether training draws vary too, or (one draw) test patients alone.  undefined counts the
        replicates without a value.
        """
        return self._sort(build_summary_table(self.results, self.parts), TABLE_COLUMNS)

    def differences(self, reference: str) -> pd.DataFrame:
        """Return every other encoder minus `reference`, on the same draws and the same resampled patients, with p.

        p is two-sided; p_holm is p corrected (Holm 1979) for all encoders and subsets of the same metric.  Raises
        UsageError for an unknown reference.
        """
        if reference not in self.encoders:
            raise UsageError(f"no encoder named {reference!r} in this comparison; there are {', '.join(self.encoders)}")
        table = build_difference_table(replace(self.results, reference=reference), self.parts)
        return table if table.empty else self._sort(table, DIFFERENCE_COLUMNS)

    def draw_table(self) -> pd.DataFrame:
        """Return every single draw: its films, its probe's strength and notes, and each metric on all films."""
        metrics = next(iter(self.parts.values()))
        return self._sort(build_set_table(self.results, self.parts), [*DRAW_COLUMNS, *metrics, "notes"])

    def as_markdown(self, metric: str = "auroc") -> str:
        """Return a Markdown table of one metric, encoders down, subsets across, under a line that says what it is."""
        table = self.table()
        chosen = table[table["metric"] == metric]
        if chosen.empty:
            raise UsageError(f"no metric named {metric!r}; there are {', '.join(table['metric'].unique())}")
        wide = build_result_table(
            chosen, lambda row: f"{row.subset} ({row.n_train_films:.0f} films, {_count(row.draws, 'draw')})"
        )
        rows = [wide.columns, ["---"] * len(wide.columns), *wide.to_numpy()]
        lines = [self.caption(metric), "", *(f"| {' | '.join(row)} |" for row in rows)]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def caption(self, metric: str) -> str:
        """Return the line that goes with any number of this comparison: data, split, films, interval, seed."""
        results = self.results
        [films] = results.tasks.values()
        patient_M = films.test.patient_M
        return (
            f"{metric} of a linear probe on {self.data_set}, {self.split} split: "
            f"{_count(len(patient_M), 'film')} of {_count(len(np.unique(patient_M)), 'patient')}. "
            f"Mean over label draws [{results.level:.0%} interval: bootstrap over patients and, where there are "
            f"several, draws; {results.replicates} replicates; seed {results.seed}]."
        )

    def _sort(self, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        """Bring rows by subset and encoder into the order of the encoders."""
        there = [name for name in self.encoders if name in set(table["encoder"])]
        return table.set_index("encoder").loc[there].reset_index()[columns]


def build_result_table(rows: pd.DataFrame, name_subset: Callable[[Any], str]) -> pd.DataFrame:
    """Turn the rows of one metric into encoders down, label subsets across, "value [low, high]" in the cells."""
    texts: dict[str, dict[str, str]] = {}
    for row in rows.itertuples():
        mine = texts.setdefault(str(row.encoder), {"encoder": str(row.encoder)})
        mine[name_subset(row)] = f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return pd.DataFrame(texts.values())


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
