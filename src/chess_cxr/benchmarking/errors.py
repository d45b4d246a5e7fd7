"""The test films that an encoder's heads get most surely wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chess_cxr.benchmarking.predictions import BenchmarkResults, PredictionSet


@dataclass(frozen=True)
class WorstError:
    """One wrong film.

    place: among the task's test films.  uid: its keyed hash.  name: the class that it was taken for, or the finding
    that was judged wrongly.  truth: the true class; "present" or "absent" of a finding.
    probability: that was given to `name`, mean over draws.
    """

    place: int
    uid: str
    name: str
    truth: str
    probability: float


def select_largest_subset(results: BenchmarkResults, task: str, encoder: str) -> tuple[PredictionSet, ...]:
    """Return an encoder's draws with the most training films, of the first head that has any; () without one."""
    for subset in reversed(results.list_subsets(task)):
        for head in dict.fromkeys(one.head for one in results.sets):
            if found := results.select_draws(task, encoder, head, subset):
                return found
    return ()


def find_worst_errors(results: BenchmarkResults, task: str, count: int = 12) -> tuple[WorstError, ...]:
    """Return the test films that the reference is most surely wrong about, worst first; () without predictions.

    By the mean over draws of its largest label subset.  A film of a class is wrong where another class is likelier, and
    the worse the likelier that is; a finding, where the probability lies on the wrong side of a half.  A film appears
    once, with its worst finding.
    """
    sets = select_largest_subset(results, task, results.reference)
    if not sets:
        return ()
    films = results.tasks[task]
    mean_MC = np.mean([one.test_MC for one in sets], axis=0)
    if films.kind == "multiclass":
        truth_M = films.test.label.astype(np.intp)
        given_M = mean_MC.argmax(axis=1)
        miss_M = np.where(given_M == truth_M, 0.0, mean_MC.max(axis=1))
    else:
        distance_ML = np.nan_to_num(np.abs(mean_MC - films.test.label.astype(np.float64)), nan=0.0)
        given_M = distance_ML.argmax(axis=1)
        miss_M = np.where(distance_ML.max(axis=1) > 0.5, distance_ML.max(axis=1), 0.0)
    found = []
    for place in np.argsort(-miss_M, kind="stable")[:count].tolist():
        if miss_M[place] > 0:
            given = int(given_M[place])
            if films.kind == "multiclass":
                truth = films.class_names[int(truth_M[place])]
            else:
                truth = "present" if films.test.label[place, given] == 1 else "absent"
            uid, name = str(films.test.uid_M[place]), films.class_names[given]
            found.append(WorstError(place, uid, name, truth, float(mean_MC[place, given])))
    return tuple(found)
