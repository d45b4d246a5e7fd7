"""Training by steps in a folder: killed and continued, watched, tracked, in half precision, and without a folder."""

import json
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.pretraining.runs import read_lines
from chess_cxr.records import UsageError
from chess_cxr.store import Store, open_store
from chess_cxr.tasks.classify import films
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.labels import select_labelled
from chess_cxr.tasks.classify.train import finetune_classifier, fit_classifier, train_classifier
from chess_cxr.training.config import TrackingConfig
from children import die_in_child, run_ranks

ENCODER = "random:test_resnet@32"
HEAD = FinetuneConfig("mlp", steps=80, batch=16, learning_rate=1e-2, checkpoint_every=5)
FULL = FinetuneConfig("full", steps=60, batch=8, learning_rate=5e-2, patience=2, checkpoint_every=2)
CONFIGS = {"mlp": HEAD, "attentive": replace(HEAD, mode="attentive"), "full": FULL}


def finetune(store: Path, out: Path, config: FinetuneConfig, kill_at: tuple[str, int] = ("", 0)) -> list[Any]:
    """Train in this process, which dies at a moment; return what was shown of the progress."""
    films.FILMS_A_FILE = 64
    shown = []

    def show(stage: str, done: int, _total: int) -> None:
        shown.append((stage, done))
        if (stage, done) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune_classifier(ENCODER, store, out, (), config, show, "cpu")
    return shown


def read_looks(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["val/loss"]) for line in read_lines(out / "metrics.jsonl") if "val/loss" in line]


def list_changed(one: Path, other: Path) -> list[str]:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


@pytest.mark.parametrize("mode", CONFIGS)
def test_a_killed_training_is_continued_to_the_same_weights_and_the_same_end(
    mode: str, small_store: Path, tmp_path: Path
) -> None:
    """The kill comes after the best moment and before patience is at its end: both must be in the checkpoint."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    [steps] = run_ranks(finetune, 1, small_store, whole, CONFIGS[mode])
    print(steps[-1], json.loads((whole / "result.json").read_text())["notes"], read_looks(whole))
    assert 0
