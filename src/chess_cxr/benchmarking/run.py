"""A suite, run: features, then predictions, then resampled metrics, each cell once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.cells import (
    FILMS_A_CHUNK,
    PROBE_CODE,
    EmbedCell,
    FitCell,
    ProbeCell,
    ReplicateCell,
    read_replicates,
)
from chess_cxr.benchmarking.draws import LabelDraw
from chess_cxr.benchmarking.encoders import EncoderFacts, describe_source, resolve_sources
from chess_cxr.benchmarking.films import OpenedTask, open_tasks
from chess_cxr.benchmarking.predictions import BenchmarkResults, Failure, PredictionSet, TaskFilms
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.benchmarking.tables import Replicates, SetKey, list_set_keys
from chess_cxr.benchmarking.workers import CellRunner, check_folder, open_runner
from chess_cxr.evaluation.intervals import DrawReplicates
from chess_cxr.records import ChessError, OnCount, OnProgress, UsageError

Features = dict[tuple[str, str], tuple[str, ...]]  # (task, encoder) -> keys of its embed cells
Places = tuple[str, str, str, LabelDraw]  # task, encoder, head, draw


@dataclass(frozen=True)
class BenchmarkRun:
    """What a run found: the predictions, their resampled metrics, and how many cells it computed and found."""

    suite: Suite
    results: BenchmarkResults
    replicates: Replicates
    tasks: Mapping[str, OpenedTask]
    computed: int
    kept: int


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


def run_benchmark(
    suite: Suite,
    cells: Path,
    *,
    workers: int = 0,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> BenchmarkRun:
    """Compute whatever of a suite is not in the folder `cells` yet, and return all of it.

    workers: processes; 0 computes in this one.  executor: runs the cells instead, about `workers` at once.
    on_progress: called with the stage, and how much of what was missing is done, of how much.
    A cell that fails is told in the results' `failures`, and whatever does not need it goes on.
    Raises UsageError where the suite names what is not there, ChessError where nothing at all could be computed.
    """
    sources = resolve_sources(suite.encoders, suite.reference)
    tasks = open_tasks(suite)
    folder = CellFolder(Path(cells).absolute())
    check_folder(folder)
    with open_runner(workers, executor) as runner:
        ledger = Ledger(folder, runner, on_progress)
        facts: dict[str, EncoderFacts] = {}
        scored = {name: task.films.test.uid_M for name, task in tasks.items()}
        for number, (name, source) in enumerate(sources.items()):
            if on_progress:
                on_progress("load encoders", number, len(sources))
            try:
                facts[name] = describe_source(source, scored, suite.device)
            except UsageError:
                raise
            except ChessError as error:
                ledger.failures += [
                    Failure(task, name, head, "", -1, str(error)) for task in tasks for head in tasks[task].spec.heads
                ]
        features = _embed_all(suite, tasks, facts, ledger)
        return finish_run(suite, tasks, facts, features, ledger)


def finish_run(
    suite: Suite,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
) -> BenchmarkRun:
    """Fit every head to every draw of these features, and resample the metrics of what it predicts.

    Raises ChessError where nothing could be computed.
    """
    sets, probes = _probe_all(tasks, facts, features, ledger, suite.device)
    if not sets:
        reason = ledger.failures[0].reason if ledger.failures else "there was nothing to do"
        raise ChessError(f"none of the benchmark's cells could be computed; the first: {reason}")
    films = {name: _add_notes(task.films, facts) for name, task in tasks.items()}
    about = {name: facts[name].about if name in facts else suite.encoders[name] for name in suite.encoders}
    results = BenchmarkResults(
        films, tuple(sets), (), about, suite.reference, suite.seed, suite.replicates, suite.level, suite.synthetic
    )
    results, replicates = _replicate_all(results, tasks, probes, ledger)
    results = replace(results, failures=tuple(ledger.failures))
    return BenchmarkRun(suite, results, replicates, tasks, ledger.runner.computed, ledger.runner.kept)


def _embed_all(
    suite: Suite, tasks: Mapping[str, OpenedTask], facts: Mapping[str, EncoderFacts], ledger: Ledger
) -> Features:
    """Embed the films of every task by every encoder, one encoder after the other; return the keys of what stands."""
    planned: dict[tuple[str, str], list[EmbedCell]] = {}
    for encoder, known in facts.items():
        for name, task in tasks.items():
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
            ledger.failures += [Failure(name, encoder, head, "", -1, reasons[0]) for head in tasks[name].spec.heads]
        else:
            features[name, encoder] = keys
    return features


def cut_films(films: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last film but one of every chunk whose features lie in a cell of their own."""
    for start in range(0, films, FILMS_A_CHUNK):
        yield start, min(start + FILMS_A_CHUNK, films)


def _probe_all(
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
    device: str,
) -> tuple[list[PredictionSet], dict[tuple[SetKey, int], str]]:
    """Fit every head to every draw; return what stands, and the key of each set's cell."""
    planned: list[tuple[Places, ProbeCell | FitCell]] = []
    for name, task in tasks.items():
        keep = ledger.folder.keep_array
        shared = {"patient": keep(task.patient_code_N), "val": keep(task.val), "test": keep(task.test)}
        taught, scored, target = keep(task.chosen.taught), keep(task.chosen.label), keep(task.chosen.target_NL)
        rows, draws = keep(task.chosen.rows), [(draw, keep(draw.film_index)) for draw in task.plan]
        names, kind, store = task.chosen.names, task.chosen.kind, task.store
        for encoder, known in facts.items():
            if (name, encoder) not in features:
                continue
            embedded = features[name, encoder]
            for mode, (draw, films) in itertools.product(task.spec.heads, draws):
                cell: ProbeCell | FitCell
                if mode in PROBE_CODE:
                    cell = ProbeCell(mode, names, embedded, label=taught, films=films, seed=draw.seed, **shared)
                else:
                    cell = FitCell(
                        known.source, known.identity, str(store.location), store.version, task.content, mode, kind,
                        names, rows, scored, target, films=films, seed=draw.seed, device=device, **shared,
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


def _replicate_all(
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


def _add_notes(films: TaskFilms, facts: Mapping[str, EncoderFacts]) -> TaskFilms:
    seen = tuple(known.seen[films.name] for known in facts.values() if films.name in known.seen)
    about = tuple(note for known in facts.values() for note in known.notes)
    return replace(films, notes=(*films.notes, *seen, *about))
