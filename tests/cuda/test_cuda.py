"""What only a CUDA card can show: `pytest -m cuda`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chess_cxr
from chess_cxr.encoders.contract import draw_golden_film
from chess_cxr.encoders.folder import DEVICE_TOLERANCE
from chess_cxr.encoders.load import load_encoder
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from chess_cxr.training.config import TrackingConfig
from command_line import run
from places import CHECKOUT
from same_end import Enough, stop_after
from tiny_runs import build_tiny_config

DEVICE = "cuda"
QUIET = TrackingConfig(trackers=())
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]


def train(store: Path, out: Path, device: str = DEVICE, **changes: Any) -> list[dict[str, float]]:
    """Run the tiny pre-training and return the lines of its log."""
    config = build_tiny_config()
    pretrain(store, out, replace(config, training=replace(config.training, **changes)), tracking=QUIET, device=device)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def list_losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["loss/encoder"] for line in lines if "loss/encoder" in line]


def measure_miss(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("name", sorted(folder.name for folder in (CHECKOUT / "weights").glob("cxr-*")))
def test_golden_embeddings_of_published_encoders(name: str) -> None:
    encoder = load_encoder(name, device=DEVICE)  # checks the embedding of the fixed film on the card, too
    assert encoder.device.type == next(encoder.module.parameters()).device.type == DEVICE
    films = [draw_golden_film(side) for side in (64, 100, 300)]
    assert measure_miss(encoder.embed(films), load_encoder(name).embed(films)) < DEVICE_TOLERANCE


def test_networks_run_channels_last_and_give_the_same_features() -> None:
    encoder = load_encoder("random:resnet18@64", device=DEVICE)
    first = next(weight for weight in encoder.module.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)
    films = [draw_golden_film(64)]
    features = encoder.embed(films)
    encoder.module.to(memory_format=torch.contiguous_format)
    assert measure_miss(features, encoder.embed(films)) < DEVICE_TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_trains_and_keeps_weights_in_float32(precision: str, small_store: Path, tmp_path: Path) -> None:
    losses = list_losses(train(small_store, tmp_path / "run", precision=precision))
    assert len(losses) == 2 and np.isfinite(losses).all()
    _, _, tensors = read_checkpoint(find_checkpoint(tmp_path / "run" / "checkpoints") or Path())
    weights = [tensor for name, tensor in tensors.items() if name.startswith("method.encoder.") and tensor.ndim > 1]
    assert weights and all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights)
    loaded = load_encoder(chess_cxr.export(tmp_path / "run", tmp_path / "encoder"), device=DEVICE)
    assert np.isfinite(loaded.embed([draw_golden_film(32)])).all()


def test_the_card_trains_as_the_cpu_does(small_store: Path, tmp_path: Path) -> None:
    on_card = list_losses(train(small_store, tmp_path / "card"))
    on_cpu = list_losses(train(small_store, tmp_path / "cpu", "cpu"))
    assert on_card == pytest.approx(on_cpu, rel=0.02)


def test_an_interrupted_run_goes_on_on_the_card(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(Enough):
        pretrain(small_store, tmp_path / "run", build_tiny_config(), stop_after(3), tracking=QUIET, device=DEVICE)
    continued = list_losses(train(small_store, tmp_path / "run"))
    assert continued == pytest.approx(list_losses(train(small_store, tmp_path / "whole")), rel=0.02)


def test_one_rank_of_torchrun_trains_as_one_process_does(small_store: Path, tmp_path: Path) -> None:
    whole = list_losses(train(small_store, tmp_path / "run"))
    words = ["pretrain", str(small_store), "--config", str(tmp_path / "run" / "config.json")]
    words += ["--out", str(tmp_path / "ranks"), "--device", DEVICE, "--quiet", "--trackers"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "chess_cxr", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "ranks" / "metrics.jsonl").read_text().splitlines()]
    assert list_losses(lines) == pytest.approx(whole, rel=0.02)


def test_commands_run_on_the_card(small_store: Path, tmp_path: Path) -> None:
    on = ("--device", DEVICE, "--quiet")
    assert run("embed", "cxr-small", small_store, "--out", tmp_path / "f.parquet", *on).code == 0
    words = ("--draws", 1, "--fractions", "1.0", "--replicates", 20)
    assert run("evaluate", small_store, "--encoders", "random:test_resnet@32", *words, *on).code == 0
    tuned = run(
        "finetune", "classify", "random:test_resnet@32", small_store, "--out", tmp_path / "model",
        "--mode", "full", "--steps", 4, *on,
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    model = chess_cxr.load_classifier(tmp_path / "model", DEVICE)
    assert model.device.type == DEVICE
    films, on_cpu = [draw_golden_film(40)], chess_cxr.load_classifier(tmp_path / "model")
    np.testing.assert_allclose(model.predict(films), on_cpu.predict(films), atol=0.02)
