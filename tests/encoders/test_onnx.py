"""Encoders as ONNX: the same features as torch, checked at load."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import build_network, compute_state_sha256
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.folder import show_encoder, write_encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.encoders.onnx import write_onnx
from chess_cxr.encoders.onnx_encoder import load_onnx_encoder
from chess_cxr.encoders.onnx_network import export_onnx
from chess_cxr.encoders.onnx_session import OnnxSession, check_outputs
from chess_cxr.records import ChessError

NETWORKS = {"test_resnet": 32, "regnetx_002": 64, "test_vit": 160, "test_convnext": 64, "test_efficientnet": 64}
FILMS = [np.random.default_rng(0).random(shape).astype(np.float32) for shape in ((60, 50), (32, 200))]


def write(name: str, out: Path) -> Path:
    contract = PixelContract(NETWORKS[name], (0.5,), (0.25,))
    state = build_network(name, 1, seed=3).state_dict()
    return write_encoder(out, state, name, contract, "MIT", TrainingSummary("Drawn.  SYNTHETIC."), onnx=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_encoder_gives_the_same_features_with_onnx(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "encoder")
    expected = load_encoder(folder).embed(FILMS)
    found = load_onnx_encoder(folder)
    np.testing.assert_allclose(found.embed(FILMS), expected, rtol=1e-4, atol=1e-5)
    assert found.compute_state_sha256() == compute_state_sha256(load_encoder(folder).module)
    assert "model.onnx" in show_encoder(folder)["sha256"] and found.feature_count == expected.shape[1]
    assert "`model.onnx`" in (folder / "README.md").read_text()
    timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)


def test_a_run_exports_onnx_beside_its_weights(pretrained: Path, tmp_path: Path) -> None:
    from chess_cxr import export

    folder = export(pretrained, tmp_path / "encoder")
    np.testing.assert_allclose(load_onnx_encoder(folder).embed(FILMS), load_encoder(folder).embed(FILMS), atol=1e-4)


def test_damage_is_one_line(tmp_path: Path) -> None:
    folder = write("test_resnet", tmp_path / "encoder")
    file = folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(content)
    with pytest.raises(ChessError, match="model.onnx is not the file its config.json describes"):
        load_onnx_encoder(broken)
    load_encoder(broken)
    (broken / "model.onnx").unlink()
    with pytest.raises(ChessError, match="model.onnx is missing"):
        load_onnx_encoder(broken)
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ChessError, match="much larger than the weights"):
        load_onnx_encoder(folder)


def test_a_folder_without_onnx_says_how_to_get_it(tmp_path: Path) -> None:
    folder = write("test_resnet", tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    del config["chess_cxr"]["sha256"]["model.onnx"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.onnx").unlink()
    with pytest.raises(ChessError, match="has no model.onnx: export it again with the extra onnx"):
        load_onnx_encoder(folder)


def test_a_folder_gets_its_onnx_file_later_and_none_of_other_weights(tmp_path: Path) -> None:
    state = build_network("test_resnet", 1, seed=3).state_dict()
    facts = ("test_resnet", PixelContract(32, (0.5,), (0.25,)), "MIT", TrainingSummary("Drawn.  SYNTHETIC."))
    folder = write_encoder(tmp_path / "encoder", state, *facts)
    write_onnx(folder, folder / "model.onnx")
    np.testing.assert_allclose(load_onnx_encoder(folder).embed(FILMS), load_encoder(folder).embed(FILMS), atol=1e-5)
    (folder / "model.onnx").unlink()
    other = write_encoder(tmp_path / "other", build_network("test_resnet", 1, seed=4).state_dict(), *facts)
    write_onnx(other, folder / "model.onnx")
    with pytest.raises(ChessError, match="by model.onnx the embedding of the test film is off by"):
        load_onnx_encoder(folder)


def test_a_network_that_another_seed_drew_is_told_from_this_one() -> None:
    films = torch.rand(2, 1, 32, 32)
    one, other = (build_network("test_resnet", 1, seed).eval() for seed in (0, 1))
    found = OnnxSession(export_onnx(one, films)).run(films.numpy())
    with torch.no_grad():
        same, different = one(films).numpy(), other(films).numpy()
    check_outputs(found, same, "it")
    with pytest.raises(ChessError, match="it differs by"):
        check_outputs(found, different, "it")
    with pytest.raises(ChessError, match="it differs by nan"):
        check_outputs(found * np.nan, same, "it")
    with pytest.raises(ChessError, match=r"gives \[1, 96\] numbers"):
        check_outputs(found[:1], same, "it")


def test_a_network_bound_to_the_number_of_films_it_was_traced_with_is_refused() -> None:
    class Bound(torch.nn.Module):
        def forward(self, film: torch.Tensor) -> torch.Tensor:
            return film.flatten(1) + torch.zeros(len(film), 1)

    with pytest.raises(ChessError, match=r"model.onnx gives \[2, 16\] numbers"):
        export_onnx(Bound(), torch.rand(2, 1, 4, 4))


def test_what_onnx_cannot_express_is_one_line() -> None:
    class Sorter(torch.nn.Module):
        def forward(self, film: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(film.flatten(1)).mean() * film.flatten(1)

    with pytest.raises(ChessError, match="torch cannot write this network as ONNX: ") as caught:
        export_onnx(Sorter(), torch.rand(2, 1, 4, 4))
    assert "\n" not in str(caught.value)
