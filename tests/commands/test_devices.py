from pathlib import Path

import pytest

from chess_cxr.cli import COMMANDS
from command_line import run

RUN_NETWORKS = {
    "pretrain", "embed", "evaluate", "benchmark", "finetune classify", "finetune bones", "finetune nodules", "generate",
    "predict", "serve", "search", "map", "select",
}  # fmt: skip


def test_every_command_that_runs_a_network_takes_a_device() -> None:
    assert {name for name in COMMANDS if "--device" in run(*name.split(), "--help").out} == RUN_NETWORKS


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device: str, small_store: Path, tmp_path: Path) -> None:
    answer = run("embed", "random:test_resnet@32", small_store, "--out", tmp_path / "f.parquet", "--device", device)
    assert answer.code == 2 and "device" in answer.err.splitlines()[-1]


def test_the_cpu_can_be_chosen(small_store: Path, tmp_path: Path) -> None:
    words = ("embed", "random:test_resnet@32", small_store, "--quiet")
    for device in ("cpu", "auto"):
        assert run(*words, "--out", tmp_path / f"{device}.parquet", "--device", device).code == 0
