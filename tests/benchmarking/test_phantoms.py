"""Stores of generated films that suites name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chess_cxr.benchmarking.phantoms import write_phantom_stores
from chess_cxr.benchmarking.suite import SUITES, Suite, TaskSpec, build_suite
from chess_cxr.sources.phantom.film import CLASSES
from chess_cxr.store import begin_store, open_store


def test_a_store_of_generated_films_is_made_once_and_again_after_a_kill(
    make_quadrants: Callable[..., Suite], tmp_path: Path
) -> None:
    suite = make_quadrants(tasks={"phantoms": TaskSpec("phantom:20@64#3")})
    made = write_phantom_stores(suite, tmp_path)
    path = Path(made.tasks["phantoms"].store)
    films = open_store(path).films
    assert len(films) == 40 and "SYNTHETIC" in open_store(path).dataset_name
    assert (films[list(CLASSES)].sum(axis=1) == 1).all() and films[list(CLASSES)].sum().min() >= 3
    assert films.groupby("patient")["split"].nunique().max() == 1
    assert films["split"].value_counts().to_dict() == {"train": 24, "test": 12, "val": 4}
    assert films.groupby("split")["site"].nunique().min() == 2
    stamp, grey = path.stat().st_mtime_ns, open_store(path).read_films([7])[0]
    write_phantom_stores(suite, tmp_path)
    assert path.stat().st_mtime_ns == stamp

    shutil.rmtree(path)
    begin_store(path, CLASSES, "phantom films (SYNTHETIC)")  # what a killed writer leaves
    write_phantom_stores(suite, tmp_path)
    again = open_store(path)
    assert len(again) == 40 and np.array_equal(again.read_films([7])[0], grey)


def test_the_small_paper_has_all_four_kinds_of_task_and_needs_nothing() -> None:
    suite = build_suite("paper-small", {}, {})
    assert {head for task in suite.tasks.values() for head in task.heads} == {"linear", "knn", "full"}
    assert {one.kind for one in suite.pictures.values()} == {"bones", "nodules"}
    assert suite.synthetic and suite.audit and set(suite.encoders) == {"scratch", "ImageNet", "ours"}
    assert suite.tasks["six classes"].film_counts == (24,) and suite.fractions[-1] == 1.0
    own = build_suite(
        "paper-small", {"films": "/films.lance"}, {"ours": "pixels:8"}, pairs=["/pairs"], heads=["linear"]
    )
    assert not own.synthetic and list(own.tasks) == ["films"] and own.pictures["bone suppression"].places == ("/pairs",)
    given = {"CheSS": "chess:/c.pth.tar", "ours": "pixels:8"}
    paper = build_suite("paper", {"films": "/films.lance"}, given, heads=["linear", "full"])
    assert paper.tasks["films full"].fractions == (0.01, 0.1, 1.0) and paper.tasks["films"].heads == ("linear",)
    assert not build_suite("paper", {"films": "/films.lance"}, given).pictures and "paper-small" in SUITES
