"""What a benchmark of encoders predicted: films, labels and probabilities as arrays, and what became of every cell.

Shape suffixes: M evaluated films, C classes or L findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TaskKind = Literal["multiclass", "multilabel"]
GROUPINGS = ("sex", "age_band", "view", "site")


@dataclass(frozen=True)
class EvaluatedFilms:
    """The films of one split that a task is scored on; M may be 0.

    uid_M, patient_M: keyed hashes.  label: class indices, int [M], or 1 / 0 / NaN, float [M, L].
    groups: by `GROUPINGS`, a text for each film; "" is not known.
    """

    uid_M: NDArray[np.str_]
    patient_M: NDArray[np.str_]
    label: NDArray[np.generic]
    groups: Mapping[str, NDArray[np.str_]]


@dataclass(frozen=True)
class TaskFilms:
    """One task: its labels and the films it is scored on.

    train_total: labelled films of its train split.  notes: what a reader of its numbers has to know beside them.
    split: what `test` is of.
    """

    name: str
    data_set: str
    kind: TaskKind
    class_names: tuple[str, ...]
    val: EvaluatedFilms
    test: EvaluatedFilms
    train_total: int
    notes: tuple[str, ...] = ()
    split: Literal["val", "test"] = "test"


@dataclass(frozen=True)
class PredictionSet:
    """What one head on one encoder, fitted to one label draw, predicts for a task's val and test films.

    subset: the column it belongs to, such as "1 %" or "31 films".  fraction: its films as a part of the train split.
    draw: number of the draw, the same films for every encoder; seed: of that draw.
    val_MC, test_MC: probabilities, float32, of each class (rows sum to 1) or of each finding by itself.
    notes: what could not be done as asked.  seconds: that the fit took.  strength: penalty of a linear head, geometric
    mean over the classes or findings that could be fitted.
    """

    task: str
    encoder: str
    head: str
    subset: str
    fraction: float
    draw: int
    seed: int
    n_train_films: int
    n_train_patients: int
    val_MC: NDArray[np.float32]
    test_MC: NDArray[np.float32]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    strength: float = math.nan


@dataclass(frozen=True)
class Failure:
    """One cell that could not be computed; subset "" means all of them, draw -1 every draw."""

    task: str
    encoder: str
    head: str
    subset: str
    draw: int
    reason: str


@dataclass(frozen=True)
class BenchmarkResults:
    """All that a benchmark predicted.

    encoders: name -> what it is, in the order of the tables.  reference: the encoder that differences are taken to.
    replicates, level: of the bootstrap.  synthetic: whether the films were generated.  floors: encoders that are none,
    to compare with; they count in no correction of p-values but their own.
    """

    tasks: Mapping[str, TaskFilms]
    sets: tuple[PredictionSet, ...]
    failures: tuple[Failure, ...]
    encoders: Mapping[str, str]
    reference: str
    seed: int = 0
    replicates: int = 1000
    level: float = 0.95
    synthetic: bool = False
    floors: tuple[str, ...] = ()

    def list_subsets(self, task: str) -> tuple[str, ...]:
        """Return the label subsets of a task, smallest first."""
        films: dict[str, list[int]] = {}
        for one in self.sets:
            if one.task == task:
                films.setdefault(one.subset, []).append(one.n_train_films)
        return tuple(sorted(films, key=lambda subset: sum(films[subset]) / len(films[subset])))

    @property
    def split(self) -> str:
        """The split that all tasks are scored on."""
        return next(iter(self.tasks.values())).split

    def select_draws(self, task: str, encoder: str, head: str, subset: str) -> tuple[PredictionSet, ...]:
        """Return the prediction sets of one row and column of a table, by draw."""
        wanted = (task, encoder, head, subset)
        chosen = [one for one in self.sets if (one.task, one.encoder, one.head, one.subset) == wanted]
        return tuple(sorted(chosen, key=lambda one: one.draw))
