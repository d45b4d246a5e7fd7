"""What encoders have to beat: metadata, shuffled labels, bare pixels, untrained networks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.floors import NAMES, compute_metadata, list_floors, shuffle_labels
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import FLOORS, Suite, TaskSpec
from chess_cxr.benchmarking.tables import build_difference_table, build_summary_table
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import load_encoder

MakeSuite = Callable[..., Suite]


def test_metadata_are_what_a_slow_count_says() -> None:
    films = pd.DataFrame(
        {
            "age_years": [34.0, np.nan, 90.0], "sex": ["F", "", "M"], "view": ["PA", "PA", "AP"],
            "site": ["a", "b", "a"], "height": [512, 400, 512], "width": [512, 500, 256],
        }
    )  # fmt: skip
    found = compute_metadata(films)
    rows = []
    for row in films.to_dict("records"):
        age, known = row["age_years"], row["age_years"] == row["age_years"]
        line = [age / 100 if known else 0, float(not known)]
        line += [float(known and 10 * decade <= age < 10 * decade + 10) for decade in range(10)]
        for column in ("sex", "view", "site"):
            line += [float(row[column] == value) for value in sorted(set(films[column]))]
        rows.append(line)
    np.testing.assert_allclose(found[:, :-3], rows, atol=1e-6)
    shape = np.log(films["height"] / films["width"]).to_numpy()
    np.testing.assert_allclose(found[:, -1], (shape - shape.min()) / (shape.max() - shape.min()), atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1


def test_shuffled_labels_are_those_of_the_same_draw_dealt_anew() -> None:
    label = np.arange(40) % 4
    films = np.arange(5, 35)
    found = shuffle_labels(label, films, seed=3)
    outside = np.setdiff1d(np.arange(40), films)
    assert np.array_equal(found[outside], label[outside]) and not np.array_equal(found[films], label[films])
    assert np.array_equal(np.sort(found[films]), np.sort(label[films]))
    assert np.array_equal(found, shuffle_labels(label, films, seed=3))
    assert not np.array_equal(found, shuffle_labels(label, films, seed=4))


def test_what_a_suite_compares_already_is_no_floor_again(make_quadrants: MakeSuite) -> None:
    suite = make_quadrants()
    assert list_floors(suite) == ("metadata", "shuffled")  # pixels stand there, and have no network to leave untrained
    network = {"ours": "cxr-small"}
    assert list_floors(replace(suite, encoders=network, reference="ours")) == FLOORS
    scratch = network | {"scratch": "random"}
    assert list_floors(replace(suite, encoders=scratch, reference="ours")) == ("metadata", "shuffled", "pixels")
    assert list_floors(replace(suite, floors=())) == ()


def test_floors_show_what_is_read_without_an_encoder(make_quadrants: MakeSuite, tmp_path: Path) -> None:
    with_floors = run_benchmark(make_quadrants(draws=10, fractions=(0.5, 1.0), replicates=60), tmp_path)
    table = build_summary_table(with_floors.results, with_floors.replicates)
    auroc = table[(table["metric"] == "auroc") & (table["subset"] == "100 %")].set_index(["task", "encoder"])["value"]
    assert auroc["shortcut", NAMES["metadata"]] > 0.85 > 0.6 > auroc["seen", NAMES["metadata"]]
    assert auroc["seen", "pixels"] > 0.75
    assert abs(auroc["seen", NAMES["shuffled"]] - 0.5) < 0.2 and abs(auroc["shortcut", NAMES["shuffled"]] - 0.5) < 0.2
    shuffles = [one for one in with_floors.results.sets if one.encoder == NAMES["shuffled"] and one.task == "seen"]
    assert sorted(one.draw for one in shuffles if one.subset == "100 %") == list(range(10))

    without = run_benchmark(make_quadrants(draws=10, fractions=(0.5, 1.0), replicates=60, floors=()), tmp_path)
    assert without.computed == 0
    gaps = [build_difference_table(run.results, run.replicates) for run in (with_floors, without)]
    mine = gaps[0][~gaps[0]["floor"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, gaps[1])  # the correction of the encoders' p counts no floor
    assert set(gaps[0].loc[gaps[0]["floor"], "encoder"]) == {NAMES["metadata"], NAMES["shuffled"]}


@pytest.mark.real_films
def test_an_untrained_network_and_bare_pixels_are_floors_of_a_network(
    make_suite: MakeSuite, film_store: Path, tmp_path: Path
) -> None:
    net = load_encoder("random:test_resnet@64")
    folder = write_encoder(
        tmp_path / "net", net.module.state_dict(), net.architecture, net.contract, net.licence, net.training
    )
    tasks = {"kinds": TaskSpec(str(film_store), ("bacteria", "normal", "virus"), heads=("linear", "mlp"), steps=2)}
    suite = make_suite(
        encoders={"net": str(folder)}, reference="net", fractions=(1.0,), floors=FLOORS,
        tasks=tasks, replicates=20,
    )  # fmt: skip
    run = run_benchmark(suite, tmp_path / "cells")
    heads = {(one.encoder, one.head) for one in run.results.sets}
    assert heads == {("net", "linear"), ("net", "mlp")} | {(NAMES[floor], "linear") for floor in FLOORS}
    assert run.results.floors == tuple(NAMES[floor] for floor in ("pixels", "untrained", "metadata", "shuffled"))
