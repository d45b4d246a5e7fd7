"""Parts of the page that only some suites have: the audit, sites, recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from chess_cxr.benchmarking.page.blocks import Block, Cell, Grid, Part, Picture, split_grid
from chess_cxr.benchmarking.page.findings import Tables, count, list_rows, say, say_value, select
from chess_cxr.benchmarking.predictions import BenchmarkResults
from chess_cxr.report.pictures import embed_picture


def build_extra_parts(results: BenchmarkResults, tables: Tables, sheets: Mapping[tuple[str, str], bytes]) -> list[Part]:
    """Return these parts in the order of the page; empty ones have no blocks."""
    return [
        build_picture_part(results, tables, sheets),
        build_recipe_part(results, tables),
        build_sites_part(results, tables),
        build_audit_part(results, tables),
    ]


def build_audit_part(results: BenchmarkResults, tables: Tables) -> Part:
    """What can be read from each embedding, what AUROC is left without it, and the largest subgroup gaps."""
    table = tables.get("audit", pd.DataFrame())
    blocks = []
    for task in results.tasks:
        rows = select(table, task=task)
        if len(rows):
            blocks += _build_audit_blocks(results, task, rows)
    intro = (
        "Three numbers that do not follow from each other. What can be read from an embedding need not be used by a "
        "head, and a head without it may still be worse for some people."
    )
    return Part("audit", "What the embeddings know", (Block(text=(intro,)), *blocks) if blocks else ())


def _build_audit_blocks(results: BenchmarkResults, task: str, rows: pd.DataFrame) -> list[Block]:
    read = select(rows, number="read")
    attributes = list(dict.fromkeys(read["attribute"]))
    of = {row.attribute: row.of for row in list_rows(read)}
    heads = [Cell("encoder"), *(Cell(name, (of[name],)) for name in attributes), Cell("left"), Cell("lost")]
    gaps = select(rows, number="gap")
    gap_heads = [Cell("encoder"), *(Cell(name) for name in dict.fromkeys(gaps["attribute"]))]
    grid, gap_grid = [], []
    for encoder in dict.fromkeys(rows["encoder"]):
        mine = select(rows, encoder=encoder)
        cells = [_say_cell(select(mine, number="read", attribute=name)) for name in attributes]
        cells += [_say_cell(select(mine, number="left")), _say_cell(select(mine, number="lost"), "+.3f")]
        grid.append((Cell(encoder), *cells))
        own = [select(mine, number="gap", attribute=head.text) for head in gap_heads[1:]]
        gap_grid.append((Cell(encoder), *(_say_cell(one, "+.3f", name_group=True) for one in own)))
    caption = (
        "AUROC of a linear probe that reads each attribute from the features, on the "
        f"{results.split} films [{results.level:.0%}]. Left: AUROC of the findings after all of these are regressed "
        "out of the features; lost: its difference to the AUROC with them. A finding that goes with an attribute "
        "loses with it, whether or not a head relied on it."
    )
    gap_caption = (
        "Gap of AUROC between a group and the rest, linear head, all labels: of each attribute the group farthest "
        "from the rest, p after Holm over the groups. That a gap is not shown does not mean that there is none."
    )
    blocks = split_grid(f"{task}: read, and left", Grid(tuple(heads), tuple(grid), caption)) if attributes else []
    if len(gaps):
        blocks += split_grid(f"{task}: largest gaps", Grid(tuple(gap_heads), tuple(gap_grid), gap_caption))
    return blocks


def _say_cell(rows: pd.DataFrame, form: str = ".3f", name_group: bool = False) -> Cell:
    if rows.empty:
        return Cell("–")
    row: Any = list_rows(rows)[0]
    small = [f"[{say(row.low, form)}, {say(row.high, form)}]"] if form != ".3f" else [say_value(row).split(" ", 1)[1]]
    small += [f"{row.of}, p {say(row.p)}"] if name_group else []
    return Cell(say(row.value, form), tuple(small))


def build_sites_part(results: BenchmarkResults, tables: Tables) -> Part:
    """The matrix of each group of sites, and what calibration and thresholds are worth elsewhere."""
    table = tables.get("sites", pd.DataFrame())
    if table.empty:
        return Part("sites", "Train here, test there", ())
    blocks = []
    for (group, head), rows in table.groupby(["group", "head"], sort=False):
        places = list(dict.fromkeys(rows["tested_on"]))
        grid = []
        for (encoder, source), mine in rows.groupby(["encoder", "trained_on"], sort=False):
            cells = [_say_transfer(select(mine, tested_on=place)) for place in places]
            grid.append((Cell(str(encoder), (f"trained on {source}",)), *cells))
        heads = (Cell("encoder"), *(Cell(f"tested on {place}") for place in places))
        caption = (
            f"AUROC, {head} head, all labels, on the {results.split} films of each site [{results.level:.0%}, over "
            "patients]. Δ: to the head of that site itself, on the same patients, p uncorrected. ECE: as it is, then "
            "after a temperature from the val films of the site that was trained on."
        )
        blocks += split_grid(f"{group}, {head} head", Grid(heads, tuple(grid), caption))
        blocks += _build_threshold_blocks(results, tables, str(group), str(head))
    return Part("sites", "Train here, test there", tuple(blocks))


def _say_transfer(rows: pd.DataFrame) -> Cell:
    def find(metric: str) -> Any:
        found = list_rows(select(rows, metric=metric))
        return found[0] if found else None

    area = find("auroc")
    if area is None:
        return Cell("–")
    value, interval = say_value(area).split(" ", 1)
    small = [interval]
    if area.drop == area.drop:  # not NaN
        small.append(f"Δ {say(area.drop, '+.3f')} [{say(area.drop_low, '+.3f')}, {say(area.drop_high, '+.3f')}]")
        small.append(f"p {say(area.p)}")
    before, after = find("ece"), find("ece, temperature of the source")
    if before is not None:
        small.append(f"ECE {say(before.value)}" + ("" if after is None else f" → {say(after.value)}"))
    return Cell(value, tuple(small))


def _build_threshold_blocks(results: BenchmarkResults, tables: Tables, group: str, head: str) -> list[Block]:
    table = tables.get("site_thresholds", pd.DataFrame())
    rows = select(table, group=group, head=head, encoder=results.reference)
    grid = [
        (
            Cell(row.name, (row.rule,)),
            Cell(f"{row.from_site} → {row.to_site}"),
            *(
                Cell(
                    say(getattr(row, name)),
                    (
                        f"change {say(getattr(row, name + '_change'), '+.3f')} "
                        f"[{say(getattr(row, name + '_change_low'), '+.3f')}, "
                        f"{say(getattr(row, name + '_change_high'), '+.3f')}]",
                    ),
                )
                for name in ("sensitivity", "specificity")
            ),
            Cell("", (row.warning,) if row.warning else (), "warn" if row.warning else ""),
        )
        for row in (list_rows(rows) if len(rows) else [])
        if row.from_site != row.to_site
    ]
    if not grid:
        return []
    heads = tuple(map(Cell, ("", "carried", "sensitivity", "specificity", "")))
    caption = (
        f"{results.reference}, {head} head: thresholds chosen on the val films of the site that was trained on, at "
        f"another site. Change: against the threshold of that site's own val films [{results.level:.0%}]."
    )
    return [Block(f"{group}: thresholds carried, {head} head", grid=Grid(heads, tuple(grid), caption))]


def build_recipe_part(results: BenchmarkResults, tables: Tables) -> Part:
    """Recipes down, label subsets across: mean over runs with its interval and spread, and the difference."""
    table, gaps = (tables.get(name, pd.DataFrame()) for name in ("recipes", "recipe_differences"))
    blocks = []
    for (task, head), rows in select(table, metric="auroc").groupby(["task", "head"], sort=False) if len(table) else ():
        subsets = list(dict.fromkeys(rows["subset"]))
        grid = []
        for name, mine in rows.groupby("recipe", sort=False):
            cells = []
            for subset in subsets:
                gap = select(gaps, task=str(task), head=str(head), subset=subset, recipe=str(name), metric="auroc")
                cells.append(_say_recipe(select(mine, subset=subset), gap))
            runs = int(mine["runs"].max())
            grid.append((Cell(str(name), (f"{runs} run{'' if runs == 1 else 's'}",)), *cells))
        heads = (Cell("recipe"), *(Cell(subset) for subset in subsets))
        caption = (
            f"AUROC, {results.split} split, mean over runs [{results.level:.0%} over patients, draws and, by Student's "
            "t, pre-training seeds]; a recipe of one run has no interval over seeds. SD: over runs. Δ: to the recipe "
            f"of {results.reference}, p after Holm over recipes, heads and subsets of the task."
        )
        blocks += split_grid(f"{task}, {head} head", Grid(heads, tuple(grid), caption))
    return Part("recipes", "Recipes over pre-training seeds", tuple(blocks))


def _say_recipe(rows: pd.DataFrame, gap: pd.DataFrame) -> Cell:
    if rows.empty:
        return Cell("–")
    row = list_rows(rows)[0]
    value, interval = say_value(row).split(" ", 1)
    small = [interval]
    if row.runs > 1:
        small.append(f"SD {say(row.spread)}, {say(row.smallest)} … {say(row.largest)}")
    if len(gap):
        one = list_rows(gap)[0]
        small.append(f"Δ {say(one.value, '+.3f')} [{say(one.low, '+.3f')}, {say(one.high, '+.3f')}]")
        small.append(f"p {say(one.p_holm)}")
    return Cell(value, tuple(small))


def build_picture_part(results: BenchmarkResults, tables: Tables, sheets: Mapping[tuple[str, str], bytes]) -> Part:
    """Bone suppression and nodule generation: metrics down, encoders across, and sheets of test films."""
    table, gaps = (tables.get(name, pd.DataFrame()) for name in ("pictures", "picture_differences"))
    blocks = []
    for (task, kind), rows in table.groupby(["task", "kind"], sort=False) if len(table) else ():
        encoders = list(dict.fromkeys(rows["encoder"]))
        grid = []
        for metric in dict.fromkeys(rows["metric"]):
            mine, other = (select(one, task=str(task), metric=str(metric)) for one in (table, gaps))
            cells = [_say_picture(select(mine, encoder=name), select(other, encoder=name)) for name in encoders]
            grid.append((Cell(str(metric).replace("_", " ")), *cells))
        first = list_rows(rows)[0]
        caption = (
            f"Means over {count(first.n_test, 'test film')} of {count(first.n_test_patients, 'patient')} "
            f"[{results.level:.0%}, over patients; the training is one]. Δ: to {results.reference}, on the same films, "
            "p after Holm over the encoders. What each metric means stands in the documentation of the task."
        )
        shown = tuple(
            Picture(embed_picture(png), f"{task}, test films of {encoder}", (f"{encoder}: test films.",))
            for (name, encoder), png in sheets.items()
            if name == task
        )
        heads = (Cell("metric"), *(Cell(name) for name in encoders))
        about = {"bones": "Bone suppression", "nodules": "Nodule generation"}[str(kind)]
        blocks += [*split_grid(f"{task}: {about}", Grid(heads, tuple(grid), caption)), Block(sheets=shown)]
    return Part("pictures", "Bones and nodules", tuple(blocks))


def _say_picture(rows: pd.DataFrame, gap: pd.DataFrame) -> Cell:
    if rows.empty:
        return Cell("–")
    value, interval = say_value(list_rows(rows)[0]).split(" ", 1)
    small = [interval]
    if len(gap):
        one = list_rows(gap)[0]
        small.append(f"Δ {say(one.value, '+.3f')} [{say(one.low, '+.3f')}, {say(one.high, '+.3f')}]")
        small.append(f"p {say(one.p_holm)}")
    return Cell(value, tuple(small))
