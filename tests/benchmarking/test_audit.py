"""What an embedding knows beside the findings: three numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.audit import COLUMNS, GAP, LEFT, LOST, READ, build_known_columns, describe_attributes
from chess_cxr.benchmarking.films import open_task
from chess_cxr.benchmarking.output import write_benchmark
from chess_cxr.benchmarking.run import BenchmarkRun, run_benchmark
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.encoders.embed import embed
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multilabel
from chess_cxr.evaluation.residuals import fit_residuals

MakeSuite = Callable[..., Suite]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture
def audited(make_quadrants: MakeSuite, cells: Path) -> tuple[BenchmarkRun, pd.DataFrame]:
    run = run_benchmark(make_quadrants(audit=True), cells)
    assert not run.results.failures
    return run, run.extra["audit"].set_index(["task", "encoder", "number", "attribute"])


def test_what_stands_in_the_pixels_can_be_read_and_what_does_not_cannot(
    audited: tuple[BenchmarkRun, pd.DataFrame],
) -> None:
    value = audited[1]["value"]
    assert value["seen", "pixels", READ, "site"] > 0.95 and value["seen", "pixels", READ, "sex"] > 0.95
    assert 0.3 < value["seen", "pixels", READ, "age"] < 0.7
    attributes = set(audited[1].reset_index().query("number == 'read'")["attribute"])
    assert attributes == {"site", "sex", "age"}  # all films are PA and of no known manufacturer
    told = set(audited[1].reset_index()["encoder"])
    assert told == {"pixels", "coarse"}  # metadata and shuffled labels have no embedding of their own


def test_a_finding_that_rests_on_the_site_is_lost_without_it_and_another_stays(
    audited: tuple[BenchmarkRun, pd.DataFrame],
) -> None:
    value = audited[1]["value"]
    assert value["shortcut", "pixels", LEFT, "all"] < 0.65 and value["shortcut", "pixels", LOST, "all"] < -0.2
    assert value["seen", "pixels", LEFT, "all"] > 0.75 and abs(value["seen", "pixels", LOST, "all"]) < 0.05
    assert audited[1]["p"]["shortcut", "pixels", LOST, "all"] < 0.05


def test_what_is_left_is_what_a_probe_on_the_residuals_has(
    audited: tuple[BenchmarkRun, pd.DataFrame], make_quadrants: MakeSuite
) -> None:
    suite = make_quadrants()
    task = open_task("shortcut", suite.tasks["shortcut"], suite)
    feature = embed("pixels:4", task.store, task.chosen.rows)
    known, train = build_known_columns(task), np.flatnonzero(task.chosen.split == "train")
    left = fit_residuals(feature[train], known[train]).take_off(feature, known).astype(np.float32)
    probe = fit_linear_probe(left[train], task.chosen.label[train], task.chosen.patient[train], names=("shortcut",))
    auroc = compute_multilabel(task.chosen.label[task.test], probe.predict_scores(left[task.test]), ("shortcut",))
    assert audited[1]["value"]["shortcut", "pixels", LEFT, "all"] == pytest.approx(auroc["auroc"], abs=1e-6)


def test_the_gap_is_that_of_the_group_farthest_from_the_rest(audited: tuple[BenchmarkRun, pd.DataFrame]) -> None:
    row = audited[1].loc["seen", "pixels", GAP, "sex"]
    assert row["of"] in ("F", "M") and row["low"] <= row["value"] <= row["high"] and 0 <= row["p"] <= 1


def test_an_audit_again_computes_nothing_and_an_attribute_of_few_films_is_left_out(
    make_quadrants: MakeSuite, cells: Path, audited: tuple[BenchmarkRun, pd.DataFrame], tmp_path: Path
) -> None:
    again = run_benchmark(make_quadrants(audit=True), cells)
    assert again.computed == 0
    pd.testing.assert_frame_equal(again.extra["audit"], audited[0].extra["audit"])
    suite = make_quadrants()
    task = open_task("seen", suite.tasks["seen"], suite)
    found = describe_attributes(task)
    assert "view" not in found and set(found["age"][0]) == {-1, 0, 1}
    out = write_benchmark(again, tmp_path / "out", "", pictures=False).out
    assert list(pd.read_csv(out / "audit.csv").columns) == COLUMNS
    assert "What the embeddings know" in (out / "report.html").read_text("utf-8")
    card = (out / "card_section.md").read_text("utf-8").split("### What the embeddings know")[1]
    assert "| pixels | " in card and "| coarse | " not in card
