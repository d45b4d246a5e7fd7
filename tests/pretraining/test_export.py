import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.load import load_encoder
from chess_cxr.pretraining.export import export, sum_seconds
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from command_line import run
from places import CHECKOUT
from tiny_runs import build_tiny_config


@pytest.fixture(scope="module")
def exported(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pretrained, tmp_path_factory.mktemp("encoders") / "first", "Apache-2.0", "Small pictures. SYNTHETIC.")


def test_an_exported_encoder_is_the_query_network_of_the_newest_checkpoint(pretrained: Path, exported: Path) -> None:
    newest = find_checkpoint(pretrained / "checkpoints")
    assert newest is not None
    step, _, tensors = read_checkpoint(newest)
    assert step == 4
    state = load_encoder(exported).module.state_dict()
    assert {f"method.encoder.{name}" for name in state} == {n for n in tensors if n.startswith("method.encoder.")}
    assert all(torch.equal(tensor, tensors[f"method.encoder.{name}"]) for name, tensor in state.items())


def test_an_exported_encoder_says_what_it_was_trained_on(pretrained: Path, exported: Path, store: Store) -> None:
    encoder = load_encoder(exported)
    assert encoder.contract == PixelContract(32, (0.5,), (0.25,))
    assert encoder.training_uids == set(store.films.loc[store.films["split"] == "train", "uid"])
    assert (encoder.training.steps, encoder.training.images) == (4, len(encoder.training_uids))
    assert encoder.training.data == "Small pictures. SYNTHETIC." and encoder.licence == "Apache-2.0"
    config = {name: value for name, value in encoder.training.config.items() if name != "data"}
    assert config == json.loads(json.dumps(asdict(build_tiny_config())))


def test_an_exported_encoder_says_how_many_seconds_its_steps_took_and_on_what(pretrained: Path, exported: Path) -> None:
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    assert len(speeds) == 2  # 4 steps of 8 films, a line every second step
    training = load_encoder(exported).training
    assert training.seconds == pytest.approx(sum(16 / speed for speed in speeds), abs=0.1)
    assert re.fullmatch(r".+, \d+ threads?", training.machine)
    assert sum_seconds(pretrained, 8, 2) == pytest.approx(16 / speeds[0], abs=0.1)


def test_tables_and_limits_reach_the_card_by_a_command(exported: Path, tmp_path: Path) -> None:
    """The tables are those of runs/judge_table.py, on a summary as the benchmark writes it."""
    folder = Path(shutil.copytree(exported, tmp_path / "encoder"))
    summary = pd.DataFrame({"encoder": ["ours"], "task": ["tb"], "head": ["linear"], "subset": ["10 % (8 films)"]})
    summary.assign(metric="auroc", value=0.8125).to_csv(tmp_path / "summary.csv")
    command = [sys.executable, CHECKOUT / "runs" / "judge_table.py", tmp_path]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "table.md").write_text(table)
    (tmp_path / "gaps.md").write_text("Women 0.80, men 0.82.")
    (tmp_path / "limits.md").write_text("Trained on small pictures.")
    words = ("--evaluation", tmp_path / "table.md", tmp_path / "gaps.md", "--limits", tmp_path / "limits.md")
    answer = run("weights", "card", folder, *words)
    assert (answer.code, answer.out.strip()) == (0, str(folder / "README.md")), answer.err
    card = (folder / "README.md").read_text()
    for said in (
        "| encoder | tb, 10 % | mean |",
        "| ours | 0.812 | 0.812 |",
        "Women 0.80, men 0.82.",
        "small pictures.",
    ):
        assert said in card
    assert "None is recorded here" not in card


def test_an_encoder_can_do_without_onnx(pretrained: Path, exported: Path, tmp_path: Path) -> None:
    assert (exported / "model.onnx").exists()
    answer = run("export", pretrained, "--out", tmp_path / "bare", "--without-onnx")
    assert (answer.code, answer.err) == (0, "") and not (tmp_path / "bare" / "model.onnx").exists()
    assert load_encoder(tmp_path / "bare").architecture == load_encoder(exported).architecture


def test_what_is_no_run_cannot_be_exported_or_read(tmp_path: Path) -> None:
    for read in (lambda: export(tmp_path, tmp_path / "out"), lambda: read_metrics(tmp_path)):
        with pytest.raises(UsageError, match="is not a run"):
            read()
    (tmp_path / "config.json").write_text('{"preset": "demo"}')
    with pytest.raises(UsageError, match="no checkpoint yet"):
        export(tmp_path, tmp_path / "out")
