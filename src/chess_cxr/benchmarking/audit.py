"""Audit what an embedding knows beside the findings: three numbers that do not follow from each other.

- read: how well sex, age, view, site, manufacturer and collimation can be read from the features, as AUROC.
- left: what AUROC of the findings is left after these are regressed out of the features (`evaluation.residuals`).
- gap: how far apart the subgroups of the test patients are.

An attribute that can be read need not be used, and features without it may still have a gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key
from chess_cxr.benchmarking.cells import Computed
from chess_cxr.benchmarking.draws import LabelDraw
from chess_cxr.benchmarking.encoders import EncoderFacts
from chess_cxr.benchmarking.films import OpenedTask, describe_films
from chess_cxr.benchmarking.floors import NAMES
from chess_cxr.benchmarking.predictions import BenchmarkResults, TaskKind
from chess_cxr.benchmarking.stages import Features, Ledger, probe_all, replicate_all
from chess_cxr.benchmarking.tables import Replicates, SetKey
from chess_cxr.evaluation.intervals import average_draws, subtract_draws
from chess_cxr.evaluation.subgroups import compute_age_bands, compute_subgroups
from chess_cxr.store import FLAG_PREFIX

ATTRIBUTES = ("sex", "age", "view", "site", "manufacturer", "collimation")
LEAST_TRAIN, LEAST_TEST = 20, 10  # films of an attribute's value; rarer values are left out
COLUMNS = ["task", "encoder", "number", "attribute", "of", "n_test", "value", "low", "high", "p"]
READ, LEFT, LOST, GAP = "read", "left", "lost", "gap"
WHOLE = "findings"
GAP_CODE = ("evaluation.subgroups",)


@dataclass(frozen=True)
class GapCell:
    """The subgroups of one attribute in the predictions of one head: the rows of `compute_subgroups`."""

    kind: TaskKind
    class_names: tuple[str, ...]
    probes: tuple[str, ...]
    label: str
    patient: str
    test: str
    group: str
    group_names: tuple[str, ...]
    replicates: int
    seed: int
    level: float

    @property
    def size(self) -> int:
        """One attribute."""
        return 1

    @property
    def key(self) -> str:
        """The hash of predictions, labels, groups, settings and code."""
        described = {name: list(it) if isinstance(it, tuple) else it for name, it in vars(self).items()}
        return compute_key({"cell": "gap", "code": compute_code_version(*GAP_CODE)} | described)

    def compute(self, cells: CellFolder) -> Computed:
        """Score every group against the rest."""
        test = cells.read_array(self.test)
        group_M = np.array(["", *self.group_names])[cells.read_array(self.group)[test] + 1]
        table = compute_subgroups(
            cells.read_array(self.label)[test], [cells.read_arrays(probe)["test"] for probe in self.probes],
            self.class_names, self.kind, cells.read_array(self.patient)[test], {"group": group_M},
            replicates=self.replicates, seed=self.seed, level=self.level,
        )  # fmt: skip
        return {}, {"rows": [blank_unknown(row) for row in table.to_dict("records")]}


def audit_encoders(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    probes: Mapping[tuple[SetKey, int], str],
    replicates: Replicates,
    ledger: Ledger,
    device: str,
) -> pd.DataFrame:
    """Audit every encoder of every task that has a linear head: a row for each number, with `COLUMNS`.

    probes, replicates: of the benchmark itself, by the largest label subset.
    """
    audited = {name: task for name, task in tasks.items() if "linear" in task.spec.heads}
    known = {name: one for name, one in facts.items() if name not in (NAMES["metadata"], NAMES["shuffled"])}
    parts = [
        _read_attributes(results, audited, known, features, ledger, device),
        _regress_out(results, audited, known, features, replicates, ledger, device),
        _list_gaps(results, audited, known, probes, ledger),
    ]
    rows = [row for part in parts for row in part]
    return pd.DataFrame(rows, columns=COLUMNS)


def describe_attributes(task: OpenedTask) -> dict[str, tuple[NDArray[np.intp], tuple[str, ...]]]:
    """Return, by attribute, the code of each film (−1: unknown or rare) and the names of the codes.

    Age is told as younger or older than the median of the train films.  An attribute without two values that
    `LEAST_TRAIN` train films and `LEAST_TEST` scored films have is left out.
    """
    films = task.store.films.iloc[task.chosen.rows]
    train = task.chosen.split == "train"
    age_N = films["age_years"].to_numpy(np.float64)
    known = ~np.isnan(age_N)
    median = float(np.median(age_N[train & known])) if (train & known).any() else math.nan
    texts = {name: films[name].to_numpy(str) for name in ("sex", "view", "site", "manufacturer")}
    older = np.where(age_N > median, f"above {median:g} years", f"to {median:g} years")
    texts["age"] = np.where(known, older, "")
    collimated = films[f"{FLAG_PREFIX}collimated"].to_numpy(bool)
    texts["collimation"] = np.where(collimated, "collimated", "not collimated")
    found = {}
    for attribute in ATTRIBUTES:
        text_N = texts[attribute]
        names = tuple(
            name
            for name in np.unique(text_N[text_N != ""]).tolist()
            if (text_N[train] == name).sum() >= LEAST_TRAIN and (text_N[task.test] == name).sum() >= LEAST_TEST
        )
        if len(names) > 1:
            code_N = np.full(len(text_N), -1)
            for place, name in enumerate(names):
                code_N[text_N == name] = place
            found[attribute] = (code_N.astype(np.intp), names)
    return found


def build_known_columns(task: OpenedTask) -> NDArray[np.float64]:
    """Return the columns that are regressed out: each value of each attribute, and age, also squared; [N, A]."""
    age_N = task.store.films["age_years"].to_numpy(np.float64)[task.chosen.rows]
    age_N = np.nan_to_num(age_N, nan=float(np.nanmean(age_N)) if (~np.isnan(age_N)).any() else 0.0) / 100
    columns = [age_N, age_N**2]
    for code_N, names in describe_attributes(task).values():
        columns += [code_N == place for place in range(-1, len(names))]
    return np.stack(columns, axis=1).astype(np.float64)


def _read_attributes(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
    device: str,
) -> list[dict[str, object]]:
    asked = {
        (name, attribute): _ask_attribute(task, code_N, names)
        for name, task in tasks.items()
        for attribute, (code_N, names) in describe_attributes(task).items()
    }
    named = {f"{name} / {attribute}": one for (name, attribute), one in asked.items()}
    keys = {
        (f"{name} / {attribute}", encoder): features[name, encoder]
        for name, attribute in asked
        for encoder in facts
        if (name, encoder) in features
    }
    found = _score(results, named, facts, keys, ledger, device)
    rows = []
    for (name, attribute), task in zip(asked, named.values(), strict=True):
        for encoder in facts:
            parts = found.get(SetKey(f"{name} / {attribute}", encoder, "linear", "100 %"))
            if parts:
                interval = average_draws(parts["auroc"], results.seed, results.level)
                rows.append(_build_row(name, encoder, READ, attribute, ", ".join(task.chosen.names), task, interval))
    return rows


def _ask_attribute(task: OpenedTask, code_N: NDArray[np.intp], names: tuple[str, ...]) -> OpenedTask:
    """Return the task of telling an attribute's values apart on the films of another task."""
    known = code_N >= 0
    train = np.flatnonzero((task.chosen.split == "train") & known)
    val, test = (places[known[places]] for places in (task.val, task.test))
    label = np.maximum(code_N, 0)
    chosen = replace(task.chosen, label=label, names=names, task="multiclass", target_NL=np.eye(len(names))[label])
    films = replace(
        task.films, kind="multiclass", class_names=names, train_total=len(train),
        val=describe_films(task.store, chosen, val), test=describe_films(task.store, chosen, test),
    )  # fmt: skip
    plan = (LabelDraw("100 %", 0, train, 0),)
    spec = replace(task.spec, heads=("linear",))
    return replace(task, spec=spec, chosen=chosen, val=val, test=test, plan=plan, films=films)


def _regress_out(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    replicates: Replicates,
    ledger: Ledger,
    device: str,
) -> list[dict[str, object]]:
    largest = {name: results.list_subsets(name)[-1] for name in tasks if results.list_subsets(name)}
    again = {
        name: replace(
            task,
            spec=replace(task.spec, heads=("linear",)),
            plan=tuple(draw for draw in task.plan if draw.subset == largest[name]),
        )
        for name, task in tasks.items()
        if name in largest and describe_attributes(task)
    }
    without = {name: ledger.folder.keep_array(build_known_columns(task)) for name, task in again.items()}
    found = _score(results, again, facts, features, ledger, device, without)
    rows = []
    for key, parts in found.items():
        if key not in replicates:
            continue
        task, of = tasks[key.task], f"{WHOLE}, {key.subset}"
        left = average_draws(parts["auroc"], results.seed, results.level)
        lost = subtract_draws(parts["auroc"], replicates[key]["auroc"], results.seed, results.level)
        rows.append(_build_row(key.task, key.encoder, LEFT, "all", of, task, left))
        rows.append(_build_row(key.task, key.encoder, LOST, "all", of, task, lost) | {"p": lost.p})
    return rows


def _score(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
    device: str,
    without: Mapping[str, str] | None = None,
) -> Replicates:
    """Fit and resample tasks that stand in no table of the benchmark; what fails is told."""
    sets, probes = probe_all(tasks, facts, features, ledger, device, without)
    films = {name: task.films for name, task in tasks.items()}
    mine = replace(results, tasks=films, sets=tuple(sets))
    return replicate_all(mine, tasks, probes, ledger)[1]


def _list_gaps(
    results: BenchmarkResults,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    probes: Mapping[tuple[SetKey, int], str],
    ledger: Ledger,
) -> list[dict[str, object]]:
    """Return the largest gap of each attribute: of the groups with enough films, the one farthest from the rest."""
    keep, planned = ledger.folder.keep_array, dict[tuple[str, str, str], GapCell]()
    sets = dict[SetKey, list[str]]()
    for (place, _), key in probes.items():
        sets.setdefault(place, []).append(key)
    for name, task in tasks.items():
        shared = {"label": keep(task.chosen.label), "patient": keep(task.patient_code_N), "test": keep(task.test)}
        subset = (results.list_subsets(name) or ("",))[-1]
        for attribute, (code_N, names) in _group_films(task).items():
            for encoder in facts:
                if found := sets.get(SetKey(name, encoder, "linear", subset)):
                    planned[name, encoder, attribute] = GapCell(
                        task.chosen.kind, task.chosen.names, tuple(found), group=keep(code_N), group_names=names,
                        replicates=results.replicates, seed=results.seed, level=results.level, **shared,
                    )  # fmt: skip
    ledger.runner.run(list(planned.values()), ledger.folder, ledger.watch("subgroups"))
    rows = []
    for (name, encoder, attribute), cell in planned.items():
        told = [row for row in ledger.folder.read_facts(cell.key).get("rows", []) if row["p"] is not None]
        if told:
            row = max(told, key=lambda one: abs(one["gap"]))
            rows.append(
                {"task": name, "encoder": encoder, "number": GAP, "attribute": attribute, "of": row["group"]}
                | {"n_test": row["films"], "value": row["gap"], "low": row["gap_low"], "high": row["gap_high"]}
                | {"p": row["p_holm"]}
            )
    return rows


def _group_films(task: OpenedTask) -> dict[str, tuple[NDArray[np.intp], tuple[str, ...]]]:
    """Return the attributes as groups: age in bands instead of halves."""
    groups = describe_attributes(task)
    if "age" in groups:
        band_N = compute_age_bands(task.store.films["age_years"].to_numpy(np.float64)[task.chosen.rows])
        names = tuple(np.unique(band_N[band_N != ""]).tolist())
        groups["age"] = (np.searchsorted(names, band_N) + np.where(band_N == "", -1, 0), names)
    return groups


def _build_row(
    name: str, encoder: str, number: str, attribute: str, of: str, task: OpenedTask, interval: Any
) -> dict[str, object]:
    row = {"task": name, "encoder": encoder, "number": number, "attribute": attribute, "of": of}
    return row | {
        "n_test": len(task.test),
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p": math.nan,
    }


def blank_unknown(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of a table as JSON values; a number that is none becomes None."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    return {name: None if isinstance(it, float) and not math.isfinite(it) else it for name, it in plain.items()}
