"""The script for one CUDA card, on the CPU and in small: a tiny network, few films, seconds."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet
import pytest

from chess_cxr.encoders.folder import read_heads
from chess_cxr.encoders.load import load_encoder
from chess_cxr.store import Store, open_store
from places import CHECKOUT
from tiny_runs import build_tiny_config

SCRIPT = CHECKOUT / "runs" / "gpu_quarter.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_quarter", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*words: object, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def packed(script: ModuleType, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "pack.parquet"
    script.pack(small_store, out, 1.0, 224)
    return out


def test_a_pack_becomes_the_store_it_was_made_of(
    script: ModuleType, packed: Path, store: Store, tmp_path: Path
) -> None:
    unpacked = open_store(script.unpack(packed, tmp_path / "pool.lance"))
    assert unpacked.label_names == store.label_names
    columns = [*script.TEXTS, *script.NUMBERS, *store.label_names, "height", "width"]
    assert unpacked.films[columns].equals(store.films[columns])
    for ours, theirs in zip(unpacked.read_films(range(4)), store.read_films(range(4)), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_films_lose_quality_first_and_then_size_until_they_fit(
    script: ModuleType, small_store: Path, tmp_path: Path
) -> None:
    said = dict[float, dict[str, int]]()
    for megabytes in (1.0, 0.09, 0.05):
        out = tmp_path / f"{megabytes}.parquet"
        script.pack(small_store, out, megabytes, 48)
        assert out.stat().st_size <= 1e6 * megabytes
        said[megabytes] = json.loads(pyarrow.parquet.read_schema(out).metadata[b"pack"])
    assert (said[1.0]["side"], said[1.0]["quality"]) == (48, 95)
    assert said[0.09]["side"] == 48 and 40 <= said[0.09]["quality"] < 95
    assert said[0.05]["side"] < 48


def test_train_judge_and_bring_home(script: ModuleType, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(build_tiny_config())))
    out, work = tmp_path / "out", tmp_path / "work"
    common = ("go", packed, out, "--work", work, "--config", tmp_path / "tiny.json", "--device", "cpu", "--minutes")
    said = call(*common, 0.2, "--do", "train")
    assert "seconds a step of 8 films" in said
    steps = json.loads((work / "config.json").read_text())["training"]["steps"]
    trained = load_encoder(work / "encoder")
    assert steps >= 20 and 0 < trained.training.steps <= steps
    assert "=== judge: exit code 0" in call(*common, 20, "--do", "judge")
    report = (out / "report.txt").read_text()
    assert "| ours | " in report and "| pixels | " in report and "all labels" in report

    words = ("join", out, tmp_path / "home", "--licence", "MIT", "--data", "Small pictures.")
    assert "embedded as there" in call(*words)
    home = load_encoder(tmp_path / "home")
    assert (home.training.data, home.licence, home.training.steps) == ("Small pictures.", "MIT", trained.training.steps)
    assert home.training_uids == trained.training_uids and home.contract == trained.contract
    assert read_heads(tmp_path / "home")[0] == read_heads(work / "encoder")[0] == "moco_v2"
    for name, tensor in home.module.state_dict().items():
        expected = trained.module.state_dict()[name]
        assert (tensor - expected).abs().max() <= 1e-3 * max(float(expected.abs().max()), 1e-3), name

    damaged = Path(shutil.copytree(out, tmp_path / "damaged"))
    content = bytearray((damaged / "weights.00").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "weights.00").write_bytes(content)
    assert "is not the piece" in call("join", damaged, tmp_path / "none", *words[3:], code=1)
    assert not (tmp_path / "none").exists()


def test_large_weights_become_pieces_that_join_to_the_same_bytes(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PIECE_BYTES", 2_000_000)
    script.write_pieces(CHECKOUT / "weights" / "cxr-first", tmp_path)
    pieces = sorted(tmp_path.glob("weights.*"))
    assert len(pieces) == 3 and max(piece.stat().st_size for piece in pieces) <= 2_000_000
    script.join(tmp_path, tmp_path / "home", "MIT", "None.")
    assert load_encoder(tmp_path / "home").architecture == "regnetx_002"


def test_a_part_that_takes_too_long_is_cut_off_and_the_report_says_so(script: ModuleType, tmp_path: Path) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    script.run_until(0.0, "speed", [sys.executable, "-c", code], tmp_path / "report.txt")
    assert "=== speed: cut off after 1 seconds" in (tmp_path / "report.txt").read_text()


def test_without_a_card_it_says_so(packed: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA card here")
    assert "no CUDA card" in call("go", packed, tmp_path / "out", "--minutes", 1, "--work", tmp_path / "w", code=1)
