"""The real commands that clusters use: torchrun starts two ranks, and one of them, or torchrun itself, is hit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from children import TINY, find_rank, train_in_ranks

pytestmark = pytest.mark.long
FINAL = "checkpoints/step_00000030.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ranks")
    assert train_in_ranks(small_store, (folder / "first", folder / "second"), TINY) == [(0, ""), (0, "")]
    return folder / "first"


@contextmanager
def torchrun(store: Path, run: Path, restarts: int) -> Iterator["subprocess.Popen[str]"]:
    described = run.with_suffix(".json")
    described.write_text(json.dumps(asdict(TINY)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    words = ["-m", "chess_cxr", "pretrain", str(store), "--config", str(described), "--out", str(run), "--quiet"]
    command = subprocess.Popen(
        [sys.executable, "-W", "ignore", *launch, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield command
    finally:
        if command.poll() is None:
            command.terminate()
            command.wait(60)


def wait_for_step(run: Path, step: int, command: "subprocess.Popen[str]") -> None:
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 400
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


def check_same_weights(run: Path, expected: Path) -> None:
    ours, theirs = load_file(run / FINAL), load_file(expected / FINAL)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


def test_torchrun_brings_a_killed_rank_back_and_the_run_ends_with_the_same_weights(
    small_store: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with torchrun(small_store, run, restarts=3) as command:
        wait_for_step(run, 11, command)
        os.kill(find_rank(command.pid, 1), signal.SIGKILL)
        _, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    assert "exitcode: -9" in err and "chess-cxr: another rank has ended" in err
    check_same_weights(run, uninterrupted)


def test_sigterm_to_torchrun_lets_the_ranks_write_a_checkpoint_and_a_later_start_goes_on(
    small_store: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with torchrun(small_store, run, restarts=3) as command:
        wait_for_step(run, 2, command)
        command.terminate()
        os.kill(find_rank(command.pid, 0), signal.SIGTERM)  # SLURM tells every process of a step
        _, err = command.communicate(timeout=120)
    assert command.returncode == 1
    step = int(err.split("stopped at step ")[1].split()[0])
    assert err.count(f"stopped at step {step} of 30; the same command continues it") == 2
    assert [path.stem for path in (run / "checkpoints").glob("step_*")][-1:] == [f"step_{step:08d}"]
    assert train_in_ranks(small_store, (run, run), TINY) == [(0, ""), (0, "")]
    check_same_weights(run, uninterrupted)
