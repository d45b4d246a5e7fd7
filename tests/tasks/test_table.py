import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import chess_cxr
from chess_cxr.records import UsageError
from chess_cxr.tasks.table import TASKS, list_finetune_commands
from places import HELPERS

WITH_TOY = """
import sys, toy_task
from chess_cxr.tasks.table import TASKS
TASKS["toy"] = toy_task.TASK
from chess_cxr.cli import main
main()
"""


def run_with_toy(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    command = [sys.executable, "-c", WITH_TOY, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_fifth_task_is_a_module_and_a_line_in_the_table(tmp_path: Path) -> None:
    picture_NHW = np.random.default_rng(0).uniform(0, 1, (16, 32, 32)).astype(np.float32)
    np.save(tmp_path / "pictures.npy", picture_NHW)
    cv2.imwrite(str(tmp_path / "film.png"), np.rint(255 * picture_NHW[0]).astype(np.uint8))
    model = tmp_path / "toy"
    assert "finetune toy" in run_with_toy("--help").stdout
    helped = run_with_toy("finetune", "toy", "--help").stdout
    assert "--learning-rate FLOAT" in helped and "of SGD" in helped
    trained = run_with_toy("finetune", "toy", tmp_path / "pictures.npy", "--out", model, "--steps", 400)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == "weight 1.000\n"
    assert {"config.json", "result.json", "model.safetensors", "metrics.jsonl"} == {p.name for p in model.iterdir()}
    predicted = run_with_toy("predict", model, tmp_path / "film.png")
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.splitlines()[0] == "film,brightness,reason"
    assert float(predicted.stdout.splitlines()[1].split(",")[1]) == pytest.approx(picture_NHW[0].mean(), abs=0.3)
    assert run_with_toy("finetune", "toy", tmp_path / "pictures.npy", "--out", model).returncode == 2


def test_every_task_has_a_command_of_its_name() -> None:
    assert list(list_finetune_commands()) == [f"finetune {name}" for name in TASKS]


def test_a_model_is_used_by_the_public_function_as_by_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no model; make one with: chess-cxr finetune"):
        chess_cxr.predict(tmp_path, [tmp_path / "film.png"])
