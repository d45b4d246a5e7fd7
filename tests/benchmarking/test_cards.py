"""Task cards, and results of several labs on one page."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.benchmark import benchmark
from chess_cxr.benchmarking.cards import build_card, check_cards, identify_card, tell_difference, write_cards
from chess_cxr.benchmarking.films import open_task
from chess_cxr.benchmarking.leaderboard import merge_results
from chess_cxr.benchmarking.output import write_benchmark
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import StoredFilm, open_store, write_store

MakeSuite = Callable[..., Suite]


@pytest.fixture
def suite(make_quadrants: MakeSuite) -> Suite:
    return make_quadrants(fractions=(1.0,), replicates=20, floors=("metadata",))


def test_a_task_may_have_fewer_draws_than_the_suite_and_its_card_says_so(make_quadrants: MakeSuite) -> None:
    suite = make_quadrants(fractions=(0.5, 1.0), draws=4, floors=())
    few = replace(suite.tasks["seen"], draws=2)
    task = open_task("seen", few, suite)
    assert [draw.draw for draw in task.plan if draw.subset == "50 %"] == [0, 1]
    assert build_card("seen", task, suite)["protocol"]["draws"] == 2


def rewrite(suite: Suite, place: Path, *, key: str = "", move: int = 0, flip: int = 0) -> Suite:
    """The same films as another lab has them: other hashes of names, in another order; some moved or labelled anew."""
    store = open_store(suite.tasks["seen"].store)
    rows, films = store.films.to_dict("records"), []
    for number, row in reversed(list(enumerate(rows))):
        uid, patient = (hashlib.sha256((key + row[name]).encode()).hexdigest()[:32] for name in ("uid", "patient"))
        labels = {name: row[name] for name in ("seen", "shortcut")}
        if number < flip:
            labels["seen"] = 1 - labels["seen"]
        split = "test" if number < move else row["split"]
        record = ImageRecord(uid, patient, split=split, labels=labels, site=row["site"], sex=row["sex"])
        films.append(StoredFilm(record, store.read_jpegs([number])[0], row["height"], row["width"]))
    write_store(place, films, ["seen", "shortcut"], "theirs")
    tasks = {name: replace(task, store=str(place)) for name, task in suite.tasks.items()}
    return replace(suite, tasks=tasks)


def card_of(suite: Suite) -> dict[str, object]:
    return build_card("seen", open_task("seen", suite.tasks["seen"], suite), suite)


def test_the_same_films_under_another_key_are_the_same_task(suite: Suite, tmp_path: Path) -> None:
    mine, theirs = card_of(suite), card_of(rewrite(suite, tmp_path / "theirs.lance", key="another key"))
    assert identify_card(mine) == identify_card(theirs) and tell_difference(mine, theirs) == ""
    for split in ("train", "val", "test"):
        assert mine["films"][split]["public"] == theirs["films"][split]["public"]
        assert mine["films"][split]["keyed"] != theirs["films"][split]["keyed"]
    assert mine["drawn"] != theirs["drawn"]


def test_the_public_hash_is_that_of_sorted_films_and_labels(suite: Suite) -> None:
    store = open_store(suite.tasks["seen"].store)
    lines = []
    for number, row in enumerate(store.films.to_dict("records")):
        if row["split"] == "val":
            lines.append(f"stored {hashlib.sha256(store.read_jpegs([number])[0]).hexdigest()} {row['seen']:g}")
    wanted = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    card = card_of(suite)
    assert card["films"]["val"]["public"] == wanted
    seen = store.films.query("split == 'val'")["seen"]
    assert card["films"]["val"]["positives"] == {"seen": int(seen.sum())} and card["films"]["val"]["films"] == len(seen)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"move": 3}, "another train split: 220 films of 220 patients in the card, 217 of 217 here"),
        ({"flip": 1}, "labels"),
    ],
)
def test_a_card_refuses_another_split_and_other_labels(
    suite: Suite, tmp_path: Path, changed: dict[str, int], told: str
) -> None:
    write_cards(suite, tmp_path / "cards")
    check_cards(suite, [tmp_path / "cards" / "seen.json"])
    other = rewrite(suite, tmp_path / "theirs.lance", **changed)
    with pytest.raises(UsageError, match=told):
        check_cards(other, [tmp_path / "cards" / "seen.json"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"draws": 3}, "protocol, draws: 2 in the card, 3 here"),
        ({"seed": 1}, "protocol, seed"),
        ({"on": "val"}, "protocol, scored: test in the card, val here"),
        ({"fractions": (0.5,)}, "protocol, fractions"),
    ],
)
def test_a_card_refuses_another_protocol(suite: Suite, tmp_path: Path, changed: dict[str, object], told: str) -> None:
    write_cards(suite, tmp_path / "cards")
    card = str(tmp_path / "cards" / "seen.json")
    with pytest.raises(UsageError, match=told):
        benchmark(replace(suite, **changed), tmp_path / "out", card=["pixels", card])
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.cells").exists()


def test_what_is_no_card_and_no_encoder_is_refused(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for card, told in (("nobody", "none of the encoders"), (str(tmp_path / "x.json"), "no task card")):
        with pytest.raises(UsageError, match=told):
            benchmark(suite, tmp_path / "out", card=card)


def test_a_card_names_no_film_and_can_be_read_by_people(suite: Suite, tmp_path: Path) -> None:
    write_cards(suite, tmp_path / "cards")
    text = (tmp_path / "cards" / "seen.json").read_text() + (tmp_path / "cards" / "seen.md").read_text()
    films = open_store(suite.tasks["seen"].store).films
    assert not any(name in text for name in (*films["uid"], *films["patient"]))
    assert "| val | 60 | 60 |" in text and "- draws: 2" in text


def test_results_of_two_labs_are_one_leaderboard(suite: Suite, tmp_path: Path) -> None:
    mine = replace(suite, encoders={"mine": "pixels:4"}, reference="mine")
    theirs = rewrite(suite, tmp_path / "theirs.lance", key="another key")
    theirs = replace(theirs, encoders={"theirs": "pixels:2"}, reference="theirs")
    moved = rewrite(suite, tmp_path / "moved.lance", move=3)
    moved = replace(moved, encoders={"moved": "pixels:2"}, reference="moved")
    for name, one in (("a", mine), ("b", theirs), ("c", moved)):
        write_benchmark(run_benchmark(one, tmp_path / "cells"), tmp_path / name, "", pictures=False)
    merged = merge_results([tmp_path / "a", tmp_path / "b" / "leaderboard.json", tmp_path / "a"], tmp_path / "board")
    assert len(merged.tasks) == 2  # seen and shortcut
    rows = merged.entries.query("metric == 'auroc'")
    assert sorted(set(rows["encoder"])) == ["floor: metadata", "mine", "theirs"]
    assert not rows.duplicated(["task", "encoder", "source", "subset"]).any()
    summary = pd.read_csv(tmp_path / "b" / "summary.csv").query("metric == 'auroc' and encoder == 'theirs'")
    assert sorted(rows.query("encoder == 'theirs'")["value"]) == pytest.approx(sorted(summary["value"]))
    page = (tmp_path / "board" / "report.html").read_text("utf-8")
    assert "mine" in page and "theirs" in page and "cannot be compared" not in page

    apart = merge_results([tmp_path / "board", tmp_path / "c"], tmp_path / "both")
    assert len(apart.tasks) == 4
    assert "cannot be compared: another train split" in (tmp_path / "both" / "report.html").read_text("utf-8")
    board = json.loads((tmp_path / "both" / "leaderboard.json").read_text())
    board["entries"][0]["task"] = board["entries"][-1]["task"]
    board["tasks"][board["entries"][0]["task"]]["labels"] = ["another"]
    (tmp_path / "wrong.json").write_text(json.dumps(board))
    with pytest.raises(UsageError, match="another than it was measured with"):
        merge_results([tmp_path / "wrong.json"], tmp_path / "never")
    assert not np.isnan(apart.entries.query("metric == 'auroc'")["value"]).any()
