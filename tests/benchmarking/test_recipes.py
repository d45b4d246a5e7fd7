"""Several encoders as runs of one recipe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmark_results import drop_sets, make_results, resample
from chess_cxr.benchmarking.output import write_benchmark
from chess_cxr.benchmarking.recipes import build_recipe_tables
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import Suite, check_suite
from chess_cxr.benchmarking.tables import SetKey
from chess_cxr.evaluation.seed_spread import subtract_runs
from chess_cxr.records import UsageError

RECIPES = {"mine": ("ours", "ours 2"), "theirs": ("ImageNet", "ImageNet 2")}
STRENGTH = {"ours": 1.6, "ours 2": 1.4, "ImageNet": 0.9, "ImageNet 2": 1.0, "scratch": 0.1}


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    results = make_results(STRENGTH, replicates=100)
    return build_recipe_tables(RECIPES, results, resample(results))


def test_a_recipe_has_the_mean_and_the_spread_of_its_runs(tables: dict[str, pd.DataFrame]) -> None:
    results = make_results(STRENGTH, replicates=100)
    parts = resample(results)
    rows = tables["recipes"].query("task == 'pneumonia' and subset == '10 %' and metric == 'auroc'").set_index("recipe")
    values = [parts[SetKey("pneumonia", name, "linear", "10 %")]["auroc"].value_D.mean() for name in RECIPES["mine"]]
    row = rows.loc["mine"]
    assert row["value"] == pytest.approx(sum(values) / 2) and (row["smallest"], row["largest"]) == pytest.approx(
        (min(values), max(values))
    )
    assert row["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert row["runs"] == 2 and "seeds" in row["interval_covers"]
    assert rows.loc["scratch", "runs"] == 1 and "not the seed" in rows.loc["scratch", "interval_covers"]
    gap = tables["recipe_differences"].query(
        "task == 'pneumonia' and subset == '10 %' and metric == 'auroc' and recipe == 'theirs'"
    ).iloc[0]  # fmt: skip
    sides = [
        [parts[SetKey("pneumonia", name, "linear", "10 %")]["auroc"] for name in RECIPES[recipe]]
        for recipe in ("theirs", "mine")
    ]
    wanted = subtract_runs(*sides, seed=results.seed)
    assert (gap["value"], gap["low"], gap["p"]) == pytest.approx((wanted.value, wanted.low, wanted.p))
    assert gap["p_holm"] >= gap["p"] and gap["reference"] == "mine"


def test_a_run_that_failed_is_missing_from_its_recipe_alone() -> None:
    results = drop_sets(make_results(STRENGTH, replicates=50), encoder="ours 2")
    rows = build_recipe_tables(RECIPES, results, resample(results))["recipes"].set_index(["recipe", "task", "metric"])
    assert set(rows.loc["mine"]["runs"]) == {1} and set(rows.loc["theirs"]["runs"]) == {2}


def test_recipes_stand_in_the_folder_and_on_the_page(make_quadrants: Callable[..., Suite], tmp_path: Path) -> None:
    suite = make_quadrants(
        encoders={"a": "pixels:4", "b": "pixels:3", "other": "pixels:1"}, reference="a", fractions=(1.0,), floors=(),
        recipes={"both": ("a", "b")}, replicates=50,
    )  # fmt: skip
    run = run_benchmark(check_suite(suite, "here"), tmp_path / "cells")
    out = write_benchmark(run, tmp_path / "out", "", pictures=False).out
    assert set(pd.read_csv(out / "recipes.csv")["recipe"]) == {"both", "other"}
    assert set(pd.read_csv(out / "recipe_differences.csv")["recipe"]) == {"other"}
    assert "Recipes over pre-training seeds" in (out / "report.html").read_text("utf-8")
    for wrong in ({"both": ("a", "nobody")}, {"a": ("a", "b")}, {"x": ("a",), "y": ("a",)}):
        with pytest.raises(UsageError, match="recipes"):
            check_suite(replace(suite, recipes=wrong), "here")
