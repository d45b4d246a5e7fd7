"""A benchmark's Markdown: numbers with their provenance, nothing that breaks a table."""

import re
from dataclasses import replace

import numpy as np
import pytest

from benchmark_results import resample
from chess_cxr.benchmarking.page.text import render_card_section, render_tables
from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, Failure, PredictionSet, TaskFilms
from chess_cxr.benchmarking.tables import BenchmarkTables, build_benchmark_tables
from chess_cxr.records import UsageError


@pytest.fixture(scope="module")
def results() -> BenchmarkResults:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, (40, 1)).astype(float)
    uid = np.array([f"{number:032x}" for number in range(40)])
    films = EvaluatedFilms(uid, uid, label, {})
    notes = ("ours was pre-trained, without labels, on 3 of these 40 films.", "other was pre-trained on 2.")
    task = TaskFilms("nodule", "small | set", "multilabel", ("nodule",), films, films, 50, notes)
    sets = []
    for encoder, strength in (("scratch", 0.1), ("ours", 3.0)):
        for subset, draws, count in (("10 %", 2, 5), ("50 %", 2, 25), ("100 %", 1, 50)):
            for draw in range(draws):
                score = 1 / (1 + np.exp(-strength * (label - 0.5) - generator.normal(size=label.shape)))
                score = score.astype(np.float32)
                where = ("nodule", encoder, "linear", subset)
                sets.append(PredictionSet(*where, count / 50, draw, draw, count, count, score, score))
    failure = Failure("nodule", "broken", "linear", "", -1, "no | weights")
    about = {"scratch": "nothing", "broken": "?", "ours": "MoCo v2"}
    return BenchmarkResults({"nodule": task}, tuple(sets), (failure,), about, "ours", 7, 100)


@pytest.fixture(scope="module")
def tables(results: BenchmarkResults) -> BenchmarkTables:
    return build_benchmark_tables(results, resample(results))


@pytest.fixture(scope="module")
def text(results: BenchmarkResults, tables: BenchmarkTables) -> str:
    return render_tables(results, tables, "chess-cxr benchmark suite.toml")


def test_the_papers_form_has_the_fewest_and_all_labels_and_the_differences_below(text: str) -> None:
    paper = text.split("## ")[1].splitlines()
    head, _, *rows = [line for line in paper if line.startswith("|")]
    assert head == "| encoder | nodule, 10 % (5 films, 2 draws) | nodule, 100 % (50 films, 1 draw) |"
    assert [row.split(" | ")[0] for row in rows] == [
        "| scratch", "| broken", "| ours", "| scratch − ours", "| broken − ours",
    ]  # fmt: skip
    assert re.search(r"−0\.\d{3} \[−0\.\d{3}, [−+]0\.\d{3}\], p 0\.\d{3} \(0\.\d{3}\)", rows[3])
    assert rows[1] == "| broken | – | – |"


def test_every_number_says_where_it_comes_from(text: str, tables: BenchmarkTables) -> None:
    assert "small \\| set, test split: 40 films of 40 patients; 50 labelled training films; nodule; seed 7" in text
    assert "95% interval: bootstrap over test patients and, where there are several, draws; 100 replicates" in text
    value = tables.summary.query("encoder == 'ours' and subset == '50 %' and metric == 'auroc'")["value"].iloc[0]
    assert f"{value:.3f} [" in text.split("## nodule")[1]
    assert text.endswith("    chess-cxr benchmark suite.toml\n")


def test_no_row_of_a_table_is_broken_by_what_stands_in_it(text: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert "| nodule | broken | linear | all | all | no \\| weights |" in text


def test_the_card_tells_of_one_encoder_and_what_to_know_of_it(
    results: BenchmarkResults, tables: BenchmarkTables
) -> None:
    section = render_card_section(results, tables, "ours")
    assert "ours was pre-trained, without labels, on 3 of these 40 films." in section
    assert "other was pre-trained" not in section
    assert section.count("| scratch − ours | ") == 3 and "| 50 % | 25 | 2 | linear | AUROC |" in section
    assert "| scratch − ours | 50 % | linear | " in render_card_section(results, tables, "scratch")
    with pytest.raises(UsageError, match="no predictions of an encoder named 'broken'.*there are scratch, ours"):
        render_card_section(results, tables, "broken")


def test_generated_films_are_called_so_first(results: BenchmarkResults, tables: BenchmarkTables) -> None:
    generated = replace(results, synthetic=True)
    assert render_card_section(generated, tables, "ours").startswith("**SYNTHETIC")
    assert "**SYNTHETIC" in render_tables(generated, tables, "").split("##")[0]
    assert "SYNTHETIC" not in render_tables(results, tables, "")
