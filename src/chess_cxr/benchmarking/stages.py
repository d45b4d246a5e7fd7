"""The stages of a benchmark: features, then predictions, then resampled metrics, each cell once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.cells import (
    FILMS_A_CHUNK,
    PROBE_CODE,
    EmbedCell,
    ProbeCell,
    ReplicateCell,
    read_replicates,
)
from chess_cxr.benchmarking.draws import LabelDraw
from chess_cxr.benchmarking.encoders import EncoderFacts
from chess_cxr.benchmarking.films import OpenedTask
from chess_cxr.benchmarking.fit_cells import FitCell
from chess_cxr.benchmarking.floors import NAMES, shuffle_labels, shuffle_plan
from chess_cxr.benchmarking.predictions import BenchmarkResults, Failure, PredictionSet
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.benchmarking.tables import SetKey, list_set_keys
from chess_cxr.benchmarking.workers import CellRunner
from chess_cxr.evaluation.intervals import DrawReplicates
from chess_cxr.records import OnCount, OnProgress

Features = dict[tuple[str, str], tuple[str, ...]]  # (task, encoder) -> keys of its embed cells
Places = tuple[str, str, str, LabelDraw]  # task, encoder, head, draw


@dataclass
class Ledger:
    """What is under way: the sources of every key that is needed again, and what failed."""

    folder: CellFolder
    runner: CellRunner
    on_progress: OnProgress | None
    failures: list[Failure] = field(default_factory=list)

    def watch(self, stage: str) -> OnCount | None:
        """Return a callback for how much of a stage is done."""
        show = self.on_progress
        return None if show is None else lambda done, total: show(stage, done, total)


def embed_all(
    suite: Suite, tasks: Mapping[str, OpenedTask], facts: Mapping[str, EncoderFacts], ledger: Ledger
) -> Features:
    """Embed the films of every task by every encoder, one encoder after the other; return the keys of what stands."""
    planned: dict[tuple[str, str], list[EmbedCell]] = {}
    for encoder, known in facts.items():
        for name, task in tasks.items():
            if not list_heads(task, encoder):
                continue
            rows, films = ledger.folder.keep_array(task.chosen.rows), len(task.chosen.rows)
            location, version = str(task.store.location), task.store.version
            planned[name, encoder] = [
                EmbedCell(
                    known.source, known.identity, location, version, rows, task.content, start, stop, suite.device
                )
                for start, stop in cut_films(films)
            ]
    cells = [cell for part in planned.values() for cell in part]
    failed = ledger.runner.run(cells, ledger.folder, ledger.watch("embed"))
    features: Features = {}
    for (name, encoder), part in planned.items():
        keys = tuple(cell.key for cell in part)
        reasons = [failed[key] for key in keys if key in failed]
        if reasons:
            heads = list_heads(tasks[name], encoder)
            ledger.failures += [Failure(name, encoder, head, "", -1, reasons[0]) for head in heads]
        else:
            features[name, encoder] = keys
    return features


def keep_features(feature_ND: np.ndarray, folder: CellFolder) -> tuple[str, ...]:
    """Store features that no network computes; return the keys of their chunks."""
    return tuple(folder.keep_array(feature_ND[start:stop], "feature") for start, stop in cut_films(len(feature_ND)))


def list_heads(task: OpenedTask, encoder: str) -> tuple[str, ...]:
    """Return the heads that a task asks of an encoder; those of a floor are on cached features."""
    floor = encoder in NAMES.values()
    if task.spec.encoders and not floor and encoder not in task.spec.encoders:
        return ()
    return tuple(head for head in task.spec.heads if head in PROBE_CODE or not floor)


def cut_films(films: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last film but one of every chunk whose features lie in a cell of their own."""
    for start in range(0, films, FILMS_A_CHUNK):
        yield start, min(start + FILMS_A_CHUNK, films)


def probe_all(
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
    device: str,
    without: Mapping[str, str] | None = None,
) -> tuple[list[PredictionSet], dict[tuple[SetKey, int], str]]:
    """Fit every head to every draw; return what stands, and the key of each set's cell.

    without: by task, the key of columns that are regressed out of the features first.
    """
    planned: list[tuple[Places, ProbeCell | FitCell]] = []
    for name, task in tasks.items():
        keep = ledger.folder.keep_array
        shared = {"patient": keep(task.patient_code_N), "val": keep(task.val), "test": keep(task.test)}
        taught, scored, target = keep(task.chosen.taught), keep(task.chosen.label), keep(task.chosen.target_NL)
        rows = keep(task.chosen.rows)
        names, kind, store, spec = task.chosen.names, task.chosen.kind, task.store, task.spec
        for encoder, known in facts.items():
            if (name, encoder) not in features:
                continue
            embedded, shuffled = features[name, encoder], encoder == NAMES["shuffled"]
            plan = shuffle_plan(task.plan) if shuffled else task.plan
            draws = [(draw, keep(draw.film_index)) for draw in plan]
            for mode, (draw, films) in itertools.product(list_heads(task, encoder), draws):
                cell: ProbeCell | FitCell
                if mode in PROBE_CODE:
                    label = taught
                    if shuffled:
                        label = keep(shuffle_labels(task.chosen.taught, draw.film_index, draw.seed))
                    cell = ProbeCell(
                        mode, names, embedded, label=label, films=films, seed=draw.seed,
                        without=(without or {}).get(name, ""), **shared,
                    )  # fmt: skip
                else:
                    cell = FitCell(
                        known.source, known.identity, str(store.location), store.version, task.content, mode, kind,
                        names, rows, scored, target, films=films, seed=draw.seed, device=device, steps=spec.steps,
                        batch=spec.batch, patience=spec.patience, **shared,
                    )  # fmt: skip
                planned.append(((name, encoder, mode, draw), cell))
    failed = ledger.runner.run([cell for _, cell in planned], ledger.folder, ledger.watch("probe"))
    sets: list[PredictionSet] = []
    keys: dict[tuple[SetKey, int], str] = {}
    for place, cell in planned:
        name, encoder, head, draw = place
        key = cell.key
        if key in failed:
            ledger.failures.append(Failure(name, encoder, head, draw.subset, draw.draw, failed[key]))
        else:
            sets.append(_read_set(place, tasks[name], ledger.folder, key))
            keys[SetKey(name, encoder, head, draw.subset), draw.draw] = key
    return sets, keys


def _read_set(place: Places, task: OpenedTask, folder: CellFolder, key: str) -> PredictionSet:
    name, encoder, head, draw = place
    arrays, facts = folder.read_arrays(key), folder.read_facts(key)
    return PredictionSet(
        task=name,
        encoder=encoder,
        head=head,
        subset=draw.subset,
        fraction=len(draw.film_index) / task.films.train_total,
        draw=draw.draw,
        seed=draw.seed,
        n_train_films=len(draw.film_index),
        n_train_patients=len(np.unique(task.patient_code_N[draw.film_index])),
        # copies: a mapped array holds a file open, and there may be thousands of them
        val_MC=np.array(arrays["val"]),
        test_MC=np.array(arrays["test"]),
        notes=tuple(facts["notes"]),
        seconds=float(facts["seconds"]),
        strength=math.nan if facts.get("strength") is None else float(facts["strength"]),
    )


def replicate_all(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    probes: Mapping[tuple[SetKey, int], str],
    ledger: Ledger,
) -> tuple[BenchmarkResults, dict[SetKey, dict[str, DrawReplicates]]]:
    """Resample the metrics of every row and column; sets whose metrics fail are taken out and told."""
    planned: dict[SetKey, ReplicateCell] = {}
    for key in list_set_keys(results):
        task, keep = tasks[key.task], ledger.folder.keep_array
        sets = results.select_draws(key.task, key.encoder, key.head, key.subset)
        planned[key] = ReplicateCell(
            kind=task.chosen.kind,
            class_names=task.chosen.names,
            probes=tuple(probes[key, one.draw] for one in sets),
            label=keep(task.chosen.label),
            patient=keep(task.patient_code_N),
            test=keep(task.test),
            replicates=results.replicates,
            seed=results.seed,
        )
    failed = ledger.runner.run(list(planned.values()), ledger.folder, ledger.watch("bootstrap"))
    replicates: dict[SetKey, dict[str, DrawReplicates]] = {}
    for key, cell in planned.items():
        if cell.key in failed:
            ledger.failures.append(Failure(key.task, key.encoder, key.head, key.subset, -1, failed[cell.key]))
        else:
            replicates[key] = read_replicates(ledger.folder, cell.key)
    there = tuple(one for one in results.sets if SetKey(one.task, one.encoder, one.head, one.subset) in replicates)
    return replace(results, sets=there), replicates
