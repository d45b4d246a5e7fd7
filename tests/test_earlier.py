"""Folders written by version 0.1 load, say the same, and what was begun then is finished now."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import chess_cxr
from chess_cxr import BonesConfig, NodulesConfig
from tiny_runs import build_tiny_config

ARCHIVE = Path(__file__).parent / "earlier" / "v0.1.tar.xz"
BONES = BonesConfig(size=32, crop=32, decoder="tiny", perceptual="none", steps=4, batch=2, checkpoint_every=2)
NODULES = NodulesConfig(
    size=64, film_size=96, width=4, latent=8, steps=4, batch=2, perceptual="none", checkpoint_every=2
)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def films(earlier: Path) -> list[np.ndarray]:
    read = chess_cxr.open_store(earlier / "films.lance").read_films(np.arange(4))
    return [film.astype(np.float32) / 255 for film in read]


def assert_same_weights(made: Path, expected: Path) -> None:
    """Weights may differ by what another processor's sums round differently."""
    ours, theirs = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (made, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


def test_an_earlier_encoder_says_the_same(earlier: Path, films: list[np.ndarray]) -> None:
    said = chess_cxr.load_encoder(earlier / "encoder").embed(films)
    np.testing.assert_allclose(said, np.load(earlier / "expected.npz")["encoder"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "mlp", "attentive", "full"])
def test_an_earlier_classifier_says_the_same(mode: str, earlier: Path, films: list[np.ndarray]) -> None:
    said = chess_cxr.load_classifier(earlier / f"classifier_{mode}").predict(films)
    np.testing.assert_allclose(said, np.load(earlier / "expected.npz")[f"classifier_{mode}"], rtol=1e-4, atol=1e-5)


def test_a_pretraining_run_begun_earlier_is_finished(earlier: Path) -> None:
    run = chess_cxr.pretrain(earlier / "films.lance", earlier / "run_begun", build_tiny_config())
    exported = chess_cxr.export(run, earlier / "exported")
    assert_same_weights(exported, earlier / "encoder")


def test_a_bone_model_begun_earlier_is_finished(earlier: Path, films: list[np.ndarray]) -> None:
    out = earlier / "bones_begun"
    chess_cxr.finetune_bones(str(earlier / "encoder"), ["phantom:8@64#2"], out, BONES, test=0.25)
    assert_same_weights(out, earlier / "bones")
    new, old = (chess_cxr.load_bone_suppressor(folder) for folder in (out, earlier / "bones"))
    np.testing.assert_allclose(new.suppress(films[0]), old.suppress(films[0]), atol=1e-3)


def test_a_nodule_generator_begun_earlier_is_finished(earlier: Path) -> None:
    out = earlier / "nodules_begun"
    chess_cxr.finetune_nodules(str(earlier / "encoder"), ["phantom:12@96"], out, NODULES)
    assert_same_weights(out, earlier / "nodules")
    chess_cxr.load_nodule_generator(earlier / "nodules")
