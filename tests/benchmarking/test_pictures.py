"""Bone suppression and nodule generation as tasks of a suite."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.output import write_benchmark
from chess_cxr.benchmarking.pictures import PictureCell, check_pictures, hash_places
from chess_cxr.benchmarking.run import BenchmarkRun, run_benchmark
from chess_cxr.benchmarking.suite import PictureSpec, Suite, read_suite
from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.train import finetune_bones

BONES = {"size": 64, "crop": 64, "decoder": "tiny", "steps": 2, "batch": 2}
NODULES = {"size": 64, "film_size": 64, "width": 4, "latent": 8, "steps": 2, "batch": 2}
ENCODERS = {"net": "random:test_resnet@64", "other": "random:test_resnet@64#1", "pixels": "pixels:4"}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture
def suite(make_quadrants: Callable[..., Suite]) -> Suite:
    suite = make_quadrants(
        encoders=ENCODERS, reference="net", fractions=(1.0,), floors=(), replicates=50,
        pictures={
            "bones": PictureSpec("bones", ("phantom:10@64#1",), test=0.4, options=BONES),
            "nodules": PictureSpec("nodules", ("phantom:6@64#2",), test=0.4, options=NODULES),
        },
    )  # fmt: skip
    return replace(suite, tasks={"seen": suite.tasks["seen"]})


@pytest.fixture
def run(suite: Suite, cells: Path) -> BenchmarkRun:
    return run_benchmark(suite, cells)


def test_bones_have_the_numbers_of_their_task(run: BenchmarkRun, tmp_path: Path) -> None:
    assert run.results.failures == ()
    table = run.extra["pictures"].query("task == 'bones' and encoder == 'net'").set_index("metric")
    wanted = finetune_bones(
        load_encoder("random:test_resnet@64"), ["phantom:10@64#1"], tmp_path / "model", BonesConfig(**BONES, seed=0),
        val=0.1, test=0.4,
    )  # fmt: skip
    for metric in ("psnr", "ssim"):
        assert table.loc[metric, "value"] == pytest.approx(wanted.metrics[metric].value, rel=1e-4)
    assert set(table["n_test"]) == {wanted.pairs["test"]} == {4}


def test_encoders_are_compared_on_the_same_films_and_pixels_are_none(run: BenchmarkRun) -> None:
    tables = run.extra
    assert set(tables["pictures"]["encoder"]) == {"net", "other"}
    gaps = tables["picture_differences"].set_index(["task", "encoder", "metric"])
    values = tables["pictures"].set_index(["task", "encoder", "metric"])["value"]
    for task, metric in (("bones", "psnr"), ("nodules", "contrast_made")):
        gap = gaps.loc[(task, "other", metric)]
        assert gap["value"] == pytest.approx(values[task, "other", metric] - values[task, "net", metric])
        assert gap["p"] <= gap["p_holm"] <= 1


def test_a_task_may_ask_for_some_encoders_alone(suite: Suite, cells: Path, tmp_path: Path) -> None:
    pictures = suite.pictures | {"bones": replace(suite.pictures["bones"], encoders=("net",))}
    tasks = suite.tasks | {"few": replace(suite.tasks["seen"], encoders=("net", "pixels"))}
    run = run_benchmark(replace(suite, pictures=pictures, tasks=tasks, floors=("shuffled",)), cells)
    assert run.results.failures == ()
    trained = run.extra["pictures"].groupby("task")["encoder"].unique()
    assert (set(trained["bones"]), set(trained["nodules"])) == ({"net"}, {"net", "other"})
    scored = {name: {one.encoder for one in run.results.sets if one.task == name} for name in tasks}
    assert scored["seen"] - scored["few"] == {"other"} and len(scored["few"]) == 3  # the floor stays
    page = write_benchmark(run, tmp_path / "out", "").out / "report.html"
    assert page.stat().st_size > 10_000


def test_what_is_done_is_kept_and_stands_on_the_page(
    run: BenchmarkRun, suite: Suite, cells: Path, tmp_path: Path
) -> None:
    again = run_benchmark(suite, cells)
    assert again.computed == 0 and not list((cells / "runs").iterdir())
    pd.testing.assert_frame_equal(again.extra["pictures"], run.extra["pictures"])
    out = write_benchmark(again, tmp_path / "out", "").out
    page = (out / "report.html").read_text("utf-8")
    assert page.count('<figure class="sheet"><img src="data:image/png') == 4 and "Bones and nodules" in page
    assert {"pictures.csv", "picture_differences.csv"} <= {path.name for path in out.iterdir()}
    hidden = write_benchmark(again, tmp_path / "hidden", "", pictures=False).out
    assert '<figure class="sheet">' not in (hidden / "report.html").read_text("utf-8")


def test_a_model_whose_cell_was_lost_is_not_trained_again(run: BenchmarkRun, suite: Suite, cells: Path) -> None:
    folder, spec = CellFolder(cells), suite.pictures["bones"]
    found = [path.parent.name for path in cells.rglob("score_FM.npy")]
    assert len(found) == 4
    options = tuple(sorted((BONES | {"steps": 3}).items()))
    from chess_cxr.benchmarking.encoders import describe_source
    from chess_cxr.benchmarking.suite import EncoderSource

    facts = describe_source(EncoderSource("net", ENCODERS["net"]))
    cell = PictureCell(
        facts.source, facts.identity, "bones", spec.places, hash_places(spec.places), 0.1, 0.4, options, 0
    )
    out = cells / "runs" / cell.key
    finetune_bones(
        load_encoder(ENCODERS["net"]), list(spec.places), out, BonesConfig(**dict(options), seed=0), val=0.1, test=0.4
    )
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    arrays, facts_of = cell.compute(folder)
    assert len(arrays["score_FM"]) == 4 and np.isfinite(arrays["score_FM"][:, facts_of["names"].index("psnr")]).all()
    assert not out.exists() and stamp


def test_a_suite_file_has_them_among_its_tasks(tmp_path: Path) -> None:
    text = """
        [encoders]
        net = "random:test_resnet@64"
        [tasks.films]
        store = "films.lance"
        [tasks.ribs]
        kind = "bones"
        places = ["pairs", "phantom:4@64"]
        options = {steps = 3, decoder = "tiny"}
    """
    (tmp_path / "suite.toml").write_text(text)
    suite = read_suite(tmp_path / "suite.toml")
    assert list(suite.tasks) == ["films"] and suite.pictures["ribs"].places == (str(tmp_path / "pairs"), "phantom:4@64")
    with pytest.raises(UsageError, match="tasks.ribs.places: there is no folder"):
        check_pictures(suite)
    wrong = replace(suite.pictures["ribs"], places=("phantom:4@64",), options={"colour": 3})
    with pytest.raises(UsageError, match="tasks.ribs.options: there is no 'colour'"):
        check_pictures(replace(suite, pictures={"ribs": wrong}))
    for before, after, told in (
        ('kind = "bones"', 'kind = "bone"', "tasks.ribs.kind"),
        ("options =", "options_ =", "tasks.ribs.options_: there is no such entry"),
        ('places = ["pairs", "phantom:4@64"]', "places = []", "tasks.ribs: name places"),
    ):
        (tmp_path / "suite.toml").write_text(text.replace(before, after))
        with pytest.raises(UsageError, match=told):
            read_suite(tmp_path / "suite.toml")


def test_the_hash_of_places_is_of_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"1")
    assert hash_places([str(tmp_path / "a")]) == hash_places([str(tmp_path / "b")])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_bytes(b"2")
    assert hash_places([str(tmp_path / "c")]) != hash_places([str(tmp_path / "a")])
    assert hash_places(["phantom:4@64"]) != hash_places(["phantom:5@64"])
