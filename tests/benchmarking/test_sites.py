"""Train here, test there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.films import open_task
from chess_cxr.benchmarking.output import write_benchmark
from chess_cxr.benchmarking.run import BenchmarkRun, run_benchmark
from chess_cxr.benchmarking.suite import Suite, TaskSpec, check_suite
from chess_cxr.encoders.embed import embed
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multilabel
from chess_cxr.evaluation.operating_points import ThresholdRule, choose_threshold
from chess_cxr.records import UsageError

NAMES = ("at a", "at b")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture
def suite(make_quadrants: Callable[..., Suite], quadrant_store: Path) -> Suite:
    tasks = {
        name: TaskSpec(str(quadrant_store), ("seen", "shortcut"), sites=(name[-1],), kind="multilabel")
        for name in NAMES
    }
    return make_quadrants(tasks=tasks, sites={"both": NAMES}, fractions=(1.0,), replicates=100, floors=("metadata",))


@pytest.fixture
def run(suite: Suite, cells: Path) -> BenchmarkRun:
    return run_benchmark(suite, cells)


def test_every_site_is_tested_with_the_head_of_every_site(run: BenchmarkRun, suite: Suite) -> None:
    table = run.extra["sites"].set_index(["encoder", "trained_on", "tested_on", "metric"]).sort_index()
    films, probes = {}, {}
    for name in NAMES:
        task = open_task(name, suite.tasks[name], suite)
        feature, train = embed("pixels:4", task.store, task.chosen.rows), task.chosen.split == "train"
        probes[name] = fit_linear_probe(
            feature[train], task.chosen.label[train], task.chosen.patient[train], names=("seen", "shortcut")
        )
        films[name] = (task, feature)
    for here in NAMES:
        for there in NAMES:
            task, feature = films[there]
            score = probes[here].predict_scores(feature[task.test]).astype(np.float32)
            wanted = compute_multilabel(task.chosen.label[task.test], score, ("seen", "shortcut"))
            row = table.loc["pixels", here, there, "auroc"]
            assert row["value"] == pytest.approx(wanted["auroc"]) and row["n_test"] == len(task.test)
            assert table.loc["pixels", here, there, "auroc/seen"]["value"] == pytest.approx(wanted["auroc/seen"])
            own = table.loc["pixels", there, there, "auroc"]["value"]
            drop = row["drop"]
            assert np.isnan(drop) if here == there else drop == pytest.approx(row["value"] - own)
    metrics = set(table.loc["pixels", "at a", "at b"].index)
    assert {"ece", "ece, temperature of the source", "brier, temperature of the target"} <= metrics


def test_thresholds_are_carried_from_val_films_of_the_source(run: BenchmarkRun, suite: Suite) -> None:
    table = run.extra["site_thresholds"].query(
        "encoder == 'pixels' and trained_on == 'at a' and to_site == 'at b' and name == 'seen' and rule == 'Youden'"
    )
    assert len(table) == 1 and table["from_site"].iloc[0] == "at a"
    one, other = (open_task(name, suite.tasks[name], suite) for name in NAMES)
    feature, train = embed("pixels:4", one.store, one.chosen.rows), one.chosen.split == "train"
    probe = fit_linear_probe(
        feature[train], one.chosen.label[train], one.chosen.patient[train], names=("seen", "shortcut")
    )
    score = probe.predict_scores(feature[one.val])[:, 0].astype(np.float32)
    threshold = choose_threshold(one.chosen.label[one.val, 0] == 1, score, ThresholdRule("youden"))
    assert table["threshold"].iloc[0] == pytest.approx(threshold)
    there = probe.predict_scores(embed("pixels:4", other.store, other.chosen.rows[other.test]))[:, 0]
    positive = other.chosen.label[other.test, 0] == 1
    assert table["sensitivity"].iloc[0] == pytest.approx((there[positive] >= threshold).mean(), abs=1e-6)


def test_the_matrix_stands_in_the_folder_and_on_the_page_and_is_kept(
    run: BenchmarkRun, suite: Suite, cells: Path, tmp_path: Path
) -> None:
    assert "floor: metadata" not in set(run.extra["sites"]["encoder"])  # its columns are those of one store
    again = run_benchmark(suite, cells)
    assert again.computed == 0
    pd.testing.assert_frame_equal(again.extra["sites"], run.extra["sites"])
    out = write_benchmark(again, tmp_path / "out", "", pictures=False).out
    assert len(pd.read_csv(out / "sites.csv")) and len(pd.read_csv(out / "site_thresholds.csv"))
    assert "Train here, test there" in (out / "report.html").read_text("utf-8")


def test_tasks_that_share_no_label_are_refused(suite: Suite, tmp_path: Path) -> None:
    tasks = {
        "at a": replace(suite.tasks["at a"], labels=("seen",)),
        "at b": replace(suite.tasks["at b"], labels=("shortcut",)),
    }
    with pytest.raises(UsageError, match="sites.both: the tasks share no labels"):
        run_benchmark(replace(suite, tasks=tasks), tmp_path)
    with pytest.raises(UsageError, match="sites.both: name two or more"):
        check_suite(replace(suite, sites={"both": ("at a",)}), "here")
