"""Encoders that are runs of one pre-training recipe: the spread over seeds, and tests that account for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.predictions import BenchmarkResults
from chess_cxr.benchmarking.tables import Replicates, SetKey, clip_ends, list_set_keys
from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import DrawReplicates
from chess_cxr.evaluation.seed_spread import average_runs, compute_spread, list_runs, subtract_runs

Place = tuple[str, str, str]  # task, head, subset


def build_recipe_tables(
    recipes: Mapping[str, Sequence[str]], results: BenchmarkResults, replicates: Replicates
) -> dict[str, pd.DataFrame]:
    """Return the tables `recipes` and `recipe_differences`: means over classes or findings only.

    An encoder that is no run of a recipe is one of its own, of a single run; floors are left out.  Differences are
    taken to the recipe of the reference.  p_holm: over recipes, heads and subsets of one task and metric.
    """
    runs = {name: tuple(members) for name, members in recipes.items()}
    runs |= {
        name: (name,)
        for name in results.encoders
        if name not in results.floors and not any(name in members for members in recipes.values())
    }
    reference = next(name for name, members in runs.items() if results.reference in members)
    rows, gaps = list[dict[str, Any]](), list[dict[str, Any]]()
    for place in dict.fromkeys((key.task, key.head, key.subset) for key in list_set_keys(results)):
        found = {name: _find_runs(members, place, results, replicates) for name, members in runs.items()}
        for name, parts in found.items():
            for metric in _list_metrics(parts):
                rows.append(_summarise(name, place, metric, [part[metric] for part in parts], results))
        for name, parts in found.items():
            shared = [metric for metric in _list_metrics(parts) if metric in _list_metrics(found[reference])]
            for metric in shared if name != reference else []:
                sides = [part[metric] for part in parts], [part[metric] for part in found[reference]]
                if len({side[0].value_DR.shape for side in sides}) == 1:
                    gaps.append(_subtract(name, reference, place, metric, *sides, results))
    table = pd.DataFrame(gaps)
    if not table.empty:
        family = table.groupby(["task", "metric"], sort=False)["p"]
        table["p_holm"] = family.transform(lambda p: correct_holm(p.to_numpy()))
    return {"recipes": pd.DataFrame(rows), "recipe_differences": table}


def _find_runs(
    members: Sequence[str], place: Place, results: BenchmarkResults, replicates: Replicates
) -> list[Mapping[str, DrawReplicates]]:
    """Return the metrics of each run that has them, on the draws that all of these runs have."""
    keys = [SetKey(place[0], member, place[1], place[2]) for member in members]
    there = {key: [one.draw for one in results.select_draws(*vars(key).values())] for key in keys if key in replicates}
    if not there:
        return []
    shared = set.intersection(*(set(draws) for draws in there.values()))
    found = list[Mapping[str, DrawReplicates]]()
    for key, draws in there.items():
        at = [number for number, draw in enumerate(draws) if draw in shared]
        parts = replicates[key].items()
        found.append({name: DrawReplicates(one.value_D[at], np.asarray(one.value_DR)[at]) for name, one in parts})
    return found if shared else []


def _list_metrics(parts: Sequence[Mapping[str, DrawReplicates]]) -> list[str]:
    return [metric for metric in parts[0] if "/" not in metric] if parts else []


def _summarise(
    name: str, place: Place, metric: str, runs: list[DrawReplicates], results: BenchmarkResults
) -> dict[str, Any]:
    interval, value_S = average_runs(runs, results.seed, results.level), list_runs(runs)
    return (
        {"task": place[0], "recipe": name, "runs": len(runs), "head": place[1], "subset": place[2], "metric": metric}
        | {"value": interval.value}
        | clip_ends(interval, metric, results.tasks[place[0]].kind)
        | {"spread": compute_spread(runs), "smallest": value_S.min(), "largest": value_S.max()}
        | {"interval_covers": "patients, draws and seeds" if len(runs) > 1 else "patients and draws, not the seed"}
    )


def _subtract(
    name: str,
    reference: str,
    place: Place,
    metric: str,
    mine: list[DrawReplicates],
    theirs: list[DrawReplicates],
    results: BenchmarkResults,
) -> dict[str, Any]:
    gap = subtract_runs(mine, theirs, results.seed, results.level)
    covered = min(len(mine), len(theirs)) > 1
    return (
        {"task": place[0], "recipe": name, "reference": reference, "runs": len(mine), "reference_runs": len(theirs)}
        | {"head": place[1], "subset": place[2], "metric": metric}
        | {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p}
        | {"interval_covers": "patients, draws and seeds" if covered else "the seeds of one recipe at most"}
    )
