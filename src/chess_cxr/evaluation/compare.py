"""Encoders side by side: the same films, the same label draws, the same bootstrap, one table.

Protocol.  Probes learn from label draws of the training split alone and choose their strength inside the draw; the
chosen split ("val" while anything is still being decided, "test" once) is only scored.  Every number in a table is a
mean over draws with an interval over patients and draws (`intervals.average_draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import DrawReplicates, average_draws, replicate_draws, subtract_draws
from chess_cxr.evaluation.label_fractions import IndexArray, draw_label_fraction
from chess_cxr.evaluation.linear_probe import LinearProbe, fit_linear_probe
from chess_cxr.evaluation.metrics import (
    FloatArray,
    Statistic,
    build_multiclass_statistic,
    build_multilabel_statistic,
    check_classes,
    check_findings,
    mean_known,
)
from chess_cxr.records import SPLITS, UsageError

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class LabelDraw:
    """One labelled training subset: the column of the table it belongs to, its number there, its films, its seed."""

    subset: str
    draw: int
    film_index: IndexArray
    seed: int


@dataclass(frozen=True)
class Cell:
    """One probe: who, learned from which draw, and what it predicts for the M evaluated films."""

    encoder: str
    draw: LabelDraw
    score_MC: NDArray[np.float32]
    strength_C: FloatArray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All predictions of a comparison, and the tables made from them.

    cells: by (encoder, subset), one entry a draw.  label, patient_M: of the evaluated films of `split`.
    notes: what a reader of the numbers has to know beside them, a sentence each.
    """

    data_set: str
    split: str
    task: Task
    class_names: tuple[str, ...]
    seed: int
    replicates: int
    level: float
    train_patient_N: NDArray[np.generic]
    train_total: int
    label: NDArray[np.generic]
    patient_M: NDArray[np.generic]
    cells: Mapping[tuple[str, str], tuple[Cell, ...]]
    encoders: tuple[str, ...] = field(default=())
    subsets: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def parts(self) -> dict[tuple[str, str], dict[str, DrawReplicates]]:
        """Metrics of every (encoder, subset), draw by draw, on all films and on shared resamples of the patients."""
        return {
            key: replicate_draws(
                self.patient_M, [self._statistic(cell.score_MC) for cell in cells], self.replicates, self.seed
            )
            for key, cells in self.cells.items()
        }

    def table(self) -> pd.DataFrame:
        """Return one row for each encoder, subset and metric: the mean over draws, its interval and its provenance.

        interval_covers says whether training draws vary too, or (one draw) test patients alone.  undefined counts the
        replicates without a value.
        """
        rows = []
        for (encoder, subset), parts in self.parts.items():
            for metric, part in parts.items():
                interval = average_draws(part, self.seed, self.level)
                rows.append(
                    {"encoder": encoder, **self._describe(encoder, subset), "metric": metric}
                    | {"value": interval.value, "low": max(interval.low, 0.0), "high": min(interval.high, 1.0)}
                    | {"level": self.level, "replicates": self.replicates, "undefined": interval.undefined}
                )
        return pd.DataFrame(rows)

    def differences(self, reference: str) -> pd.DataFrame:
        """Return every other encoder minus `reference`, on the same draws and the same resampled patients, with p.

        p is two-sided; p_holm is p corrected (Holm 1979) for all encoders and subsets of the same metric.  Raises
        UsageError for an unknown reference.
        """
        if reference not in self.encoders:
            raise UsageError(f"no encoder named {reference!r} in this comparison; there are {', '.join(self.encoders)}")
        rows = []
        for (encoder, subset), parts in self.parts.items():
            if encoder == reference:
                continue
            for metric, part in parts.items():
                gap = subtract_draws(part, self.parts[reference, subset][metric], self.seed, self.level)
                rows.append(
                    {"encoder": encoder, "reference": reference, **self._describe(encoder, subset), "metric": metric}
                    | {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p, "p_holm": gap.p}
                    | {"level": self.level, "replicates": self.replicates, "undefined": gap.undefined}
                )
        table = pd.DataFrame(rows)
        if not table.empty:
            table["p_holm"] = table.groupby("metric", sort=False)["p"].transform(correct_holm)
        return table

    def draw_table(self) -> pd.DataFrame:
        """Return every single draw: its films, its probe's strength and notes, and each metric on all films."""
        rows = []
        for (encoder, subset), cells in self.cells.items():
            for place, cell in enumerate(cells):
                values = {metric: part.value_D[place] for metric, part in self.parts[encoder, subset].items()}
                rows.append(
                    {"encoder": encoder, "subset": subset, "draw": cell.draw.draw, "seed": cell.draw.seed}
                    | {"n_train_films": len(cell.draw.film_index), "strength": _average_strength(cell.strength_C)}
                    | values
                    | {"notes": "; ".join(cell.notes)}
                )
        return pd.DataFrame(rows)

    def as_markdown(self, metric: str = "auroc") -> str:
        """Return a Markdown table of one metric, encoders down, subsets across, under a line that says what it is."""
        table = self.table()
        chosen = table[table["metric"] == metric]
        if chosen.empty:
            raise UsageError(f"no metric named {metric!r}; there are {', '.join(table['metric'].unique())}")
        heads = []
        for subset in self.subsets:
            about = self._describe(self.encoders[0], subset)
            heads.append(f"{subset} ({about['n_train_films']:.0f} films, {_count(about['draws'], 'draw')})")
        lines = [self.caption(metric), "", f"| encoder | {' | '.join(heads)} |", f"|{' --- |' * (len(heads) + 1)}"]
        for encoder in self.encoders:
            rows = chosen[chosen["encoder"] == encoder].set_index("subset").loc[list(self.subsets)]
            texts = [f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in rows.itertuples()]
            lines.append(f"| {encoder} | {' | '.join(texts)} |")
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def caption(self, metric: str) -> str:
        """Return the line that goes with any number of this comparison: data, split, films, interval, seed."""
        return (
            f"{metric} of a linear probe on {self.data_set}, {self.split} split: "
            f"{_count(len(self.patient_M), 'film')} of {_count(len(np.unique(self.patient_M)), 'patient')}. "
            f"Mean over label draws [{self.level:.0%} interval: bootstrap over patients and, where there are several, "
            f"draws; {self.replicates} replicates; seed {self.seed}]."
        )

    def _statistic(self, score_MC: NDArray[np.float32]) -> Statistic:
        build = build_multiclass_statistic if self.task == "multiclass" else build_multilabel_statistic
        return build(self.label, score_MC, self.class_names)

    def _describe(self, encoder: str, subset: str) -> dict[str, str | int | float]:
        films = [cell.draw.film_index for cell in self.cells[encoder, subset]]
        n_films = float(np.mean([len(index) for index in films]))
        return {
            "subset": subset,
            "fraction": n_films / self.train_total,
            "n_train_films": n_films,
            "n_train_patients": float(np.mean([len(np.unique(self.train_patient_N[index])) for index in films])),
            "draws": len(films),
            "data_set": self.data_set,
            "split": self.split,
            "n_test": len(self.patient_M),
            "n_test_patients": len(np.unique(self.patient_M)),
            "seed": self.seed,
            "interval_covers": "patients and draws" if len(films) > 1 else "patients",
        }


def compare_encoders(
    feature_sets: Mapping[str, ArrayLike],
    label: ArrayLike,
    class_names: Sequence[str],
    patient_N: ArrayLike,
    split_N: ArrayLike,
    *,
    data_set: str,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    film_counts: Sequence[int] = (),
    first_draw: ArrayLike | None = None,
    draws: int = 5,
    one_film_per_patient: bool = False,
    seed: int = 0,
    task: Task = "multiclass",
    evaluate_on: Literal["val", "test"] = "test",
    replicates: int = 1000,
    level: float = 0.95,
    executor: Executor | None = None,
    on_probe: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Fit a linear probe for every encoder and label draw, and keep what each predicts for the evaluated split.

    feature_sets: by encoder, [N, D] of the same N films in the same order; raw pixels are an encoder like any other.
    label: class index [N], or findings [N, L] of 1, 0 and NaN for task "multilabel".  split_N: of `records.SPLITS`.
    fractions: parts of the training patients; film_counts: further subsets of that many films, with
    `one_film_per_patient` one of each patient.  Each is drawn `draws` times (1.0 once: there is only one such draw).
    Draw d has the same seed at every size, so the smaller lies inside the larger, and is the same for all encoders.
    first_draw: a published subset, as indices into the N films: it takes the place of draw 0 in the one of film_counts
    that is its size; the other draws - 1 stay random.
    data_set: its name, for captions.  executor: runs the probes; None runs them here, with the same result.
    on_probe: called with the number of probes done and of all probes, after each.
    Raises UsageError where arrays do not fit, a patient stands in two splits, or first_draw leaves the training split
    or has the size of no film count.
    """
    label_array = check_findings(label, class_names) if task == "multilabel" else check_classes(label, class_names)
    patient, split = np.asarray(patient_N), np.asarray(split_N)
    features = {name: np.asarray(feature) for name, feature in feature_sets.items()}
    _check_films(features, len(label_array), patient, split, evaluate_on)
    train, evaluated = np.flatnonzero(split == "train"), np.flatnonzero(split == evaluate_on)
    plan = plan_draws(
        patient, label_array, train, fractions, film_counts, draws, one_film_per_patient, seed, first_draw
    )
    names = tuple(class_names)
    cells = _probe_all(features, label_array, patient, plan, evaluated, names, executor, on_probe)
    subsets = tuple(dict.fromkeys(draw.subset for draw in sorted(plan, key=lambda draw: len(draw.film_index))))
    return Comparison(
        data_set=data_set,
        split=evaluate_on,
        task=task,
        class_names=names,
        seed=seed,
        replicates=replicates,
        level=level,
        train_patient_N=patient,
        train_total=len(train),
        label=label_array[evaluated],
        patient_M=patient[evaluated],
        cells={
            (name, subset): tuple(cell for cell in cells if cell.encoder == name and cell.draw.subset == subset)
            for name in features
            for subset in subsets
        },
        encoders=tuple(features),
        subsets=subsets,
    )


def plan_draws(
    patient_N: NDArray[np.generic],
    label: NDArray[np.generic],
    train: IndexArray,
    fractions: Sequence[float],
    film_counts: Sequence[int] = (),
    draws: int = 5,
    one_film_per_patient: bool = False,
    seed: int = 0,
    first_draw: ArrayLike | None = None,
) -> list[LabelDraw]:
    """Return every label draw of a comparison, from the films `train`; see `compare_encoders` for what they are."""
    plan = _plan_draws(patient_N, label, train, fractions, film_counts, draws, one_film_per_patient, seed)
    if len({(draw.subset, draw.draw) for draw in plan}) < len(plan):
        raise UsageError("two label subsets have the same name")
    return plan if first_draw is None else _replace_first_draw(plan, first_draw, train)


def _probe_all(
    features: Mapping[str, NDArray[np.generic]],
    label: NDArray[np.generic],
    patient_N: NDArray[np.generic],
    plan: Sequence[LabelDraw],
    evaluated: IndexArray,
    names: tuple[str, ...],
    executor: Executor | None,
    on_probe: Callable[[int, int], None] | None,
) -> list[Cell]:
    waiting: list[Callable[[], Cell]] = []
    for encoder, feature_ND in features.items():
        feature_MD = feature_ND[evaluated]
        for draw in plan:
            films = draw.film_index
            arguments = (encoder, draw, feature_ND[films], label[films], patient_N[films], feature_MD, names)
            waiting.append(
                executor.submit(_probe_draw, *arguments).result if executor else partial(_probe_draw, *arguments)
            )
    cells: list[Cell] = []
    for take in waiting:
        cells.append(take())
        if on_probe:
            on_probe(len(cells), len(waiting))
    return cells


def _probe_draw(
    encoder: str,
    draw: LabelDraw,
    feature_ND: NDArray[np.generic],
    label: NDArray[np.generic],
    patient_N: NDArray[np.generic],
    feature_MD: NDArray[np.generic],
    class_names: tuple[str, ...],
) -> Cell:
    probe: LinearProbe = fit_linear_probe(feature_ND, label, patient_N, names=class_names, seed=draw.seed)
    # As a benchmark keeps them, so that both give the same numbers.
    score_MC = probe.predict_scores(feature_MD).astype(np.float32)
    return Cell(encoder, draw, score_MC, probe.strength_C, probe.notes)


def _plan_draws(
    patient_N: NDArray[np.generic],
    label: NDArray[np.generic],
    train: IndexArray,
    fractions: Sequence[float],
    film_counts: Sequence[int],
    draws: int,
    one_film_per_patient: bool,
    seed: int,
) -> list[LabelDraw]:
    if draws < 1:
        raise UsageError("a comparison needs at least one draw")
    plan = []
    for fraction in fractions:
        for draw in range(1 if fraction >= 1.0 else draws):
            index = draw_label_fraction(patient_N[train], label[train], fraction=fraction, seed=seed + draw)
            plan.append(LabelDraw(f"{100 * fraction:g} %", draw, train[index], seed + draw))
    for films in film_counts:
        for draw in range(draws):
            index = draw_label_fraction(
                patient_N[train],
                label[train],
                films=films,
                seed=seed + draw,
                one_film_per_patient=one_film_per_patient,
            )
            plan.append(LabelDraw(_count(films, "film"), draw, train[index], seed + draw))
    return plan


def _replace_first_draw(plan: Sequence[LabelDraw], first_draw: ArrayLike, train: IndexArray) -> list[LabelDraw]:
    films = np.unique(np.asarray(first_draw, dtype=np.intp))
    outside = int((~np.isin(films, train)).sum())
    if outside or not len(films):
        raise UsageError(f"the first draw must hold training films only: {outside} of {len(films)} are not")
    name = _count(len(films), "film")
    if name not in {draw.subset for draw in plan}:
        raise UsageError(f"the first draw holds {name}, which is none of the film counts asked for")
    return [replace(draw, film_index=films) if (draw.subset, draw.draw) == (name, 0) else draw for draw in plan]


def _check_films(
    features: Mapping[str, NDArray[np.generic]],
    film_count: int,
    patient_N: NDArray[np.generic],
    split_N: NDArray[np.generic],
    evaluate_on: str,
) -> None:
    if not features:
        raise UsageError("a comparison needs at least one encoder's features")
    lengths = {"patients": len(patient_N), "splits": len(split_N)} | {name: len(f) for name, f in features.items()}
    for what, length in lengths.items():
        if length != film_count:
            raise UsageError(f"{what}: {length} rows do not fit {film_count} labelled films")
    if evaluate_on not in SPLITS[1:]:
        raise UsageError(f"probes are evaluated on val or test, not on {evaluate_on!r}")
    if not (np.any(split_N == "train") and np.any(split_N == evaluate_on)):
        raise UsageError(f"a comparison needs films in both the train and the {evaluate_on} split")
    shared = np.intersect1d(patient_N[split_N == "train"], patient_N[split_N == evaluate_on])
    if len(shared):
        raise UsageError(f"{_count(len(shared), 'patient')} in both train and {evaluate_on}: split by patient first")


def _average_strength(strength_C: FloatArray) -> float:
    """Geometric mean over the columns that were fitted, NaN where none was."""
    return float(np.exp(mean_known(np.log(strength_C), axis=0)))


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
