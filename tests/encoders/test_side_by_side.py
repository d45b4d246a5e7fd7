"""The same films through chess-cxr and through what others open an encoder folder with: the same features."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from chess_cxr.encoders.contract import PixelContract, draw_golden_film
from chess_cxr.encoders.encoder import Encoder, TrainingSummary, build_network
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import import_chess, load_encoder
from chess_cxr.encoders.onnx import write_onnx
from chess_cxr.encoders.processor import describe_for_timm, describe_for_transformers, list_unexpressed
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.train import finetune_classifier
from chess_cxr.tasks.classify.xrv import load_as_xrv
from command_line import run
from places import CHECKOUT

WEIGHTS = CHECKOUT / "weights"
FOLDER = WEIGHTS / "cxr-small"
# How far features may be off where others resize films: the deeper network heeds details that Pillow changes.
RESIZED = {"cxr-first": 0.06, "cxr-small": 0.15, "cxr-small-open": 0.1}
CHESS = PixelContract(48, (0.658,), (0.221,), percentiles=(0.0, 99.0), polarity="bone_dark")


def draw_films(side: int = 0) -> list[np.ndarray]:
    """Draw four films of different shapes, uint8, or of one size if it is given."""
    rng = np.random.default_rng(3)
    films = [draw_golden_film(230)]
    films += [cv2.GaussianBlur(rng.random((260 + 40 * n, 300 - 30 * n), np.float32), (0, 0), 5) for n in range(3)]
    films = [(film - film.min()) / (film.max() - film.min()) for film in films]
    films = [cv2.resize(film, (side, side), interpolation=cv2.INTER_AREA) if side else film for film in films]
    return [np.rint(255 * film).astype(np.uint8) for film in films]


def scale(films: list[np.ndarray]) -> list[np.ndarray]:
    return [film.astype(np.float32) / 255 for film in films]


def measure_miss(found_ND: Any, expected_ND: np.ndarray) -> float:
    """Return the largest distance of a film's features from the expected ones, relative to their length."""
    distance_N = np.linalg.norm(np.asarray(found_ND) - expected_ND, axis=1)
    return float((distance_N / np.linalg.norm(expected_ND, axis=1)).max())


@pytest.fixture(scope="module")
def small() -> Encoder:
    return load_encoder(FOLDER)


@pytest.fixture(scope="module")
def chess_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network under a contract with window and inversion."""
    out = tmp_path_factory.mktemp("encoders") / "chess_like"
    state = build_network("test_resnet", 1, seed=4).state_dict()
    return write_encoder(out, state, "test_resnet", CHESS, "MIT", TrainingSummary("None."))


def open_with_transformers(folder: Path, **options: Any) -> Callable[[list[Any]], np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoImageProcessor, AutoModel

        processor = AutoImageProcessor.from_pretrained(folder, **options)
        model = AutoModel.from_pretrained(folder).eval()

    def embed(pictures: list[Any]) -> np.ndarray:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            feature_ND: np.ndarray = model(**processor(pictures)).pooler_output.numpy()
            return feature_ND

    return embed


def test_films_of_four_kinds_are_told_apart(small: Encoder) -> None:
    """Or the comparisons below would say nothing."""
    feature_ND = small.embed(scale(draw_films()))
    assert measure_miss(np.roll(feature_ND, 1, axis=0), feature_ND) > 0.3


@pytest.mark.parametrize("name", RESIZED)
def test_timm(name: str) -> None:
    encoder = load_encoder(WEIGHTS / name)
    network = timm.create_model(f"local-dir:{WEIGHTS / name}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    for side, tolerance in ((encoder.contract.size, 1e-5), (0, RESIZED[name])):
        films = draw_films(side)
        with torch.inference_mode():
            feature_ND = network(torch.stack([transform(Image.fromarray(film)) for film in films])).numpy()
        assert measure_miss(feature_ND, encoder.embed(scale(films))) < tolerance


@pytest.mark.parametrize("name", RESIZED)
@pytest.mark.parametrize("options", [{}, {"image_processor_filename": "preprocessor_config.json"}])
def test_transformers(name: str, options: dict[str, str]) -> None:
    """With the file that it finds by itself, and with the one that it reads first on the Hub."""
    encoder, embed = load_encoder(WEIGHTS / name), open_with_transformers(WEIGHTS / name, **options)
    for side, tolerance in ((encoder.contract.size, 1e-5), (0, RESIZED[name])):
        films = draw_films(side)
        expected_ND = encoder.embed(scale(films))
        assert measure_miss(embed([Image.fromarray(film) for film in films]), expected_ND) < tolerance
        assert measure_miss(embed([film[None] for film in films]), expected_ND) < tolerance


def test_transformers_after_the_steps_that_it_cannot_express(chess_like: Path) -> None:
    films = draw_films(CHESS.size)
    expected_ND = load_encoder(chess_like).embed(scale(films))
    embed = open_with_transformers(chess_like)
    assert measure_miss(embed([Image.fromarray(film) for film in films]), expected_ND) > 0.05
    by_hand = []
    for film in scale(films):
        low, high = np.percentile(1 - film, CHESS.percentiles)
        window = (np.clip(1 - film, low, high) - low) / (high - low)
        by_hand.append(Image.fromarray(np.rint(255 * window).astype(np.uint8)))
    assert measure_miss(embed(by_hand), expected_ND) < 0.01
    told = " ".join(list_unexpressed(CHESS))
    assert "air bright and bone dark" in told and "percentiles 0.0 and 99.0" in told


@pytest.mark.parametrize(("fit", "crop"), [("squash", "squash"), ("pad", "border"), ("crop", "center")])
def test_the_processor_fits_films_of_any_shape_as_the_contract_does(fit: Any, crop: str) -> None:
    contract = PixelContract(64, (0.0,), (1.0,), interpolation="bilinear", fit=fit)
    assert describe_for_timm(contract)["crop_mode"] == crop
    facts = describe_for_timm(replace(contract, mean=(0.5,), std=(0.25,)))
    assert (facts["mean"], facts["std"], facts["input_size"]) == ([0.5], [0.25], [1, 64, 64])
    transform = timm.data.create_transform(**timm.data.resolve_data_config(describe_for_timm(contract)))
    film = draw_films(64)[0][:, :48] if fit != "squash" else draw_films(64)[0]
    expected = contract.prepare(film.astype(np.float32) / 255)
    found = transform(Image.fromarray(film))
    middle = (slice(None), slice(None), slice(10, 54)) if fit == "pad" else (slice(None),) * 3
    assert float((found - expected)[middle].abs().mean()) < 0.02
    assert any("margins" in sentence for sentence in list_unexpressed(contract)) == (fit == "pad")


def test_the_file_for_transformers_says_what_the_contract_says() -> None:
    said = describe_for_transformers(CHESS)
    assert said == json.loads(json.dumps(said))
    assert (said["size"], said["image_mean"], said["image_std"]) == ({"height": 48, "width": 48}, [0.658], [0.221])
    assert not said["do_convert_rgb"]
    assert json.loads((FOLDER / "preprocessor_config.json").read_text()) == describe_for_transformers(
        load_encoder(FOLDER).contract
    )


def normalise_as_xrv(films: list[np.ndarray]) -> torch.Tensor:
    with warnings.catch_warnings():  # importing the library switches all warnings off
        import torchxrayvision as xrv
    return torch.from_numpy(np.stack([xrv.datasets.normalize(film, 255) for film in films])[:, None])


def test_an_encoder_behind_the_interface_of_torchxrayvision(small: Encoder) -> None:
    films = draw_films(224)
    model = load_as_xrv("cxr-small")
    found_BD = model.features(normalise_as_xrv(films))
    assert measure_miss(found_BD.detach(), small.embed(scale(films))) < 1e-4
    assert model.pathologies == [] and torch.equal(model(normalise_as_xrv(films)), found_BD)
    found_BD.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_classifier_behind_the_interface_of_torchxrayvision(
    tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model")
    model, ours = load_as_xrv(tmp_path / "model"), load_classifier(tmp_path / "model")
    films = draw_films(40)
    assert model.pathologies == list(ours.labels) == ["stripes", "spots"]
    with torch.inference_mode():
        found_BL = model(normalise_as_xrv(films))
        np.testing.assert_allclose(found_BL.numpy(), ours.predict(scale(films)), atol=1e-4)
        assert float(found_BL.std()) > 0
        feature_BD = model.features(normalise_as_xrv(films))
    assert measure_miss(feature_BD, tiny_encoder.embed(scale(films))) < 1e-4


@pytest.mark.parametrize(
    ("films", "said"),
    [
        (torch.zeros(2, 32, 32), r"\[B, 1, H, W\]"), (torch.zeros(2, 3, 32, 32), r"\[B, 1, H, W\]"),
        (torch.full((1, 1, 32, 32), 2000.0), "-1024 … 1024"),
    ],
)  # fmt: skip
def test_what_torchxrayvision_would_not_hand_over_is_refused(films: torch.Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_as_xrv(FOLDER).features(films)


def test_onnx(chess_like: Path, tmp_path: Path) -> None:
    import onnxruntime

    answer = run("weights", "onnx", str(chess_like), "--out", tmp_path / "encoder.onnx")
    assert answer.code == 0, answer.err
    assert answer.out.strip() == str(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["chess_cxr"])
    assert about["contract"]["percentiles"] == [0.0, 99.0]
    films, encoder = scale(draw_films()), load_encoder(chess_like)
    for some in (films, films[:1]):
        pixels_NCSS = torch.stack([encoder.contract.prepare(film) for film in some]).numpy()
        [feature_ND] = session.run(["features"], {"pixels": pixels_NCSS})
        assert measure_miss(feature_ND, encoder.embed(some)) < 2e-4
    with pytest.raises(UsageError, match="exists already"):
        write_onnx(chess_like, tmp_path / "encoder.onnx")


def test_an_onnx_file_that_embeds_otherwise_is_not_written(tmp_path: Path) -> None:
    class Drifting(torch.nn.Module):
        """Gives other features whenever it runs, as a wrong translation would."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, film_BCSS: torch.Tensor) -> torch.Tensor:
            shift = 0.0 if torch.jit.is_tracing() else 1.0
            return film_BCSS.flatten(1)[:, :8] * self.weight + shift

    encoder = load_encoder("random:test_resnet@32")
    encoder.module, encoder.feature_count = Drifting().eval(), 8
    with pytest.raises(Exception, match="model.onnx differs by"):
        write_onnx(encoder, tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_published_checkpoint_is_imported_with_the_same_files(tmp_path: Path) -> None:
    file = tmp_path / "chess.pth.tar"
    torch.save({"state_dict": build_network("resnet50", 1, 1).state_dict()}, file)
    out = import_chess(file, tmp_path / "encoder")
    assert {path.name for path in out.iterdir()} == {path.name for path in FOLDER.iterdir()}
    said = json.loads((out / "preprocessor_config.json").read_text())
    assert (said["size"]["height"], said["image_mean"], said["image_std"]) == (512, [0.658], [0.221])
    card = (out / "README.md").read_text()
    assert "percentiles 0.0 and 99.0" in card and "cannot be checked" in card
