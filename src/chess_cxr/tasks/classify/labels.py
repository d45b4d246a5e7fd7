"""Select the films of a store that have known labels, and prepare these labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from chess_cxr.records import UNCERTAIN, UsageError, resolve_uncertain
from chess_cxr.store import Store
from chess_cxr.tasks.classify.config import ClassifyTask, Policies, Policy, parse_policies

METRICS = {
    "multiclass": ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc"),
    "multilabel": ("auroc", "auprc"),
}
SMOOTH = {"smooth_ones": (0.55, 0.85), "smooth_zeros": (0.0, 0.3)}  # ranges of Pham et al. 2021 for CheXpert


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a store with known labels.

    rows: row numbers [N].  label: scored labels: class index [N] for "multiclass" and "ordinal" (in the order of the
    names), 1 / 0 / NaN [N, L] for "multilabel"; uncertain ones are NaN.  patient, study, split: of each row [N].
    target_NL: training targets, float64 of 0 … 1, NaN if unknown, `UNCERTAIN` if that is a class of its own.
    uncertain_L: number of uncertain labels of each finding in the store.
    """

    rows: np.ndarray
    label: np.ndarray
    names: tuple[str, ...]
    patient: np.ndarray
    split: np.ndarray
    task: ClassifyTask
    study: np.ndarray
    target_NL: np.ndarray
    uncertain_L: np.ndarray

    @property
    def taught(self) -> np.ndarray:
        """Labels for a probe: training targets of train films, scored labels of the others."""
        if self.task != "multilabel":
            return self.label
        return np.where((self.split == "train")[:, None], self.target_NL, self.label)

    @property
    def kind(self) -> Literal["multiclass", "multilabel"]:
        """The kind of metrics: ordered classes are scored as classes."""
        return "multilabel" if self.task == "multilabel" else "multiclass"

    @property
    def label_NL(self) -> np.ndarray:
        """Labels as 1, 0 and NaN, float64 [N, L], for any task."""
        return self.label if self.task == "multilabel" else np.eye(len(self.names))[self.label]


def select_labelled(
    store: Store,
    labels: Sequence[str] = (),
    task: ClassifyTask | Literal["auto"] | None = None,
    uncertain: Policies = "ignore",
    seed: int = 0,
    sites: Sequence[str] = (),
) -> LabelledRows:
    """Select the films with known labels: all labels for a class, at least one for "multilabel".

    labels: names, all of the store's by default; for "ordinal" from the lowest to the highest.
    task: "auto" chooses "multiclass" if each film whose labels are all known has exactly one, else "multilabel".
    uncertain: policy for uncertain labels, for all findings or by name, see `build_targets`.  They are never scored.
    sites: of the films to select, all by default.
    Raises UsageError for labels that the store does not have, that no film knows, or that do not fit the task.
    """
    names = tuple(dict.fromkeys(labels)) or tuple(store.label_names)
    missing = [name for name in names if name not in store.label_names]
    if not store.label_names:
        raise UsageError(f"{store.path.name} has no labels; ingest --table LABELS.csv --columns labels=… stores them")
    if missing:
        have = ", ".join(store.label_names)
        raise UsageError(f"{store.path.name} has no label {', '.join(map(repr, missing))}; it has {have}")
    policies = spread_policies(uncertain, names)
    stored_NL = store.films[list(names)].to_numpy(np.float64)
    if sites:
        stored_NL = np.where(_find_sites(store, sites)[:, None], stored_NL, np.nan)
    label_NL = resolve_uncertain(stored_NL)
    whole = ~np.isnan(label_NL).any(axis=1)
    exclusive = bool(whole.any()) and len(names) > 1 and bool((label_NL[whole].sum(axis=1) == 1).all())
    if task is None or task == "auto":
        task = "multiclass" if exclusive else "multilabel"
    if task == "ordinal" and len(names) < 3:
        raise UsageError("an ordinal task needs at least three labels; for two, choose the task multiclass")
    if task != "multilabel" and not exclusive:
        raise UsageError(f"films do not have exactly one of the labels {', '.join(names)}; use the task multilabel")
    target_NL = build_targets(stored_NL, policies, seed) if task == "multilabel" else label_NL
    split_N = store.films["split"].to_numpy()
    taught_N = (split_N == "train") & ~np.isnan(target_NL).all(axis=1)
    rows = np.flatnonzero(whole if task != "multilabel" else ~np.isnan(label_NL).all(axis=1) | taught_N)
    if not len(rows):
        raise UsageError(f"no film of {store.path.name} has a known value of the labels {', '.join(names)}")
    chosen = store.films.iloc[rows]
    return LabelledRows(
        rows,
        label_NL[rows] if task == "multilabel" else label_NL[rows].argmax(axis=1),
        names,
        chosen["patient"].to_numpy(),
        chosen["split"].to_numpy(),
        task,
        chosen["study"].to_numpy(),
        target_NL[rows],
        (stored_NL == UNCERTAIN).sum(axis=0),
    )


def _find_sites(store: Store, sites: Sequence[str]) -> np.ndarray:
    site_N = store.films["site"].to_numpy(str)
    if missing := sorted(set(sites) - set(site_N)):
        have = ", ".join(sorted(set(site_N) - {""})) or "none"
        raise UsageError(f"{store.path.name} has no film of site {missing[0]!r}; its sites: {have}")
    found: np.ndarray = np.isin(site_N, list(sites))
    return found


def spread_policies(uncertain: Policies, names: Sequence[str]) -> tuple[str, ...]:
    """Return the policy of every finding; raises UsageError for unknown policies and findings."""
    known = get_args(Policy)
    asked = uncertain if isinstance(uncertain, (str, Mapping)) else parse_policies(uncertain)
    chosen = dict.fromkeys(names, asked) if isinstance(asked, str) else dict(asked)
    for name, policy in chosen.items():
        if name not in names:
            raise UsageError(f"a policy is given for {name!r}, which is none of the labels {', '.join(names)}")
        if policy not in known:
            raise UsageError(f"no policy for uncertain labels named {policy!r}; there are {', '.join(known)}")
    return tuple(chosen.get(name, "ignore") for name in names)


def build_targets(stored_NL: np.ndarray, policies: Sequence[str], seed: int = 0) -> np.ndarray:
    """Return training targets of labels, some of them uncertain (Irvin et al. 2019, CheXpert; Pham et al. 2021).

    ignore: NaN.  ones, zeros: 1 or 0.  smooth_ones, smooth_zeros: a number drawn from `SMOOTH` by seed and row.
    third_class: `UNCERTAIN` stays, as a class of its own.
    """
    target_NL = stored_NL.astype(np.float64, copy=True)
    for column, policy in enumerate(policies):
        uncertain_N = stored_NL[:, column] == UNCERTAIN
        if policy in SMOOTH:
            rng = np.random.Generator(np.random.Philox(key=[seed, column]))
            target_NL[uncertain_N, column] = rng.uniform(*SMOOTH[policy], len(stored_NL))[uncertain_N]
        elif policy != "third_class":
            target_NL[:, column] = resolve_uncertain(stored_NL[:, column], policy)
    return target_NL
