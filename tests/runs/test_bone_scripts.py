"""A bone model is scored and published by the scripts that did it for bones-small, on small films."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chess_cxr import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import draw_phantom_pair
from places import CHECKOUT

RUNS = CHECKOUT / "runs"


def run(*command: str | Path, at: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([str(part) for part in command], cwd=at, env=environment, check=True, capture_output=True)


def write_pairs(folder: Path, count: int) -> None:
    """Write phantom pairs as a folder of real ones would hold them (SYNTHETIC)."""
    for number in range(count):
        pair = draw_phantom_pair(5, number, 64)
        for side, picture_HW in (("source", pair.film_HW), ("target", pair.bone_free_HW)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / side / f"film{number}.png"), (picture_HW * 65535).round().astype(np.uint16))


@pytest.mark.long
def test_a_bone_model_is_scored_and_published(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 5)
    places = ["pairs", "phantom:5@64#1"]
    train = [sys.executable, "-m", "chess_cxr", "finetune", "bones", "random:regnetx_002@64", *places, "--out", "model"]
    shape = ["--size", "64", "--crop", "64", "--decoder", "tiny", "--perceptual", "none"]
    run(*train, *shape, "--steps", "2", "--batch", "2", "--quiet", at=tmp_path)

    run(sys.executable, RUNS / "score_bones.py", "model", "scores", "--pairs", *places, at=tmp_path)
    films = pd.read_csv(tmp_path / "scores" / "films.csv")
    assert set(films["network"]) == {"film as it is", "ours"}
    assert films.groupby("network")["kind"].nunique().eq(2).all() and films["psnr"].notna().all()
    assert (pd.read_csv(tmp_path / "scores" / "nodules.csv")["kept"] <= 1.5).all()

    shutil.copytree(RUNS / "cards", tmp_path / "runs" / "cards")
    shutil.copy(RUNS / "publish_bones.sh", tmp_path / "runs")
    (tmp_path / "weights").mkdir()
    run("bash", tmp_path / "runs" / "publish_bones.sh", "model", "bones-small", "a-known-name", at=tmp_path)
    published = tmp_path / "weights" / "bones-small"
    there = {path.name for path in published.iterdir()}
    assert there >= {"README.md", "config.json", "model.onnx", "model.safetensors", "golden.safetensors", "result.json"}
    assert not list(published.glob("*.png"))  # pictures of test films stay behind
    assert load_bone_suppressor(published).size == 64
    card = (published / "README.md").read_text()
    assert "a-known-name" in card and "THIS_FOLDER" not in card and "## Licence" in card
