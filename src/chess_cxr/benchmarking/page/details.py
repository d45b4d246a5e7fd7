"""What stands behind a benchmark's numbers, task by task: curves, calibration, operating points, subgroups, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.benchmarking.errors import find_worst_errors, select_largest_subset
from chess_cxr.benchmarking.page.blocks import Block, Cell, Grid, Picture
from chess_cxr.benchmarking.page.findings import count, list_rows, say, say_value
from chess_cxr.benchmarking.predictions import BenchmarkResults, PredictionSet, TaskFilms
from chess_cxr.benchmarking.roc_curves import MEAN, compute_roc_curves
from chess_cxr.evaluation.intervals import average_draws, replicate_draws
from chess_cxr.evaluation.metrics import Statistic, build_multiclass_statistic, build_multilabel_statistic
from chess_cxr.evaluation.operating_points import compute_operating_points, compute_transfer_costs
from chess_cxr.evaluation.ranked_scores import mean_known
from chess_cxr.evaluation.reliability import compute_reliability, fit_temperature
from chess_cxr.evaluation.scaling import Scaling
from chess_cxr.evaluation.subgroups import compute_subgroups
from chess_cxr.report.pictures import embed_picture, encode_png
from chess_cxr.report.plots import draw_reliability, draw_roc_curves, get_look, shorten

ROC_REPLICATES = 200
"""Of a band that is only looked at."""
POOLED = "all findings"


def build_roc_block(results: BenchmarkResults, task: TaskFilms, head: str) -> Block | None:
    """ROC curves: every encoder with fewest and with all labels, and each class of the reference with all labels."""
    subsets = results.list_subsets(task.name)
    figures = []
    of_reference = pd.DataFrame()
    for subset in dict.fromkeys([*subsets[:1], *subsets[-1:]]):
        curves = {}
        for encoder in results.encoders:
            sets = results.select_draws(task.name, encoder, head, subset)
            if sets:
                table = _compute_curves(results, task, sets)
                curves[encoder] = table[table["name"] == MEAN]
                if (encoder, subset) == (results.reference, subsets[-1]):
                    of_reference = table
        if curves:
            films = float(np.mean([one.n_train_films for one in _list_sets(results, task, subset)]))
            figures.append(draw_roc_curves(curves, list(results.encoders), f"{subset}, {count(films, 'film')}"))
    if not of_reference.empty and len(task.class_names) > 1:
        names = [name for name in task.class_names if name in set(of_reference["name"])]
        by_class = {name: of_reference[of_reference["name"] == name] for name in names}
        each = "class" if task.kind == "multiclass" else "finding"
        title = f"{shorten(results.reference)}, {subsets[-1]}, each {each}"
        figures.append(draw_roc_curves(by_class, task.class_names, title))
    if not figures:
        return None
    what = "classes against the rest" if task.kind == "multiclass" else "findings"
    caption = (
        f"Mean curve over label draws{f' and {what}' if len(task.class_names) > 1 else ''}; band: {results.level:.0%}, "
        f"point by point, over test patients and draws ({ROC_REPLICATES} replicates); {head} head."
    )
    return Block("ROC curves", figures=tuple(figures), figure_width=19, figure_caption=caption)


def _list_sets(results: BenchmarkResults, task: TaskFilms, subset: str) -> list[PredictionSet]:
    return [one for one in results.sets if (one.task, one.subset) == (task.name, subset)]


def _compute_curves(results: BenchmarkResults, task: TaskFilms, sets: Sequence[PredictionSet]) -> pd.DataFrame:
    return compute_roc_curves(task, sets, min(ROC_REPLICATES, results.replicates), results.seed, results.level)


def build_reliability_block(results: BenchmarkResults, task: TaskFilms, head: str) -> Block:
    """Reliability before and after temperature scaling with all labels, and what calibration errors there are."""
    if not len(task.val.uid_M):
        return Block("Calibration", text=("There is no val film to fit a temperature on.",))
    figures, rows, notes = [], [], []
    subsets = results.list_subsets(task.name)
    for subset in dict.fromkeys([*subsets[:1], *subsets[-1:]]):
        for encoder in results.encoders:
            sets = results.select_draws(task.name, encoder, head, subset)
            if not sets:
                continue
            scalings = [fit_temperature(task.val.label, one.val_MC, task.class_names, task.kind) for one in sets]
            notes += [f"{encoder}, {subset}: {note}" for scaling in scalings for note in scaling.notes]
            before = [one.test_MC.astype(np.float64) for one in sets]
            after = [scaling.apply(one) for scaling, one in zip(scalings, before, strict=True)]
            title = f"{encoder}, {subset}"
            colour, _ = get_look(encoder, list(results.encoders))
            # Of the fewest labels the reference alone is drawn; the table below has everyone.
            if subset == subsets[-1] or encoder == results.reference:
                points = _pool_reliability(task, before), _pool_reliability(task, after)
                figures.append(draw_reliability(*points, f"{shorten(encoder)}, {subset}", colour))
            rows.append(_build_calibration_row(results, task, title, scalings, before, after))
    heads = ("encoder, labels", "temperature", "ECE before", "ECE after", "Brier before", "Brier after")
    caption = (
        "Temperature: fitted to the val films of each draw (1 changes nothing, above 1 makes less sure), median of the "
        "draws. ECE: mean distance between probability and share over 15 bins, mean over draws, test films; above 0 "
        "with few films even for perfect probabilities, which is why resampling gives no honest interval of it. Brier: "
        f"mean squared error, {results.level:.0%} interval over test patients and draws."
    )
    what = "the likeliest class" if task.kind == "multiclass" else "each finding of each film"
    figure_caption = (
        f"How often {what} came true, against the probability given; ten bins of as many test films each, all draws "
        f"together, {results.level:.0%} intervals by patient. Grey: as predicted. Coloured: after temperature scaling."
    )
    grid = Grid(tuple(map(Cell, heads)), tuple(rows), caption) if rows else None
    return Block("Calibration", tuple(dict.fromkeys(notes)), (), (), tuple(figures), 15, figure_caption, grid)


def _pool_reliability(task: TaskFilms, score_DMC: Sequence[np.ndarray]) -> pd.DataFrame:
    """Bins of all draws, and for findings of all findings, together; a patient stays one patient in the intervals."""
    label = np.concatenate([task.test.label] * len(score_DMC))
    patient_N = np.tile(task.test.patient_M, len(score_DMC))
    score_NC, names = np.concatenate(score_DMC), task.class_names
    if task.kind == "multilabel":
        patient_N = np.repeat(patient_N, len(names))
        label, score_NC, names = label.reshape(-1, 1), score_NC.reshape(-1, 1), (POOLED,)
    return compute_reliability(label, score_NC, names, patient_N, task.kind)


def _build_calibration_row(
    results: BenchmarkResults,
    task: TaskFilms,
    title: str,
    scalings: Sequence[Scaling],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
) -> tuple[Cell, ...]:
    cells = [Cell(title), Cell(say(np.median([scaling.temperature for scaling in scalings]), ".2f"))]
    found = [
        replicate_draws(
            task.test.patient_M,
            [_build_calibration_statistic(task, scores) for scores in draws],
            results.replicates,
            results.seed,
        )
        for draws in (before, after)
    ]
    cells += [Cell(say(mean_known(parts["ece"].value_D, axis=0))) for parts in found]
    for parts in found:
        value, interval = say_value(average_draws(parts["brier"], results.seed, results.level)).split(" ", 1)
        cells.append(Cell(value, (interval,)))
    return tuple(cells)


def _build_calibration_statistic(task: TaskFilms, score_MC: np.ndarray) -> Statistic:
    build = build_multiclass_statistic if task.kind == "multiclass" else build_multilabel_statistic
    return build(task.test.label, score_MC, task.class_names, probabilities=True)


def build_operating_block(results: BenchmarkResults, task: TaskFilms) -> list[Block]:
    """Thresholds of the reference, chosen on val films: what they give on test films, and carried to another site."""
    sets = select_largest_subset(results, task.name, results.reference)
    if not sets:
        return []
    if not len(task.val.uid_M):
        return [Block("Operating points", text=("There is no val film to choose a threshold on.",))]
    one = sets[0]
    table = compute_operating_points(
        task.val.label, one.val_MC, task.test.label, one.test_MC, task.test.patient_M, task.class_names, task.kind,
        level=results.level,
    )  # fmt: skip
    heads = ("class", "chosen for", "threshold", "on val", "sensitivity", "specificity", "flagged", "")
    if task.kind == "multilabel":
        heads = ("finding", *heads[1:])
    rows = [
        (
            Cell(row.name),
            Cell(row.rule),
            Cell(say(row.threshold)),
            Cell(f"{say(row.val_sensitivity, '.2f')} / {say(row.val_specificity, '.2f')}"),
            Cell(say(row.sensitivity), (f"[{say(row.sensitivity_low)}, {say(row.sensitivity_high)}]",)),
            Cell(say(row.specificity), (f"[{say(row.specificity_low)}, {say(row.specificity_high)}]",)),
            Cell(say(row.flagged, ".0%")),
            Cell("", _list_remarks(row), "warn" if _list_remarks(row) else ""),
        )
        for row in list_rows(table)
    ]
    caption = (
        f"{results.reference}, {one.head} head, {one.subset} of the labels, draw {one.draw}. Thresholds come from the "
        "val films; sensitivity and specificity, on the test films, with intervals by patient. On val: sensitivity / "
        "specificity there. Flagged: share of test films at or above the threshold."
    )
    grid = Grid(tuple(map(Cell, heads)), tuple(rows), caption)
    return [Block("Operating points", grid=grid), *_build_transfer_block(results, task, one)]


def _list_remarks(row: Any) -> tuple[str, ...]:
    remarks = ["less than asked for"] if row.missed else []
    warning = str(row.warning)
    return tuple([*remarks, *([warning] if warning else [])])


def _build_transfer_block(results: BenchmarkResults, task: TaskFilms, one: PredictionSet) -> list[Block]:
    sites = [films.groups.get("site", np.full(len(films.uid_M), "")) for films in (task.val, task.test)]
    if len(set(np.unique(sites[1]).tolist()) - {""}) < 2:
        return []
    table = compute_transfer_costs(
        task.val.label, one.val_MC, sites[0], task.test.label, one.test_MC, sites[1], task.test.patient_M,
        task.class_names, task.kind, replicates=results.replicates, seed=results.seed, level=results.level,
    )  # fmt: skip
    rows = [
        (
            Cell(row.name),
            Cell(row.rule),
            Cell(f"{row.from_site} → {row.to_site}"),
            *(_say_change(row, name) for name in ("sensitivity", "specificity")),
            Cell("", (row.warning,) if row.warning else (), "warn" if row.warning else ""),
        )
        for row in list_rows(table)
        if row.from_site != row.to_site
    ]
    if not rows:
        return []
    heads = ("", "chosen for", "site", "sensitivity", "specificity", "")
    caption = (
        "A threshold of one site's val films on another site's test films. Change: against the threshold of that "
        f"site's own val films, on the same test films, {results.level:.0%} interval by patient."
    )
    return [Block("Thresholds carried to another site", grid=Grid(tuple(map(Cell, heads)), tuple(rows), caption))]


def _say_change(row: Any, name: str) -> Cell:
    change, low, high = (say(getattr(row, f"{name}_change{end}"), "+.3f") for end in ("", "_low", "_high"))
    return Cell(say(getattr(row, name)), (f"change {change} [{low}, {high}]",))


def build_subgroup_block(results: BenchmarkResults, task: TaskFilms) -> Block | None:
    """The reference in each subgroup of the test patients, against all others, with warnings."""
    sets = select_largest_subset(results, task.name, results.reference)
    known = {name: group_M for name, group_M in task.test.groups.items() if len(set(group_M.tolist()) - {""}) > 1}
    if not sets:
        return None
    if not known:
        return Block("Subgroups", text=("Of no attribute are there test films of two known groups.",))
    table = compute_subgroups(
        task.test.label, [one.test_MC for one in sets], task.class_names, task.kind, task.test.patient_M, known,
        replicates=results.replicates, seed=results.seed, level=results.level,
    )  # fmt: skip
    heads = ("group", "films", "AUROC", "gap to the rest", "p (Holm)", "")
    rows = [
        (
            Cell(row.group, (row.attribute.replace("_", " "),)),
            Cell(f"{row.films:,}", (count(row.patients, "patient"),)),
            Cell(say(row.value), (f"[{say(row.low)}, {say(row.high)}]",)),
            Cell(say(row.gap, "+.3f"), (f"[{say(row.gap_low, '+.3f')}, {say(row.gap_high, '+.3f')}]",)),
            Cell(say(row.p_holm)),
            Cell("", (row.warning,) if row.warning else (), "warn" if row.warning else ""),
        )
        for row in list_rows(table)
    ]
    caption = (
        f"{results.reference}, {sets[0].head} head, {sets[0].subset} of the labels, {count(len(sets), 'draw')}, "
        f"{results.split} split; {results.level:.0%} intervals over patients. A mean over classes counts those that "
        "group and rest both have. A gap that is not shown is not a gap that is not there."
    )
    return Block("Subgroups", grid=Grid(tuple(map(Cell, heads)), tuple(rows), caption))


def build_error_block(
    results: BenchmarkResults, task: TaskFilms, thumbnails: Mapping[str, np.ndarray], shown: int = 12
) -> Block | None:
    """The test films that the reference is most surely wrong about, with their pictures where there are any."""
    errors = find_worst_errors(results, task.name, shown)
    if not errors:
        return None
    pictures = []
    for error in errors:
        share = f"{error.probability:.0%}"
        if task.kind == "multiclass":
            said, truth = f"called {error.name}, {share}", f"is {error.truth}"
        else:
            said, truth = f"{error.name}: {share}", f"is {error.truth}"
        picture_HW = thumbnails.get(error.uid)
        source = "" if picture_HW is None else embed_picture(encode_png(picture_HW))
        pictures.append(Picture(source, f"test film, {said}, {truth}", (said, truth, error.uid[:10])))
    sets = select_largest_subset(results, task.name, results.reference)
    caption = (
        f"{results.reference}, {sets[0].head} head, {sets[0].subset} of the labels, mean probability of "
        f"{count(len(sets), 'draw')}; of {len(task.test.uid_M):,} test films. Below: start of the film's keyed hash."
    )
    if any(picture.source for picture in pictures) and not results.synthetic:
        caption += " These are films of people: pass this page on only where you may pass them on."
    return Block("Most surely wrong", pictures=tuple(pictures), picture_caption=caption)
