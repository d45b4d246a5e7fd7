import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.load import load_encoder
from chess_cxr.pretraining.export import export
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
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


def test_what_is_no_run_cannot_be_exported_or_read(tmp_path: Path) -> None:
    for read in (lambda: export(tmp_path, tmp_path / "out"), lambda: read_metrics(tmp_path)):
        with pytest.raises(UsageError, match="is not a run"):
            read()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        export(tmp_path, tmp_path / "out")
