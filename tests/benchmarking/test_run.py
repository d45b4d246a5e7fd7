"""A whole suite on real films, in this process, in processes of its own and on a Dask cluster."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.errors import find_worst_errors
from chess_cxr.benchmarking.films import open_task
from chess_cxr.benchmarking.output import read_thumbnails, write_benchmark
from chess_cxr.benchmarking.run import BenchmarkRun, run_benchmark
from chess_cxr.benchmarking.suite import Suite, TaskSpec
from chess_cxr.encoders.load import load_encoder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import UNCERTAIN, ChessError, ImageRecord, UsageError
from chess_cxr.store import StoredFilm, open_store, write_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.labels import select_labelled
from chess_cxr.tasks.classify.train import fit_classifier
from grey_films import draw_grey_films
from places import CHECKOUT

pytestmark = pytest.mark.real_films
MakeSuite = Callable[..., Suite]
CLASSES = ("bacteria", "normal", "virus")


@pytest.fixture(scope="session")
def finished(film_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path, BenchmarkRun]:
    """Two tasks of both kinds, with a published first draw in one of them."""
    suite = Suite(
        encoders={"random": "random:test_resnet@64", "pixels": "pixels:16"},
        tasks={
            "kinds": TaskSpec(str(film_store), CLASSES, first_draw="first"),
            "normal or not": TaskSpec(str(film_store), ("normal_only",), kind="multilabel", fractions=(0.5,)),
        },
        fractions=(0.2, 1.0),
        draws=2,
        replicates=100,
        reference="random",
        floors=(),
    )
    cells = tmp_path_factory.mktemp("cells")
    return suite, cells, run_benchmark(suite, cells)


def test_the_same_suite_again_computes_nothing_and_finds_the_same(
    finished: tuple[Suite, Path, BenchmarkRun],
) -> None:
    suite, cells, run = finished
    before = list_cells(cells)
    again = run_benchmark(suite, cells)
    assert (again.computed, again.kept) == (0, run.computed)
    assert list_cells(cells) == before
    for one, other in zip(run.results.sets, again.results.sets, strict=True):
        assert (one.task, one.encoder, one.subset, one.draw) == (other.task, other.encoder, other.subset, other.draw)
        assert np.array_equal(one.test_MC, other.test_MC) and np.array_equal(one.val_MC, other.val_MC)


def list_cells(cells: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in cells.rglob("cell.json")}


@pytest.mark.parametrize(
    ("changed", "recomputed"),
    [
        ({"replicates": 50}, 4),  # the metrics of two encoders and two subsets
        ({"draws": 3}, 2 + 2),  # a third draw of one subset, and the metrics with it
        ({"seed": 100}, 6 + 4),  # draws of near seeds are shared: draw 1 of seed 0 is draw 0 of seed 1
        ({"encoders": {"random": "random:test_resnet@64#1", "pixels": "pixels:16"}}, 1 + 3 + 2),
        ({"reference": "pixels"}, 0),
        ({"level": 0.9}, 0),
    ],
)
def test_only_what_a_change_touches_is_computed_anew(
    make_suite: MakeSuite, tmp_path_factory: pytest.TempPathFactory, changed: dict[str, object], recomputed: int
) -> None:
    cells = tmp_path_factory.getbasetemp() / "touched-cells"
    run_benchmark(make_suite(), cells)
    assert run_benchmark(make_suite(**changed), cells).computed == recomputed


def test_a_store_made_again_of_the_same_films_needs_no_new_cell(
    make_suite: MakeSuite, film_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(film_store, tmp_path / "copy.lance")
    first = run_benchmark(make_suite(), tmp_path / "cells")
    moved = make_suite(tasks={"other name": TaskSpec(str(tmp_path / "copy.lance"), CLASSES)})
    again = run_benchmark(moved, tmp_path / "cells")
    assert (first.kept, again.computed, again.kept) == (0, 0, first.computed)


def test_label_subsets_of_a_draw_are_nested_and_hold_whole_patients(make_suite: MakeSuite) -> None:
    suite = make_suite(fractions=(0.05, 0.1, 0.25, 0.5, 1.0), draws=3)
    task = open_task("kinds", suite.tasks["kinds"], suite)
    train = np.flatnonzero(task.chosen.split == "train")
    for draw in range(3):
        sizes = [one for one in task.plan if one.draw == draw]
        for small, large in zip(sizes, sizes[1:], strict=False):
            assert set(small.film_index) < set(large.film_index)
        for one in sizes:
            mine = task.chosen.patient[one.film_index]
            assert set(one.film_index) == set(train[np.isin(task.chosen.patient[train], mine)])


def test_what_fails_is_told_and_does_not_stop_the_rest(make_suite: MakeSuite, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    encoders = {"random": "random:test_resnet@64", "broken": str(broken), "pixels": "pixels:16"}
    run = run_benchmark(make_suite(encoders=encoders), tmp_path / "cells")
    assert [(one.task, one.encoder, one.draw) for one in run.results.failures] == [("kinds", "broken", -1)]
    assert "no pixel contract" in run.results.failures[0].reason
    assert {one.encoder for one in run.results.sets} == {"random", "pixels"}
    out = write_benchmark(run, tmp_path / "out", "the command").out
    assert "no pixel contract" in (out / "failures.csv").read_text()
    assert "| broken |" in (out / "table.md").read_text()


def test_a_suite_of_which_nothing_works_says_why(make_suite: MakeSuite, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ChessError, match="none of the benchmark's cells could be computed.*no pixel contract"):
        run_benchmark(make_suite(encoders={"broken": str(tmp_path)}, reference="broken"), tmp_path / "cells")


def test_a_damaged_cell_is_computed_again(make_suite: MakeSuite, tmp_path: Path) -> None:
    suite = make_suite()
    first = run_benchmark(suite, tmp_path)
    victim = max(tmp_path.rglob("test.npy"))
    victim.write_bytes(victim.read_bytes()[:100])
    again = run_benchmark(suite, tmp_path)
    assert again.computed == 1
    for one, other in zip(first.results.sets, again.results.sets, strict=True):
        assert np.array_equal(one.test_MC, other.test_MC)


def test_a_split_that_tears_a_patient_is_refused(make_suite: MakeSuite, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((40, 40), np.float32)
    films = [
        StoredFilm(
            ImageRecord(f"{n:032x}", "same", split=("train", "test")[n % 2], labels={"a": n % 3 % 2}),
            *encode_film(pixels, 40),
        )  # fmt: skip
        for n in range(6)
    ]
    write_store(tmp_path / "torn.lance", films, ["a"], "torn")
    suite = make_suite(tasks={"torn": TaskSpec(str(tmp_path / "torn.lance"))})
    with pytest.raises(UsageError, match="a patient of torn.lance stands in two splits"):
        run_benchmark(suite, tmp_path / "cells")


def test_a_dask_cluster_gives_the_same(make_suite: MakeSuite, tmp_path: Path) -> None:
    from distributed import LocalCluster

    from chess_cxr.workers.cluster import connect_cluster

    suite = make_suite()
    here = run_benchmark(suite, tmp_path / "here")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    with (
        LocalCluster(dashboard_address=None, **options) as cluster,
        connect_cluster(cluster.scheduler_address) as (executor, threads),
    ):
        there = run_benchmark(suite, tmp_path / "there", executor=executor, workers=threads)
    assert there.computed == here.computed and not there.results.failures
    assert all(
        np.array_equal(one.test_MC, other.test_MC)
        for one, other in zip(here.results.sets, there.results.sets, strict=True)
    )


def test_the_folder_holds_what_the_documentation_says(
    finished: tuple[Suite, Path, BenchmarkRun], tmp_path: Path
) -> None:
    suite, _, run = finished
    written = write_benchmark(run, tmp_path / "out", "chess-cxr benchmark suite.toml --out out")
    assert {path.name for path in written.out.iterdir()} == {
        "report.html",
        "results.parquet",
        "summary.csv",
        "differences.csv",
        "failures.csv",
        "predictions",
        "table.md",
        "card_section.md",
        "leaderboard.json",
        "suite.json",
    }
    sets = pyarrow.parquet.read_table(written.out / "results.parquet").to_pandas()
    assert len(sets) == len(run.results.sets)
    documented = (CHECKOUT / "docs" / "benchmark.md").read_text()
    families = {re.sub(r"_0\.\d+", "", name.split("/")[0]) for name in sets.columns}
    assert [name for name in families if f"`{name}" not in documented] == []
    described = json.loads((written.out / "suite.json").read_text())
    assert described["encoders"] == suite.encoders and described["tasks"]["kinds"]["first_draw"] == "first"
    assert json.loads(json.dumps(written.as_json(), allow_nan=False))["cells"]["computed"] == run.computed
    with pytest.raises(UsageError, match="exists already"):
        write_benchmark(run, tmp_path / "out", "again")


def test_predictions_are_kept_by_hashed_uid_with_their_labels(
    finished: tuple[Suite, Path, BenchmarkRun], tmp_path: Path
) -> None:
    _, _, run = finished
    out = write_benchmark(run, tmp_path / "out", "").out
    for name, task in run.results.tasks.items():
        table = pyarrow.parquet.read_table(out / "predictions" / f"{name}.parquet").to_pandas()
        sets = [one for one in run.results.sets if one.task == name]
        assert len(table) == len(sets) * (len(task.test.uid_M) + len(task.val.uid_M))
        assert table["uid"].str.fullmatch("[0-9a-f]{32}").all()
        one = sets[-1]
        rows = table[(table["encoder"] == one.encoder) & (table["subset"] == one.subset) & (table["split"] == "test")]
        rows = rows[rows["draw"] == one.draw].set_index("uid").loc[task.test.uid_M]
        assert np.array_equal(rows[[f"p/{kind}" for kind in task.class_names]].to_numpy(), one.test_MC)
        label = task.test.label if task.kind == "multilabel" else np.eye(3)[task.test.label]
        assert np.array_equal(rows[[f"label/{kind}" for kind in task.class_names]].to_numpy(), label, equal_nan=True)


def test_the_worst_errors_have_pictures(finished: tuple[Suite, Path, BenchmarkRun]) -> None:
    _, _, run = finished
    pictures = read_thumbnails(run)
    worst = [error for name in run.results.tasks for error in find_worst_errors(run.results, name)]
    assert worst and {error.uid for error in worst} == set(pictures)
    assert all(picture.dtype == np.uint8 and max(picture.shape) <= 160 for picture in pictures.values())
    store, error = run.tasks["kinds"].store, find_worst_errors(run.results, "kinds")[0]
    row = int(np.flatnonzero(store.films["uid"] == error.uid)[0])
    assert abs(float(pictures[error.uid].mean()) - float(store.read_films([row])[0].mean())) < 2


def test_groups_and_age_bands_of_the_scored_films_are_known(finished: tuple[Suite, Path, BenchmarkRun]) -> None:
    test = finished[2].results.tasks["kinds"].test
    assert set(test.groups) == {"sex", "age_band", "view", "site"}
    assert set(test.groups["sex"]) == {"F", "M"}
    assert {"", "0-17", "18-39"} <= set(test.groups["age_band"])
    assert all(len(group) == len(test.uid_M) for group in test.groups.values())


def test_cells_of_a_folder_are_all_whole(finished: tuple[Suite, Path, BenchmarkRun]) -> None:
    folder = CellFolder(finished[1])
    keys = [path.parent.name for path in finished[1].rglob("cell.json")]
    assert keys and all(folder.holds(key) for key in keys)
    assert not list(finished[1].glob(".partial-*"))


def test_a_page_without_pictures_shows_no_film(finished: tuple[Suite, Path, BenchmarkRun], tmp_path: Path) -> None:
    _, _, run = finished
    shown, hidden = (
        write_benchmark(run, tmp_path / name, "", pictures=name == "shown").out / "report.html"
        for name in ("shown", "hidden")
    )
    assert "data:image/" in shown.read_text("utf-8") and "data:image/" not in hidden.read_text("utf-8")


def test_heads_that_learn_by_steps_are_cells_too(make_suite: MakeSuite, film_store: Path, tmp_path: Path) -> None:
    tasks = {"kinds": TaskSpec(str(film_store), CLASSES, heads=("linear", "mlp", "attentive"))}
    suite = make_suite(tasks=tasks, fractions=(1.0,), draws=1)
    run = run_benchmark(suite, tmp_path / "cells")
    found = {(one.encoder, one.head): one for one in run.results.sets}
    assert set(found) == {("random", "linear"), ("random", "mlp"), ("random", "attentive"), ("pixels", "linear")}
    assert {(one.encoder, one.head, one.reason) for one in run.results.failures} == {
        ("pixels", head, "pixels has no network; only linear heads fit it") for head in ("mlp", "attentive")
    }
    alone = fit_classifier(
        load_encoder("random:test_resnet@64"), open_store(film_store), select_labelled(open_store(film_store), CLASSES),
        FinetuneConfig("mlp", seed=found["random", "mlp"].seed), lambda *_: None,
    )  # fmt: skip
    np.testing.assert_allclose(found["random", "mlp"].test_MC, alone.scores["test"], atol=1e-5)
    np.testing.assert_allclose(found["random", "mlp"].val_MC, alone.scores["val"], atol=1e-5)
    again = run_benchmark(suite, tmp_path / "cells")
    assert again.computed == 0 or {one.head for one in again.results.failures} == {"mlp", "attentive"}


def test_uncertain_labels_teach_as_a_suite_says_and_are_never_scored(make_suite: MakeSuite, tmp_path: Path) -> None:
    films = []
    for number in range(90):
        split, bright = ("train", "val", "test")[number % 3], number // 3 % 2
        labels = {"edema": UNCERTAIN if number // 3 % 5 == 0 else float(bright)}
        films.append((ImageRecord(f"{number:032x}", f"p{number}", split=split, labels=labels), 0.3 + 0.2 * bright))
    write_store(tmp_path / "films.lance", draw_grey_films(films, noise=0.1), ["edema"], "grey films (SYNTHETIC)")
    found = {}
    for policy in ("ignore", "ones", "zeros"):
        task = TaskSpec(str(tmp_path / "films.lance"), ("edema",), kind="multilabel", uncertain=policy)
        suite = make_suite(tasks={"edema": task}, encoders={"pixels": "pixels:4"}, reference="pixels", fractions=(1.0,))
        results = run_benchmark(suite, tmp_path / "cells").results
        assert len(results.tasks["edema"].test.uid_M) == 24 and not np.isnan(results.tasks["edema"].test.label).any()
        found[policy] = (results.sets[0].n_train_films, float(results.sets[0].test_MC.mean()))
    assert [found[policy][0] for policy in ("ignore", "ones", "zeros")] == [24, 30, 30]
    assert found["zeros"][1] < found["ignore"][1] < found["ones"][1]


def test_a_suite_scored_on_val_is_that_of_val_films_alone(make_suite: MakeSuite, tmp_path: Path) -> None:
    run = run_benchmark(make_suite(on="val"), tmp_path / "cells")
    [films] = run.results.tasks.values()
    assert films.split == "val" and len(films.test.uid_M) == 24 and not len(films.val.uid_M)
    whole = run_benchmark(make_suite(), tmp_path / "cells")
    for one, other in zip(run.results.sets, whole.results.sets, strict=True):
        np.testing.assert_array_equal(one.test_MC, other.val_MC)
    written = write_benchmark(run, tmp_path / "out", "", "", pictures=False)
    assert "24 films of" in written.as_text() and "val split" in written.as_text()
    assert "test split" not in (tmp_path / "out" / "report.html").read_text()


def test_nearest_neighbours_are_a_head(make_suite: MakeSuite, film_store: Path, tmp_path: Path) -> None:
    run = run_benchmark(make_suite(tasks={"kinds": TaskSpec(str(film_store), CLASSES, heads=("knn",))}), tmp_path / "c")
    assert {one.head for one in run.results.sets} == {"knn"}
    for one in run.results.sets:
        assert np.isfinite(one.test_MC).all() and np.isnan(one.strength)
        np.testing.assert_allclose(one.test_MC.sum(1), 1, atol=1e-6)
