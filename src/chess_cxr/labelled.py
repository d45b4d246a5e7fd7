"""Which films of a store a task can use, and what their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chess_cxr.records import UsageError
from chess_cxr.store import Store, resolve_uncertain

ClassifyTask = Literal["multiclass", "multilabel"]
METRICS = {"multiclass": ("accuracy", "balanced_accuracy", "macro_f1", "auroc"), "multilabel": ("auroc", "auprc")}


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a store that a task can use.

    rows: row numbers [N].  label: class index [N] for "multiclass", 1 / 0 / NaN [N, L] for "multilabel".
    patient, split: of each row [N].
    """

    rows: np.ndarray
    label: np.ndarray
    names: tuple[str, ...]
    patient: np.ndarray
    split: np.ndarray
    task: ClassifyTask

    @property
    def label_NL(self) -> np.ndarray:
        """Labels as 1, 0 and NaN, float64 [N, L], whatever the task."""
        return self.label if self.task == "multilabel" else np.eye(len(self.names))[self.label]


def select_labelled(
    store: Store, labels: Sequence[str] = (), task: ClassifyTask | None = None, uncertain: str = "ignore"
) -> LabelledRows:
    """Select the films whose labels are known: all of them for "multiclass", at least one for "multilabel".

    labels: names, all of the store's by default.  task: by default "multiclass" where every film that knows all of
    them carries exactly one, else "multilabel".  uncertain: what an uncertain label counts as, see `resolve_uncertain`.
    Raises UsageError for labels that the store does not have, that no film knows, or that do not fit the task.
    """
    names = tuple(dict.fromkeys(labels)) or tuple(store.label_names)
    missing = [name for name in names if name not in store.label_names]
    if missing or not names:
        have = ", ".join(store.label_names) or "none"
        raise UsageError(f"{store.path.name} has no label {', '.join(map(repr, missing)) or 'at all'}; it has {have}")
    label_NL = resolve_uncertain(store.films[list(names)].to_numpy(np.float64), uncertain)
    whole = ~np.isnan(label_NL).any(axis=1)
    exclusive = bool(whole.any()) and len(names) > 1 and bool((label_NL[whole].sum(axis=1) == 1).all())
    task = task or ("multiclass" if exclusive else "multilabel")
    if task == "multiclass" and not exclusive:
        raise UsageError(f"labels {', '.join(names)} are not one class a film; use the task multilabel")
    rows = np.flatnonzero(whole if task == "multiclass" else ~np.isnan(label_NL).all(axis=1))
    if not len(rows):
        raise UsageError(f"no film of {store.path.name} knows any of the labels {', '.join(names)}")
    chosen = store.films.iloc[rows]
    label = label_NL[rows].argmax(axis=1) if task == "multiclass" else label_NL[rows]
    return LabelledRows(rows, label, names, chosen["patient"].to_numpy(), chosen["split"].to_numpy(), task)
