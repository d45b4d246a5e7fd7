"""The benchmark from the command line: killed, interrupted, continued, and wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from command_line import run

SUITE = """
fractions = [0.1, 0.5, 1.0]
draws = 6
replicates = 50
reference = "pixels"
synthetic = true
floors = []
[encoders]
pixels = "pixels:16"
coarse = "pixels:4"
{more}
[tasks.shapes]
store = "small.lance"
labels = ["stripes", "spots"]
"""
COMMAND = ("benchmark", "suite.toml", "--out", "out", "--workers", "1")
CELLS = 2 * 1 + 2 * 13 + 2 * 3  # features, probes, resampled metrics


@pytest.fixture
def folder(small_store: Path, tmp_path: Path) -> Path:
    (tmp_path / "small.lance").symlink_to(small_store)
    (tmp_path / "suite.toml").write_text(SUITE.format(more=""))
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chess_cxr", *COMMAND, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]


def list_cells(folder: Path) -> dict[str, int]:
    """The finished cells that are no stored arrays, and when each was made."""
    found = (folder / "out.cells").glob("[0-9a-f][0-9a-f]/*/cell.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found if not (path.parent / "array.npy").exists()}


def wait_for_cells(folder: Path, process: subprocess.Popen[str], count: int) -> dict[str, int]:
    until = time.monotonic() + 200
    while len(list_cells(folder)) < count:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return list_cells(folder)


@pytest.mark.long
def test_killed_and_interrupted_it_goes_on_and_computes_no_cell_twice(folder: Path) -> None:
    first = start(folder)
    wait_for_cells(folder, first, 6)
    first.kill()
    first.communicate()
    after_kill = list_cells(folder)
    assert not (folder / "out").exists() and len(after_kill) < CELLS

    second = start(folder)
    wait_for_cells(folder, second, len(after_kill) + 4)
    os.killpg(second.pid, signal.SIGINT)
    interrupted = time.monotonic()
    _, said = second.communicate()
    assert second.returncode == 130 and said.splitlines()[-1] == "chess-cxr: interrupted"
    assert time.monotonic() - interrupted < 15
    after_interrupt = list_cells(folder)
    assert not (folder / "out").exists() and after_kill.items() <= after_interrupt.items()

    third = start(folder, "--json")
    out, said = third.communicate()
    assert third.returncode == 0, said
    assert after_interrupt.items() <= list_cells(folder).items() and len(list_cells(folder)) == CELLS
    found = json.loads(out)
    assert found["cells"] == {"computed": CELLS - len(after_interrupt), "kept": len(after_interrupt)}
    assert {row["encoder"] for row in found["summary"]} == {"pixels", "coarse"} and found["failures"] == []
    assert "probe: " in said and "\x1b" not in said
    assert {path.name for path in (folder / "out").iterdir()} >= {"results.parquet", "table.md", "predictions"}
    assert not list(folder.glob(".out.partial-*")) and not list((folder / "out.cells").glob(".partial-*"))


def test_a_broken_encoder_is_reported_with_exit_code_1_and_the_rest_is_written(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    (folder / "suite.toml").write_text(SUITE.format(more='broken = "broken"'))
    answer = run(*COMMAND, "--quiet", cwd=folder)
    assert answer.code == 1
    assert answer.err.startswith("chess-cxr: 1 part of the benchmark failed, out/failures.csv says why")
    assert len(answer.err.splitlines()) == 1
    assert "| pixels |" in answer.out and (folder / "out" / "results.parquet").is_file()
    assert "no pixel contract" in (folder / "out" / "failures.csv").read_text()


def test_evaluate_has_the_numbers_of_a_benchmark_of_the_same_encoders_draws_and_films(folder: Path) -> None:
    suite = SUITE.format(more="").replace("draws = 6", "draws = 2")
    (folder / "suite.toml").write_text(suite + 'film_counts = [9]\nfirst_draw = "spots"\n')
    assert run(*COMMAND, "--quiet", cwd=folder).code == 0
    words = ("--labels", "stripes", "spots", "--fractions", 0.1, 0.5, 1, "--draws", 2, "--replicates", 50, "--quiet")
    subsets = ("--films", 9, "--first-draw", "spots", "--out", "result")
    encoders = ("--encoders", "pixels=pixels:16", "coarse=pixels:4")
    assert run("evaluate", "small.lance", *encoders, *words, *subsets, cwd=folder).code == 0
    key, kept = ["encoder", "subset", "metric"], ["value", "low", "high", "undefined", "fraction", "n_train_patients"]
    for mine, theirs, columns in (
        ("results", "summary", kept),
        ("differences", "differences", [*kept, "reference", "p", "p_holm"]),
    ):
        table = pd.read_csv(folder / "result" / f"{mine}.csv").set_index(key)[columns]
        other = pd.read_csv(folder / "out" / f"{theirs}.csv").set_index(key).loc[table.index, columns]
        assert len(table.index.unique("subset")) == 5 and table["value"].nunique() > 5
        pd.testing.assert_frame_equal(table, other, check_exact=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--card", "nobody"), "--card 'nobody' is none of the encoders pixels, coarse"),
        (("--encoders", "a=b"), "--stores and --encoders are for presets"),
        (("--cluster", "tcp://127.0.0.1:1"), "--workers is for this machine"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(folder: Path, words: tuple[str, ...], said: str) -> None:
    answer = run(*COMMAND, *words, cwd=folder)
    assert answer.code == 2 and answer.out == "" and said in answer.err and len(answer.err.splitlines()) == 1
    assert not (folder / "out.cells").exists()


def test_cards_are_written_checked_and_results_merged(folder: Path) -> None:
    answer = run("benchmark", "card", "suite.toml", "--out", "cards", cwd=folder)
    assert answer.code == 0 and answer.out.startswith("cards/shapes.json: ") and (folder / "cards/shapes.md").is_file()
    changed = SUITE.format(more="").replace("draws = 6", "draws = 2").replace("0.1, 0.5, ", "0.5, ")
    (folder / "suite.toml").write_text(changed)
    refused = run(*COMMAND, "--card", "coarse", "cards/shapes.json", cwd=folder)
    assert refused.code == 2 and len(refused.err.splitlines()) == 1 and not (folder / "out").exists()
    assert "tasks.shapes is not the task of cards/shapes.json: protocol, fractions: 0.1, 0.5, 1.0 in the" in refused.err

    again = run("benchmark", "card", "suite.toml", "--out", "new", "--json", cwd=folder)
    assert json.loads(again.out)["shapes"]["protocol"]["draws"] == 2
    assert run(*COMMAND, "--card", "coarse", "new/shapes.json", "--quiet", cwd=folder).code == 0
    assert "coarse" in (folder / "out" / "card_section.md").read_text()
    merged = run("benchmark", "merge", "out", "--out", "board", cwd=folder)
    assert merged.code == 0 and "| coarse out SYNTHETIC |" in merged.out
    assert (folder / "board" / "report.html").is_file()
    assert run("benchmark", "merge", "cards", "--out", "other", cwd=folder).code == 2
