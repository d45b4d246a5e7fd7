"""The films of a suite's tasks: labels, splits, label draws, and what is known of the films that are scored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from chess_cxr.benchmarking.draws import LabelDraw, plan_draws
from chess_cxr.benchmarking.predictions import EvaluatedFilms, TaskFilms
from chess_cxr.benchmarking.suite import Suite, TaskSpec
from chess_cxr.evaluation.subgroups import compute_age_bands
from chess_cxr.records import SPLITS, UsageError
from chess_cxr.store import STORE_VERSION, Store, open_store
from chess_cxr.tasks.classify.labels import LabelledRows, select_labelled

_HASH = re.compile(r"[0-9a-f]{16,128}")


@dataclass(frozen=True)
class OpenedTask:
    """A task with its films at hand.

    patient_code_N: numbers that sort like the hashed patients.  val, test: places among the N films.  plan: the label
    draws, of places among the N.
    """

    spec: TaskSpec
    store: Store
    chosen: LabelledRows
    patient_code_N: np.ndarray
    val: np.ndarray
    test: np.ndarray
    plan: tuple[LabelDraw, ...]
    films: TaskFilms

    @cached_property
    def content(self) -> str:
        """SHA-256 of the N films."""
        return compute_films_hash(self.store, self.chosen.rows)


def open_tasks(suite: Suite) -> dict[str, OpenedTask]:
    """Open every task of a suite.

    Raises UsageError, with the task's name, for what `open_task` refuses, and for uids that are no hashes.
    """
    tasks = {}
    for name, spec in suite.tasks.items():
        try:
            tasks[name] = open_task(name, spec, suite, scored=None if suite.on == "test" else "val")
            _check_uids(tasks[name])
        except UsageError as error:
            raise UsageError(f"tasks.{name}: {error}") from None
    return tasks


def open_task(
    name: str,
    spec: TaskSpec,
    suite: Suite,
    store: Store | None = None,
    scored: Literal["val", "test"] | None = None,
) -> OpenedTask:
    """Open the store of a task, select its labelled films and draw its label subsets.

    store: opened already.  scored: the only split to predict, as `test` of what is returned; by default val and test.
    Raises UsageError where the store, a label or a split is missing, or a patient stands in two splits.
    """
    store = store or open_store(spec.store)
    chosen = select_labelled(store, spec.labels, spec.kind, spec.uncertain, sites=spec.sites)
    places = {split: np.flatnonzero(chosen.split == split) for split in SPLITS}
    train, val, test = places["train"], places["val"], places["test"]
    if scored:
        val, test = val[:0], places[scored]
    for split, found in (("train", train), (scored or "test", test)):
        if not len(found):
            raise UsageError(f"{store.path.name} has no labelled film in its {split} split")
    patients = np.concatenate([np.unique(chosen.patient[found]) for found in (train, val, test)])
    if len(np.unique(patients)) < len(patients):
        raise UsageError(f"a patient of {store.path.name} stands in two splits: split by patient first")
    plan = plan_draws(
        chosen.patient,
        chosen.taught,
        train,
        suite.fractions if spec.fractions is None else spec.fractions,
        spec.film_counts,
        suite.draws if spec.draws is None else spec.draws,
        suite.seed,
        _find_first_draw(store, spec.first_draw, chosen, train) if spec.first_draw else None,
    )
    has_no_val = () if scored or len(val) else (f"{name} has no val film: nothing can be calibrated or chosen on it.",)
    return OpenedTask(
        spec=spec,
        store=store,
        chosen=chosen,
        patient_code_N=np.unique(chosen.patient, return_inverse=True)[1].astype(np.int64),
        val=val,
        test=test,
        plan=tuple(plan),
        films=TaskFilms(
            name=name,
            data_set=", ".join(spec.sites) or store.dataset_name or store.path.stem,
            kind=chosen.kind,
            class_names=chosen.names,
            val=describe_films(store, chosen, val),
            test=describe_films(store, chosen, test),
            train_total=len(train),
            notes=has_no_val,
            split=scored or "test",
        ),
    )


def compute_films_hash(store: Store, rows: np.ndarray) -> str:
    """Return the SHA-256 of the stored films at these rows, in this order: what any encoder's features hang on.

    Films that carry the hash of their decoded pixels are known by it and their stored size; others by their bytes.
    """
    films = store.films.iloc[rows]
    pixel_hash_N = store.read_hashes()["pixel_hash"].to_numpy()[rows]
    digest = hashlib.sha256(f"store {STORE_VERSION}".encode())
    for row, pixel_hash, height, width in zip(rows, pixel_hash_N, films["height"], films["width"], strict=True):
        if not pixel_hash:
            pixel_hash = hashlib.sha256(store.read_jpegs([int(row)])[0]).hexdigest()
        digest.update(f"{pixel_hash} {height} {width}\n".encode())
    return digest.hexdigest()


def _find_first_draw(store: Store, column: str, chosen: LabelledRows, train: np.ndarray) -> np.ndarray:
    if column not in store.label_names:
        raise UsageError(f"{store.path.name} has no column {column!r}; it has {', '.join(store.label_names)}")
    marked = store.films[column].to_numpy()[chosen.rows] == 1
    first: np.ndarray = train[marked[train]]
    if not len(first):
        raise UsageError(f"column {column!r} of {store.path.name} marks no labelled film of the train split")
    return first


def _check_uids(task: OpenedTask) -> None:
    """Refuse uids that could be original names: a benchmark writes them down."""
    for uid_M in (task.films.val.uid_M, task.films.test.uid_M):
        if wrong := sum(not _HASH.fullmatch(uid) for uid in uid_M.tolist()):
            raise UsageError(f"{wrong} of {len(uid_M)} uids of {task.store.path.name} are no keyed hashes")


def describe_films(store: Store, chosen: LabelledRows, places: np.ndarray) -> EvaluatedFilms:
    """Return what is known of some of the chosen films."""
    films = store.films.iloc[chosen.rows[places]]
    groups = {key: _as_text(films[key]) for key in ("sex", "view", "site")}
    groups["age_band"] = compute_age_bands(films["age_years"].to_numpy(np.float64))
    return EvaluatedFilms(_as_text(films["uid"]), chosen.patient[places].astype(str), chosen.label[places], groups)


def _as_text(column: Sequence[object]) -> np.ndarray:
    return np.array([str(value) for value in column], dtype=str)
