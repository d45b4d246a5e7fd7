"""A suite, run: every stage, and the floors, audits, sites, recipes and pictures that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from chess_cxr.benchmarking.audit import audit_encoders
from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.encoders import EncoderFacts, describe_source, resolve_sources
from chess_cxr.benchmarking.films import OpenedTask, open_tasks
from chess_cxr.benchmarking.floors import ABOUT, NAMES, SPECS, compute_metadata, list_floors
from chess_cxr.benchmarking.pictures import check_pictures, compare_pictures
from chess_cxr.benchmarking.predictions import BenchmarkResults, Failure, PredictionSet, TaskFilms
from chess_cxr.benchmarking.recipes import build_recipe_tables
from chess_cxr.benchmarking.sites import compare_sites, find_shared_labels
from chess_cxr.benchmarking.stages import (
    Features,
    Ledger,
    embed_all,
    keep_features,
    list_heads,
    probe_all,
    replicate_all,
)
from chess_cxr.benchmarking.suite import EncoderSource, Suite
from chess_cxr.benchmarking.tables import Replicates
from chess_cxr.benchmarking.workers import check_folder, open_runner
from chess_cxr.records import ChessError, OnProgress, UsageError


@dataclass(frozen=True)
class BenchmarkRun:
    """What a run found: the predictions, their resampled metrics, and how many cells it computed and found.

    extra: tables that only some suites have, by the name of their file.  sheets: PNG of pictures by task and encoder.
    """

    suite: Suite
    results: BenchmarkResults
    replicates: Replicates
    tasks: Mapping[str, OpenedTask]
    computed: int
    kept: int
    extra: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    sheets: Mapping[tuple[str, str], bytes] = field(default_factory=dict)


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
    floors = list_floors(suite)
    specs = {NAMES[floor]: SPECS[floor] for floor in floors if floor in SPECS}
    sources = resolve_sources({**suite.encoders, **specs}, suite.reference)
    check_pictures(suite)
    tasks = open_tasks(suite)
    for group, names in suite.sites.items():
        find_shared_labels(group, [tasks[name] for name in names])
    folder = CellFolder(Path(cells).absolute())
    check_folder(folder)
    with open_runner(workers, executor) as runner:
        ledger = Ledger(folder, runner, on_progress)
        facts = _describe_sources(suite, sources, tasks, ledger)
        features = embed_all(suite, tasks, facts, ledger)
        _add_free_floors(suite, floors, tasks, facts, features, ledger)
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
    sets, probes = probe_all(tasks, facts, features, ledger, suite.device)
    _check_found(sets, ledger)
    films = {name: _add_notes(task.films, facts) for name, task in tasks.items()}
    floors = tuple(name for name in facts if name in NAMES.values())
    about = {name: facts[name].about if name in facts else suite.encoders[name] for name in (*suite.encoders, *floors)}
    results = BenchmarkResults(
        films, tuple(sets), (), about, suite.reference, suite.seed, suite.replicates, suite.level, suite.synthetic,
        floors,
    )  # fmt: skip
    results, replicates = replicate_all(results, tasks, probes, ledger)
    _check_found(results.sets, ledger)
    extra: dict[str, pd.DataFrame] = {}
    if suite.audit:
        extra["audit"] = audit_encoders(results, tasks, facts, features, probes, replicates, ledger, suite.device)
    if suite.sites:
        extra |= compare_sites(suite, tasks, facts, features, ledger)
    sheets = dict[tuple[str, str], bytes]()
    if suite.pictures:
        pictures = compare_pictures(suite, facts, ledger)
        sheets = pictures.pop("sheets")
        extra |= pictures
    if suite.recipes:
        extra |= build_recipe_tables(suite.recipes, results, replicates)
    results = replace(results, failures=tuple(ledger.failures))
    return BenchmarkRun(suite, results, replicates, tasks, ledger.runner.computed, ledger.runner.kept, extra, sheets)


def _check_found(sets: Sequence[PredictionSet], ledger: Ledger) -> None:
    if not sets:
        reason = ledger.failures[0].reason if ledger.failures else "there was nothing to do"
        raise ChessError(f"none of the benchmark's cells could be computed; the first: {reason}")


def _describe_sources(
    suite: Suite, sources: Mapping[str, EncoderSource], tasks: Mapping[str, OpenedTask], ledger: Ledger
) -> dict[str, EncoderFacts]:
    """Load every encoder once; what cannot be loaded fails for every head of every task."""
    facts: dict[str, EncoderFacts] = {}
    left_out = list[str]()
    scored = {name: task.films.test.uid_M for name, task in tasks.items()}
    for number, (name, source) in enumerate(sources.items()):
        if ledger.on_progress:
            ledger.on_progress("load encoders", number, len(sources))
        try:
            facts[name] = describe_source(source, scored, suite.device)
        except UsageError as error:
            if name not in NAMES.values():
                raise
            left_out.append(f"{name} is left out: {error}")
        except ChessError as error:
            ledger.failures += [
                Failure(task, name, head, "", -1, str(error))
                for task in tasks
                for head in list_heads(tasks[task], name)
            ]
    if suite.reference in facts:
        known = facts[suite.reference]
        facts[suite.reference] = replace(known, notes=(*known.notes, *left_out))
    return facts


def _add_free_floors(
    suite: Suite,
    floors: tuple[str, ...],
    tasks: Mapping[str, OpenedTask],
    facts: dict[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
) -> None:
    """Add the floors that need no network of their own: metadata, and the reference's features for shuffled labels."""
    for floor in floors:
        if floor not in SPECS:
            name = NAMES[floor]
            facts[name] = EncoderFacts(EncoderSource(name, ""), "", ABOUT[floor].format(reference=suite.reference))
            for task, opened in tasks.items():
                if floor == "metadata":
                    metadata_ND = compute_metadata(opened.store.films.iloc[opened.chosen.rows])
                    features[task, name] = keep_features(metadata_ND, ledger.folder)
                elif (task, suite.reference) in features:
                    features[task, name] = features[task, suite.reference]


def _add_notes(films: TaskFilms, facts: Mapping[str, EncoderFacts]) -> TaskFilms:
    seen = tuple(known.seen[films.name] for known in facts.values() if films.name in known.seen)
    about = tuple(note for known in facts.values() for note in known.notes)
    return replace(films, notes=(*films.notes, *seen, *about))
