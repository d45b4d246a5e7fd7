"""The encoders a suite may name, each loaded for real where that needs no network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.benchmarking.encoders import (
    check_spec,
    compute_identity,
    describe_source,
    load_source,
    resolve_sources,
)
from chess_cxr.benchmarking.suite import EncoderSource
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder, TrainingSummary, build_network
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import CHESS_CONTRACT, find_imagenet_weights, load_encoder, load_hub_folder
from chess_cxr.records import ChessError, UsageError

UIDS = [f"{number:032x}" for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with a contract of its own and six training uids."""
    out = tmp_path_factory.mktemp("encoders") / "first"
    contract = PixelContract(48, (0.4,), (0.3,), percentiles=(1.0, 99.0))
    state = build_network("test_resnet", 1, seed=3).state_dict()
    return write_encoder(out, state, "test_resnet", contract, "MIT", TrainingSummary("Some films. More."), UIDS)


def load(spec: str, like: str = "") -> Encoder:
    encoder = load_source(EncoderSource("x", spec, like))
    assert isinstance(encoder, Encoder)
    return encoder


def test_random_is_the_references_network_on_the_references_pixels_untrained(folder: Path) -> None:
    sources = resolve_sources({"scratch": "random", "ours": str(folder)}, "ours")
    scratch, ours = (load_source(sources[name]) for name in ("scratch", "ours"))
    assert isinstance(scratch, Encoder) and isinstance(ours, Encoder)
    assert (scratch.architecture, scratch.contract) == (ours.architecture, ours.contract)
    assert compute_identity(scratch) != compute_identity(ours)


def test_random_like_bare_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="random:resnet50@512"):
        resolve_sources({"scratch": "random", "pixels": "pixels:32"}, "pixels")


def test_imagenet_without_a_network_is_efficientnet_lite0_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sources = resolve_sources({"ImageNet": "imagenet", "ours": str(folder)}, "ours")
    facts = describe_source(sources["ImageNet"])
    assert facts.source.spec == "imagenet:tf_efficientnet_lite0" and "ImageNet-1k" in facts.about
    assert facts.notes == ("ImageNet: weights of EfficientNet-Lite0, as those of test_resnet are not at hand.",)


def test_weights_of_other_pictures_than_imagenet_do_not_pass_for_it() -> None:
    assert not find_imagenet_weights("vit_base_patch16_clip_224")  # its default weights are of image and text pairs
    assert not find_imagenet_weights("regnety_640") and not find_imagenet_weights("no_such_network")


def test_the_published_checkpoint_is_read_with_its_own_pixels(tmp_path: Path) -> None:
    module = build_network("resnet50", 1, seed=1)
    state = {f"module.encoder_q.{key}": value for key, value in module.state_dict().items()}
    head = {"fc.weight": torch.zeros(128, 2048), "fc.bias": torch.zeros(128)}
    state |= {f"module.encoder_q.{key}": value for key, value in head.items()}
    torch.save({"epoch": 199, "arch": "resnet50", "state_dict": state}, tmp_path / "chess.pth.tar")
    encoder = load(f"chess:{tmp_path / 'chess.pth.tar'}")
    assert (encoder.architecture, encoder.contract, encoder.feature_count) == ("resnet50", CHESS_CONTRACT, 2048)
    assert torch.equal(encoder.module.state_dict()["conv1.weight"], module.state_dict()["conv1.weight"])


def test_a_repository_of_ours_keeps_its_contract_and_timms_gets_one(folder: Path, tmp_path: Path) -> None:
    assert load_hub_folder(folder, "owner/name").contract == load_encoder(folder).contract
    shutil.copytree(folder, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    del config["chess_cxr"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    theirs = load_hub_folder(tmp_path / "theirs", "owner/name")
    assert theirs.contract == PixelContract(48, (0.4,), (0.3,))
    film = np.random.default_rng(0).random((60, 50), np.float32)
    plain = Encoder(**vars(load_encoder(folder)) | {"contract": theirs.contract})
    np.testing.assert_allclose(theirs.embed([film]), plain.embed([film]), rtol=1e-5)
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with pytest.raises(ChessError, match="hf:owner/name is no network that timm can load"):
        load_hub_folder(tmp_path / "theirs", "owner/name")


def test_an_encoder_tells_which_scored_films_it_was_trained_on(folder: Path) -> None:
    scored = {"a": np.array([*UIDS[:2], "f" * 32]), "b": np.array(["e" * 32])}
    facts = describe_source(EncoderSource("ours", str(folder)), scored)
    assert facts.seen == {"a": "ours was pre-trained, without labels, on 2 of these 3 films."}


def test_the_identity_is_that_of_weights_and_contract_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    encoder = load(str(folder))
    assert compute_identity(load(str(tmp_path / "moved"))) == compute_identity(encoder)
    other = Encoder(**vars(encoder) | {"contract": PixelContract(48, (0.4,), (0.3,))})
    assert compute_identity(other) != compute_identity(encoder)
    assert compute_identity("pixels:16") != compute_identity("pixels:32")


def test_torchxrayvision_gets_its_own_pixels_and_gives_its_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: str(tmp_path))
    with pytest.raises(ChessError, match="weights of xrv:densenet121-res224-all are not here: fetch https://"):
        load("xrv:densenet121-res224-all")
    torch.manual_seed(0)
    network = xrv.models.DenseNet(weights=None).eval()
    file = str(xrv.models.model_urls["densenet121-res224-all"]["weights_url"]).rpartition("/")[2]
    torch.save(network, tmp_path / file)  # as the published file: a whole pickled network
    encoder = load("xrv:densenet121-res224-all")
    assert encoder.feature_count == 1024
    film = np.random.default_rng(0).random((224, 224), np.float32)
    with torch.inference_mode():
        theirs = network.features2(torch.from_numpy(xrv.datasets.normalize(film, 1.0))[None, None])
    rounding = 1e-6 * float(theirs.abs().max())  # an untrained network gives numbers up to thousands
    np.testing.assert_allclose(encoder.embed([film]), theirs.numpy(), rtol=1e-3, atol=rounding)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_torchxrayvision_file_with_code_in_it_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: str(tmp_path))
    file = str(xrv.models.model_urls["densenet121-res224-all"]["weights_url"]).rpartition("/")[2]
    torch.save({"features": Hostile()}, tmp_path / file)
    with pytest.raises(ChessError, match="is not a network of torchxrayvision"):
        load("xrv:densenet121-res224-all")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no/such/folder", "there is no encoder folder no/such/folder"),
        ("chess", "chess needs the published file"),
        ("chess:/no/such.pth.tar", "there is no file /no/such.pth.tar"),
        ("timm:", "should be timm:NAME"),
    ],
)
def test_what_is_no_encoder_is_said_at_once(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_spec(spec)
