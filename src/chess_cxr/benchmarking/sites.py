"""Train here, test there: a matrix over tasks that share labels, with calibration and thresholds carried along."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chess_cxr.benchmarking.audit import blank_unknown
from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key
from chess_cxr.benchmarking.cells import PROBE_CODE, Computed, fit_head, read_features, score_films
from chess_cxr.benchmarking.encoders import EncoderFacts
from chess_cxr.benchmarking.films import OpenedTask
from chess_cxr.benchmarking.floors import NAMES
from chess_cxr.benchmarking.predictions import Failure, TaskKind
from chess_cxr.benchmarking.stages import Features, Ledger
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.evaluation.intervals import DrawReplicates, average_draws, replicate_draws, subtract_draws
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic
from chess_cxr.evaluation.operating_points import ThresholdRule, compute_transfer_costs
from chess_cxr.evaluation.reliability import fit_temperature
from chess_cxr.records import UsageError

RULES = (ThresholdRule("youden"), ThresholdRule("sensitivity", 0.9))
SITE_CODE = ("evaluation.operating_points", "evaluation.reliability", "evaluation.intervals")


@dataclass(frozen=True)
class Site:
    """The films of one task as keys: features, labels of the shared names, patients, and places of the splits."""

    name: str
    features: tuple[str, ...]
    label: str
    patient: str
    train: str
    val: str
    test: str


@dataclass(frozen=True)
class SiteCell:
    """A head fitted to all labelled train films of one site, and what it is worth at every site.

    Facts: `rows` of metrics and `thresholds` (`compute_transfer_costs`).  Array auroc_TR: the mean AUROC at each site,
    on all its films and then on resamples of its patients.
    """

    head: str
    kind: TaskKind
    class_names: tuple[str, ...]
    sites: tuple[Site, ...]
    source: int
    replicates: int
    seed: int
    level: float

    @property
    def size(self) -> int:
        """One fit."""
        return 1

    @property
    def key(self) -> str:
        """The hash of features, labels, splits, settings and code."""
        described = {name: value for name, value in vars(self).items() if name != "sites"}
        sites = [{name: value for name, value in vars(site).items() if name != "name"} for site in self.sites]
        code = compute_code_version(PROBE_CODE[self.head], *SITE_CODE)
        named = {"names": [site.name for site in self.sites], "class_names": list(self.class_names)}
        return compute_key({"cell": "site", "code": code, "sites": sites} | described | named)

    def compute(self, cells: CellFolder) -> Computed:
        """Fit at the source, score everywhere."""
        films = [_read_site(cells, site) for site in self.sites]
        home = films[self.source]
        names = self.class_names
        probe, fitted = fit_head(
            self.head, home["train"][0], home["train"][1], home["train"][2], names, self.seed, *home["val"][:2]
        )
        score = {split: [score_films(probe, one[split][0], len(names)) for one in films] for split in ("val", "test")}
        rows, auroc = list[dict[str, Any]](), list[NDArray[np.float64]]()
        for place, one in enumerate(films):
            test, told = one["test"], score["test"][place]
            scored: dict[str, NDArray[Any]] = {"": told}
            for which, at in (("of the source", self.source), ("of the target", place)):
                if len(films[at]["val"][1]):
                    scaling = fit_temperature(films[at]["val"][1], score["val"][at], names, self.kind)
                    scored[f", temperature {which}"] = scaling.apply(told)
            for suffix, probability in scored.items():
                build = build_multiclass_statistic if self.kind == "multiclass" else build_multilabel_statistic
                statistic = build(test[1], probability, names, probabilities=True)
                parts = replicate_draws(test[2], [statistic], self.replicates, self.seed)
                if not suffix:
                    auroc.append(np.r_[parts["auroc"].value_D, parts["auroc"].value_DR[0]])
                kept = [name for name in parts if name in ("brier", "ece") or (not suffix and "auroc" in name)]
                for metric in kept:
                    interval = average_draws(parts[metric], self.seed, self.level)
                    rows.append(
                        {"tested_on": self.sites[place].name, "metric": metric + suffix, "value": interval.value}
                        | {"low": interval.low, "high": interval.high}
                        | {"n_test": len(test[1]), "n_test_patients": len(np.unique(test[2]))}
                    )
        facts = {
            "n_train": len(home["train"][1]),
            "notes": fitted["notes"],
            "rows": [blank_unknown(row) for row in rows],
        }
        return {"auroc_TR": np.stack(auroc)}, facts | {"thresholds": self._carry_thresholds(films, score)}

    def _carry_thresholds(
        self, films: Sequence[Mapping[str, Any]], score: Mapping[str, Sequence[NDArray[np.float32]]]
    ) -> list[dict[str, Any]]:
        """Choose thresholds on the source's val films, and compare them with those of each site's own val films."""
        if not all(len(one["val"][1]) for one in films):
            return []

        def join(split: str, part: int) -> NDArray[Any]:
            return np.concatenate([one[split][part] for one in films])

        site = {
            split: np.repeat([one.name for one in self.sites], [len(part) for part in score[split]]) for split in score
        }
        patient = [np.char.add(f"{place} ", one["test"][2].astype(str)) for place, one in enumerate(films)]
        table = compute_transfer_costs(
            join("val", 1), np.concatenate(score["val"]), site["val"], join("test", 1), np.concatenate(score["test"]),
            site["test"], np.concatenate(patient), self.class_names, self.kind, rules=RULES,
            replicates=self.replicates, seed=self.seed, level=self.level,
        )  # fmt: skip
        mine = table[table["from_site"] == self.sites[self.source].name]
        return [blank_unknown(row) for row in mine.to_dict("records")]


def compare_sites(
    suite: Suite,
    tasks: Mapping[str, OpenedTask],
    facts: Mapping[str, EncoderFacts],
    features: Features,
    ledger: Ledger,
) -> dict[str, pd.DataFrame]:
    """Return the tables `sites` and `site_thresholds` of all groups of tasks that a suite names.

    drop: AUROC of the head from elsewhere minus that of the site's own, on the same resamples of its test patients.
    """
    planned = dict[tuple[str, str, str, str], SiteCell]()
    for group, names in suite.sites.items():
        labels, kind = find_shared_labels(group, [tasks[name] for name in names])
        heads = [head for head in tasks[names[0]].spec.heads if head in PROBE_CODE]
        for encoder in facts:
            if encoder in (NAMES["metadata"], NAMES["shuffled"]) or any((n, encoder) not in features for n in names):
                continue
            sites = tuple(_keep_site(name, tasks[name], features[name, encoder], labels, ledger) for name in names)
            for number, head in itertools.product(range(len(names)), heads):
                planned[group, encoder, head, names[number]] = SiteCell(
                    head, kind, labels, sites, number, suite.replicates, suite.seed, suite.level
                )
    failed = ledger.runner.run(list(planned.values()), ledger.folder, ledger.watch("sites"))
    rows, thresholds = list[dict[str, Any]](), list[dict[str, Any]]()
    for (group, encoder, mode, source), cell in planned.items():
        if cell.key in failed:
            ledger.failures.append(Failure(group, encoder, mode, f"trained on {source}", -1, failed[cell.key]))
            continue
        told = ledger.folder.read_facts(cell.key)
        about = {"group": group, "encoder": encoder, "head": mode, "trained_on": source, "n_train": told["n_train"]}
        for row in told["rows"]:
            own = planned[group, encoder, mode, row["tested_on"]]
            drop = _compare_with_own(cell, own, row, failed, ledger.folder, suite)
            rows.append(about | row | drop)
        thresholds += [about | row for row in told["thresholds"]]
    return {"sites": pd.DataFrame(rows), "site_thresholds": pd.DataFrame(thresholds)}


def find_shared_labels(group: str, tasks: Sequence[OpenedTask]) -> tuple[tuple[str, ...], TaskKind]:
    """Return the labels that all tasks have, and their kind; raises UsageError where they do not fit each other."""
    first = tasks[0]
    names = tuple(name for name in first.chosen.names if all(name in task.chosen.names for task in tasks))
    kinds = {task.chosen.kind for task in tasks}
    whole = all(set(task.chosen.names) == set(names) for task in tasks)
    if len(kinds) > 1 or not names or (first.chosen.kind == "multiclass" and not whole):
        told = "; ".join(f"{task.films.name}: {', '.join(task.chosen.names)}" for task in tasks)
        raise UsageError(f"sites.{group}: the tasks share no labels of one kind: {told}")
    return names, first.chosen.kind


def _keep_site(name: str, task: OpenedTask, features: tuple[str, ...], labels: tuple[str, ...], ledger: Ledger) -> Site:
    keep, chosen = ledger.folder.keep_array, task.chosen
    columns = [chosen.names.index(label) for label in labels]
    label = chosen.taught[:, columns] if chosen.kind == "multilabel" else np.argsort(columns)[chosen.taught]
    train = np.flatnonzero(chosen.split == "train")
    if chosen.kind == "multilabel":
        train = train[~np.isnan(label[train]).all(axis=1)]
    splits = {"train": keep(train), "val": keep(task.val), "test": keep(task.test)}
    return Site(name, features, keep(label), keep(task.patient_code_N), **splits)


def _read_site(cells: CellFolder, site: Site) -> dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Return features, labels and patients of each split."""
    label, patient = cells.read_array(site.label), cells.read_array(site.patient)
    places = {split: cells.read_array(getattr(site, split)) for split in ("train", "val", "test")}
    return {
        split: (read_features(cells, site.features, those), label[those], patient[those])
        for split, those in places.items()
    }


def _compare_with_own(
    cell: SiteCell, own: SiteCell, row: Mapping[str, Any], failed: Mapping[str, str], folder: CellFolder, suite: Suite
) -> dict[str, float]:
    nothing = {"drop": math.nan, "drop_low": math.nan, "drop_high": math.nan, "p": math.nan}
    if row["metric"] != "auroc" or own.key == cell.key or own.key in failed:
        return nothing
    place = [site.name for site in cell.sites].index(row["tested_on"])
    mine, theirs = (folder.read_arrays(one.key)["auroc_TR"][place] for one in (cell, own))
    parts = [DrawReplicates(one[:1], one[None, 1:]) for one in (mine, theirs)]
    gap = subtract_draws(parts[0], parts[1], suite.seed, suite.level)
    return {"drop": gap.value, "drop_low": gap.low, "drop_high": gap.high, "p": gap.p}
