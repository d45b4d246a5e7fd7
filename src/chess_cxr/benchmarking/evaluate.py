"""Compare encoders on one store by linear probes: a benchmark of one task whose cells are not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.encoders import EncoderFacts
from chess_cxr.benchmarking.films import OpenedTask, open_task
from chess_cxr.benchmarking.run import BenchmarkRun, finish_run
from chess_cxr.benchmarking.stages import Ledger, keep_features
from chess_cxr.benchmarking.suite import EncoderSource, Suite, TaskSpec
from chess_cxr.benchmarking.tables import SetKey
from chess_cxr.benchmarking.workers import open_runner
from chess_cxr.encoders.embed import EncoderLike, _parse_side, embed, tell_seen
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.intervals import DrawReplicates
from chess_cxr.records import SPLITS, OnProgress, UsageError
from chess_cxr.store import StoreLike, get_store
from chess_cxr.tasks.classify.labels import METRICS
from chess_cxr.workers.cores import count_usable_cores

TASK = "evaluate"  # the name of the one task; no file shows it


def evaluate(
    store: StoreLike,
    encoders: Mapping[str, EncoderLike] | Sequence[EncoderLike],
    labels: Sequence[str] = (),
    *,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    film_counts: Sequence[int] = (),
    draws: int = 10,
    first_draw: str = "",
    evaluate_on: Literal["val", "test"] = "test",
    seed: int = 0,
    replicates: int = 1000,
    executor: Executor | None = None,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare encoders by linear probes on cached features: same films, same label draws, same bootstrap.

    encoders: by name, or as `embed` takes them.  labels: names of the store's labels, all by default.
    fractions: parts of the training patients.  film_counts: further subsets of that many films, one of each patient.
    first_draw: a column of the store whose training films with value 1 are the first draw of the subset of their size.
    Everything is chosen on the train split; `evaluate_on` is only scored.  An encoder that was pre-trained on films it
    is scored on is named in the comparison's `notes`.
    device: of encoders that are given by name.
    executor: runs probes and bootstrap, in processes that see this machine's temporary folder.  on_progress: called
    with the stage, and how much of it is done, of how much.
    Raises UsageError where a label, a column or a split is missing, or a patient stands in two splits.
    """
    opened = get_store(store)
    named = dict(encoders) if isinstance(encoders, Mapping) else {_name(encoder): encoder for encoder in encoders}
    if not named:
        raise UsageError("a comparison needs at least one encoder")
    if evaluate_on not in SPLITS[1:]:
        raise UsageError(f"probes are evaluated on val or test, not on {evaluate_on!r}")
    spec = TaskSpec(str(opened.location), tuple(labels), film_counts=tuple(film_counts), first_draw=first_draw)
    suite = Suite(
        encoders=dict.fromkeys(named, ""),
        tasks={TASK: spec},
        fractions=tuple(fractions),
        draws=draws,
        seed=seed,
        reference=next(iter(named)),
        replicates=replicates,
        floors=(),
    )
    task = open_task(TASK, spec, suite, opened, evaluate_on)
    loaded = {name: _load(encoder, device) for name, encoder in named.items()}
    workers = count_usable_cores() if executor else 0
    with TemporaryDirectory(prefix="chess-cxr-") as cells, open_runner(workers, executor, strict=True) as runner:
        ledger = Ledger(CellFolder(Path(cells), lasting=False), runner, on_progress)
        features = {(TASK, name): _embed(name, encoder, task, ledger) for name, encoder in loaded.items()}
        facts = {name: _describe(name, encoder, task) for name, encoder in loaded.items()}
        run = finish_run(suite, {TASK: task}, facts, features, ledger)
        parts = _keep_metrics(run, METRICS[task.chosen.kind])
    films, subsets = run.results.tasks[TASK], run.results.list_subsets(TASK)
    return Comparison(run.results, parts, films.data_set, films.split, tuple(named), subsets, films.notes)


def _embed(name: str, encoder: EncoderLike, task: OpenedTask, ledger: Ledger) -> tuple[str, ...]:
    """Embed the films of the task; return the keys of the features."""
    feature_ND = embed(encoder, task.store, task.chosen.rows, ledger.watch(f"embed {name}"))
    return keep_features(feature_ND, ledger.folder)


def _describe(name: str, encoder: EncoderLike, task: OpenedTask) -> EncoderFacts:
    note = tell_seen(name, encoder, task.films.test.uid_M)
    return EncoderFacts(EncoderSource(name, ""), identity="", about="", seen={TASK: note} if note else {})


def _keep_metrics(run: BenchmarkRun, metrics: Sequence[str]) -> dict[SetKey, dict[str, DrawReplicates]]:
    """Return the resampled metrics of these names, and of single classes or findings, as arrays in memory."""
    return {
        key: {
            metric: DrawReplicates(np.array(part.value_D), np.array(part.value_DR))
            for metric, part in parts.items()
            if metric.partition("/")[0] in metrics
        }
        for key, parts in run.replicates.items()
    }


def _load(encoder: EncoderLike, device: str) -> EncoderLike:
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str) and encoder.startswith("pixels:"):
        _parse_side(encoder)
        return encoder
    return load_encoder(encoder, device=device)


def _name(encoder: EncoderLike) -> str:
    return encoder.name if isinstance(encoder, Encoder) else str(encoder).rstrip("/")
