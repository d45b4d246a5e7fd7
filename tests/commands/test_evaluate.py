"""`evaluate` and `benchmark` are one protocol: the same encoders, draws and films have the same numbers in both."""

from pathlib import Path

import pandas as pd

from command_line import run
from study import KINDS, list_splits, write_study

SUITE = """
fractions = [0.1, 1.0]
draws = 3
seed = 4
replicates = 60
reference = "fine"
[encoders]
fine = "pixels:8"
coarse = "pixels:2"
[tasks.classes]
store = "study.lance"
labels = ["bacteria", "normal", "virus"]
film_counts = [20]
first_draw = "marked"
[tasks.finding]
store = "study.lance"
labels = ["virus"]
film_counts = [20]
first_draw = "marked"
"""
OPTIONS = (
    "--fractions",
    0.1,
    1,
    "--draws",
    3,
    "--seed",
    4,
    "--replicates",
    60,
    "--films",
    20,
    "--first-draw",
    "marked",
)
KEY = ["encoder", "subset", "metric"]
SHARED = ["value", "low", "high", "undefined", "fraction", "n_train_films", "n_train_patients", "draws", "n_test"]


def test_a_benchmark_has_the_numbers_of_evaluate(tmp_path: Path) -> None:
    train = [number for number, split in enumerate(list_splits()) if split == "train"]
    write_study(tmp_path / "study.lance", marked=tuple(train[:30]))
    (tmp_path / "suite.toml").write_text(SUITE)
    done = run("benchmark", "suite.toml", "--workers", 1, "--quiet", "--out", "benchmark", cwd=tmp_path)
    assert done.code == 0, done.err
    encoders = ("--encoders", "fine=pixels:8", "coarse=pixels:2")
    for task, labels in (("classes", KINDS), ("finding", ("virus",))):
        words = ("study.lance", *encoders, "--labels", *labels, *OPTIONS, "--quiet", "--out", task)
        done = run("evaluate", *words, cwd=tmp_path)
        assert done.code == 0, done.err
        for name, file, columns in (
            ("results", "summary", SHARED),
            ("differences", "differences", [*SHARED, "p", "reference"]),
        ):
            mine = pd.read_csv(tmp_path / task / f"{name}.csv").set_index(KEY)[columns]
            theirs = pd.read_csv(tmp_path / "benchmark" / f"{file}.csv").query(f"task == '{task}'").set_index(KEY)
            assert set(mine.index.get_level_values("subset")) == {"10 %", "20 films", "30 films", "100 %"}
            pd.testing.assert_frame_equal(mine, theirs.loc[mine.index, columns], check_exact=True)
