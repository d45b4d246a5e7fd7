"""Processes that compute cells: what becomes of those that die, and of those whose parent does."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.cells import run_cell
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.benchmarking.workers import WORKER_DIED, open_runner
from odd_cells import OddCell
from places import HELPERS


def test_a_worker_that_dies_fails_its_own_cell_alone(tmp_path: Path) -> None:
    cells = [OddCell(number, "die" if number == 2 else "") for number in range(6)]
    folder = CellFolder(tmp_path)
    with open_runner(workers=1) as runner:
        failed = runner.run(cells, folder)
    assert failed == {cells[2].key: WORKER_DIED}
    assert runner.computed == 5
    assert [int(folder.read_arrays(cell.key)["square"][0]) for cell in cells if cell.key not in failed] == [
        0,
        1,
        9,
        16,
        25,
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_cell_become_one_line(tmp_path: Path, workers: int) -> None:
    cells = [OddCell(0), OddCell(1, "refuse"), OddCell(2, "fail"), OddCell(3)]
    seen: list[tuple[int, int]] = []
    with open_runner(workers) as runner:
        failed = runner.run(cells, CellFolder(tmp_path), lambda done, total: seen.append((done, total)))
    assert failed[cells[1].key] == "it cannot be done"
    assert failed[cells[2].key] == "unexpected ValueError: what nobody foresaw"
    assert len(failed) == 2 and seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_worker_of_another_version_computes_nothing(tmp_path: Path) -> None:
    outcome = run_cell(OddCell(1), OddCell(2).key, CellFolder(tmp_path))
    assert "another version" in outcome.reason and outcome.key == OddCell(2).key
    assert not list(tmp_path.iterdir())


@pytest.mark.real_films
def test_processes_give_the_numbers_of_one(make_suite: Callable[..., Suite], tmp_path: Path) -> None:
    here = run_benchmark(make_suite(), tmp_path / "here")
    there = run_benchmark(make_suite(), tmp_path / "there", workers=1)
    assert there.computed == here.computed and there.results.failures == ()
    for one, other in zip(here.results.sets, there.results.sets, strict=True):
        np.testing.assert_allclose(one.test_MC, other.test_MC, atol=1e-5)


ORPHANS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from chess_cxr.benchmarking.cache import CellFolder
from chess_cxr.benchmarking.workers import open_runner
from odd_cells import OddCell

if __name__ == "__main__":
    with open_runner(workers=1) as runner:
        runner.run([OddCell(0)], CellFolder(Path({cells!r})))
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(folder=str(HELPERS), cells=str(tmp_path / "cells")))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    parent.send_signal(how)
    parent.wait(timeout=30)
    parent.stdout.close()
    until = time.monotonic() + 30
    while time.monotonic() < until and group_lives(parent.pid):
        time.sleep(0.05)
    assert not group_lives(parent.pid)


def group_lives(group: int) -> bool:
    """Return whether a process of the group still runs (Linux); one that has ended may stand in the list for long."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended in the meantime
            state, _, of_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                return True
    return False
