import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from chess_cxr.encoders.contract import PixelContract, Polarity, draw_golden_film
from chess_cxr.encoders.encoder import (
    Encoder,
    TrainingSummary,
    build_grey_network,
    build_network,
    list_expected_tensors,
)
from chess_cxr.encoders.folder import CPU_TOLERANCE, show_encoder, write_card, write_encoder
from chess_cxr.encoders.load import build_random_encoder, import_chess, load_encoder
from chess_cxr.encoders.published import LITE0_FILE, LITE0_PACKAGE, read_chess_checkpoint
from chess_cxr.records import ChessError, UsageError
from chess_cxr.views import resize_film

ARCHITECTURE = "test_efficientnet"
GREY = PixelContract(64, (0.5,), (0.25,))
TRAINING = TrainingSummary("120 generated films, CC0.", 120, 30, "MoCo v2", "2025-01-01", {"seed": 1, "lr": 0.03})
UIDS = [hashlib.sha256(str(number).encode()).hexdigest()[:24] for number in range(5)]


def build_trained_network(architecture: str = ARCHITECTURE, channels: int = 1) -> torch.nn.Module:
    """Stand in for a trained network: timm leaves some branches at zero, these weights reach the features."""
    module = build_network(architecture, channels, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean"):
                tensor.normal_(generator=generator)
    return module.eval()


def write_small(out: Path, contract: PixelContract = GREY, **changes: Any) -> Path:
    module = build_trained_network(channels=contract.channels)
    arguments = {"licence": "CC-BY-4.0", "training": TRAINING, "training_uids": UIDS, **changes}
    return write_encoder(out, module.state_dict(), ARCHITECTURE, contract, **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def draw_films(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((70 + 9 * index, 90 - 7 * index), np.float32) for index in range(count)]


def assert_one_line(error: pytest.ExceptionInfo[ChessError]) -> None:
    assert str(error.value) and "\n" not in str(error.value)


# The pixel contract


def test_the_published_percentile_rule_is_followed_step_by_step() -> None:
    film_HW = draw_films(1)[0][:64, :64] ** 2
    contract = PixelContract(16, (0.658,), (0.221,), percentiles=(0, 99))
    levels = sorted(float(value) for value in film_HW.ravel())
    place = 0.99 * (len(levels) - 1)
    whole = int(place)
    high = levels[whole] + (place - whole) * (levels[whole + 1] - levels[whole])
    expected = np.empty((16, 16))
    for row in range(16):
        for column in range(16):
            block = film_HW[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype(float)
            stretched = (np.minimum(block, high) - levels[0]) / (high - levels[0])
            expected[row, column] = (stretched.mean() - 0.658) / 0.221
    np.testing.assert_allclose(contract.prepare(film_HW)[0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("percentiles", [None, (0, 99), (1, 99)])
def test_a_blank_film_gives_a_constant_input_and_no_nan(level: float, percentiles: tuple[float, float] | None) -> None:
    contract = replace(GREY, percentiles=percentiles)
    prepared = contract.prepare(np.full((50, 40), level, np.float32))
    assert torch.isfinite(prepared).all()
    assert prepared.unique().numel() == 1


def test_a_film_in_which_all_but_a_few_pixels_are_black_gives_no_nan() -> None:
    film_HW = np.zeros((100, 100), np.float32)
    film_HW[:3, :3] = 1
    assert torch.isfinite(replace(GREY, percentiles=(0, 99)).prepare(film_HW)).all()


def test_a_network_of_the_other_polarity_gets_the_inverted_film() -> None:
    film_HW = draw_films(1)[0]
    for fit in ("squash", "crop"):
        bright = replace(GREY, percentiles=(2, 99), fit=fit)
        dark = replace(bright, polarity="bone_dark")
        torch.testing.assert_close(dark.prepare(film_HW), bright.prepare(1 - film_HW))


@pytest.mark.parametrize("polarity", ["bone_bright", "bone_dark"])
def test_padding_is_air_on_both_sides_and_keeps_the_proportions(polarity: Any) -> None:
    contract = PixelContract(64, (0.0,), (1.0,), fit="pad", polarity=polarity)
    prepared = contract.prepare(np.full((64, 32), 0.75, np.float32))[0].numpy()
    air, tissue = (0.0, 0.75) if polarity == "bone_bright" else (1.0, 0.25)
    assert (prepared[:, :16] == air).all()
    assert (prepared[:, 16:48] == tissue).all()
    assert (prepared[:, 48:] == air).all()


def test_cropping_keeps_the_central_square() -> None:
    film_HW = np.zeros((64, 128), np.float32)
    film_HW[:, 32:96] = 0.5
    prepared = PixelContract(64, (0.0,), (1.0,), fit="crop").prepare(film_HW)
    assert (prepared == 0.5).all()


def test_each_channel_has_its_own_mean_and_std() -> None:
    film_HW = draw_films(1)[0]
    three = PixelContract(32, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), channels=3).prepare(film_HW)
    plain = PixelContract(32, (0.0,), (1.0,)).prepare(film_HW)[0]
    assert three.shape == (3, 32, 32)
    assert three.dtype == torch.float32
    for channel, (mean, std) in enumerate([(0.4, 0.1), (0.5, 0.2), (0.6, 0.3)]):
        torch.testing.assert_close(three[channel], (plain - mean) / std)


@pytest.mark.parametrize("shape", [(200, 150), (40, 50), (64, 64), (40, 200)])
def test_the_contract_resizes_as_training_does(shape: tuple[int, int]) -> None:
    film_HW = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    prepared = PixelContract(64, (0.0,), (1.0,)).prepare(film_HW.astype(np.float32) / 255)[0].numpy()
    # OpenCV rounds 8-bit bilinear weights to 1/2048: less than one grey level remains.
    np.testing.assert_allclose(prepared * 255, resize_film(film_HW, 64), rtol=0, atol=0.99)


@pytest.mark.parametrize(
    ("film", "reason"),
    [
        (np.zeros((8, 8), np.uint8), "uint8"),
        (np.full((8, 8), 200.0, np.float32), "200"),
        (np.full((8, 8), -1.0, np.float32), "-1"),
        (np.full((8, 8), np.nan, np.float32), "nan"),
        (np.zeros((8, 8, 3), np.float32), "(8, 8, 3)"),
        (np.zeros((0, 8), np.float32), "(0, 8)"),
        ([[0.5]], "list"),
    ],
)
def test_what_is_no_film_is_refused(film: Any, reason: str) -> None:
    with pytest.raises(ChessError) as error:
        GREY.prepare(film)
    assert reason in str(error.value)
    assert_one_line(error)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 15},
        {"size": 4096},
        {"size": 64.0},
        {"size": True},
        {"mean": (0.5, 0.5)},
        {"mean": 0.5},
        {"mean": ("a",)},
        {"mean": (float("nan"),)},
        {"mean": (10**400,)},
        {"std": (0.0,)},
        {"std": (float("inf"),)},
        {"percentiles": (99, 1)},
        {"percentiles": (0, 101)},
        {"percentiles": (0, 50, 99)},
        {"polarity": "inverted"},
        {"interpolation": "cubic"},
        {"fit": ["squash"]},
        {"channels": 2},
        {"channels": 3},
    ],
)
def test_a_contract_that_makes_no_sense_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="pixel contract: ") as error:
        replace(GREY, **change)
    assert next(iter(change)) in str(error.value) or "channels" in change
    assert_one_line(error)


def test_the_golden_film_is_a_film_with_a_bright_tail() -> None:
    film_HW = draw_golden_film(64)
    assert film_HW.shape == (80, 72)
    assert film_HW.dtype == np.float32
    assert 0 < film_HW.min() < film_HW.max() < 1
    assert film_HW.max() - np.percentile(film_HW, 99) > 0.1


# The encoder folder


@pytest.mark.parametrize(
    "contract", [GREY, PixelContract(64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), channels=3)], ids=["grey", "three"]
)
def test_timm_alone_gives_the_same_features_to_the_bit(contract: PixelContract, tmp_path: Path) -> None:
    out = write_small(tmp_path / "encoder", contract)
    encoder = load_encoder(out)
    alone = timm.create_model(f"local-dir:{out}", pretrained=True).eval().to(memory_format=torch.channels_last)
    inputs = torch.stack([contract.prepare(film) for film in draw_films()]).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = alone(inputs).numpy()
    assert expected.std() > 0
    np.testing.assert_array_equal(encoder.embed(draw_films()), expected)
    facts = timm.data.resolve_model_data_config(alone)
    assert (facts["input_size"], facts["mean"]) == ((contract.channels, 64, 64), list(contract.mean))


def test_timm_alone_puts_a_fresh_classifier_on_our_weights(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=4)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert model.get_classifier().out_features == 4
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items() if key in stored)
    assert len(set(model.state_dict()) - set(stored)) == 2


def test_everything_said_at_writing_is_known_at_loading(tmp_path: Path) -> None:
    contract = PixelContract(48, (0.4,), (0.3,), (1.0, 99.5), "bone_dark", "bilinear", "pad")
    encoder = load_encoder(write_small(tmp_path / "encoder", contract))
    assert encoder.contract == contract
    assert encoder.training == TRAINING
    assert encoder.training_uids == frozenset(UIDS)
    assert (encoder.name, encoder.architecture, encoder.licence) == ("encoder", ARCHITECTURE, "CC-BY-4.0")
    assert encoder.feature_count == 256
    assert not encoder.module.training


def test_the_folder_holds_no_pickle_and_everybody_may_read_it(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "golden.safetensors", "training_uids.txt", "README.md",
        "preprocessor_config.json",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert (folder / "training_uids.txt").read_text() == "".join(f"{uid}\n" for uid in sorted(UIDS))


def test_the_recorded_sums_are_those_of_the_files(folder: Path) -> None:
    for name, recorded in show_encoder(folder)["sha256"].items():
        assert recorded == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_folder_of_the_first_version_says_nothing_of_seconds_and_loads(copied: Path) -> None:
    def forget(config: dict[str, Any]) -> None:
        del config["chess_cxr"]["training"]["seconds"], config["chess_cxr"]["training"]["machine"]

    (copied / "preprocessor_config.json").unlink()
    change_config(copied, forget)
    encoder = load_encoder(copied)
    assert (encoder.training.seconds, encoder.training.machine, encoder.training.images) == (0.0, "", 120)
    assert "| seconds | not stated |" in write_card(copied, "").read_text()


def test_showing_an_encoder_gives_plain_json(folder: Path) -> None:
    shown = json.loads(json.dumps(show_encoder(folder)))
    assert shown["contract"]["size"] == 64
    assert shown["training"]["config"] == {"seed": 1, "lr": 0.03}
    assert (shown["training_uids"], shown["feature_count"]) == (5, 256)


def test_films_are_embedded_alike_alone_and_in_batches(folder: Path) -> None:
    encoder, films = load_encoder(folder), draw_films(5)
    together = encoder.embed(films, batch=2)
    assert together.shape == (5, 256)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.embed([film]) for film in films])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_films_are_prepared_a_batch_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, films, counts = load_encoder(folder), draw_films(5), list[int]()
    prepare = encoder.prepare

    def count(_: Encoder, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        counts.append(len(pixels))
        return prepare(pixels)

    monkeypatch.setattr(Encoder, "prepare", count)
    encoder.embed(films, batch=2)
    assert counts == [2, 2, 1]


def test_no_films_give_no_rows(folder: Path) -> None:
    assert load_encoder(folder).embed([]).shape == (0, 256)


def test_embedding_never_moves_the_running_statistics(folder: Path) -> None:
    encoder = load_encoder(folder)
    before = {key: tensor.clone() for key, tensor in encoder.module.state_dict().items()}
    encoder.module.train()
    encoder.embed(draw_films())
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.module.state_dict().items())


def test_a_loaded_encoder_can_be_sent_to_another_process(folder: Path) -> None:
    encoder = load_encoder(folder)
    received: Encoder = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(received.embed(draw_films()), encoder.embed(draw_films()))
    assert received.training_uids == frozenset(UIDS)


def test_loading_leaves_the_random_numbers_of_the_caller_alone(folder: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_encoder(folder)
    load_encoder("random:regnetx_002@64")
    assert torch.equal(torch.rand(3), expected)


def test_the_golden_embedding_leaves_room_for_other_arithmetic(folder: Path) -> None:
    encoder = load_encoder(folder)
    golden_D = safetensors.torch.load_file(folder / "golden.safetensors")["embedding"].double()
    film = GREY.prepare(draw_golden_film(64))[None]
    with torch.inference_mode():
        exact_D = encoder.module.double()(film.double())[0]
    assert (exact_D - golden_D).norm() / golden_D.norm() < CPU_TOLERANCE / 20


# Folders that were changed, damaged or made to harm


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.501]},
        {"std": [0.2525]},
        {"percentiles": [0, 99]},
        {"polarity": "bone_dark"},
        {"interpolation": "bilinear"},
        {"fit": "pad"},
        {"fit": "crop"},
        {"size": 63},
    ],
)
def test_a_changed_contract_is_found_by_the_golden_embedding(copied: Path, change: dict[str, Any]) -> None:
    def rewrite(config: dict[str, Any]) -> None:
        contract, known = config["chess_cxr"]["contract"], config["pretrained_cfg"]
        contract.update(change)
        size = contract["size"]
        known.update(mean=contract["mean"], std=contract["std"], input_size=[1, size, size])

    change_config(copied, rewrite)
    with pytest.raises(ChessError, match="embedding of the test film is off") as error:
        load_encoder(copied)
    assert_one_line(error)
    assert load_encoder(copied, check=False).feature_count == 256


def test_a_changed_weight_is_found_even_with_a_fresh_sum(copied: Path) -> None:
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    stem = tensors["conv_stem.weight"].flatten()
    stem[stem.abs().argmax()] *= -1
    safetensors.torch.save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ChessError, match="sha256 differs"):
        load_encoder(copied)
    fresh = hashlib.sha256((copied / "model.safetensors").read_bytes()).hexdigest()
    change_config(copied, lambda config: config["chess_cxr"]["sha256"].update({"model.safetensors": fresh}))
    with pytest.raises(ChessError, match="embedding of the test film is off"):
        load_encoder(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors"])
def test_one_flipped_bit_in_a_file_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[-1] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(ChessError, match=f"{name} is not the file") as error:
        load_encoder(copied)
    assert_one_line(error)


def test_a_changed_list_of_training_films_is_found_when_it_is_read(copied: Path) -> None:
    (copied / "training_uids.txt").write_text(UIDS[0] + "\n")
    encoder = load_encoder(copied)
    with pytest.raises(ChessError, match="training_uids.txt is not the file"):
        _ = encoder.training_uids


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors", "config.json"])
@pytest.mark.parametrize("check", [True, False])
def test_a_missing_file_is_named(copied: Path, name: str, check: bool) -> None:
    (copied / name).unlink()
    if name == "golden.safetensors" and not check:
        assert load_encoder(copied, check=False).feature_count == 256
        return
    with pytest.raises(ChessError, match=name):
        load_encoder(copied, check=check)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"text"', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\udcff", "{}", '{"chess_cxr": 3}'],
)
def test_a_config_that_is_no_config_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ChessError) as error:
        load_encoder(copied)
    assert_one_line(error)


def set_in(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        if value is None:
            del config[keys[-1]]
        else:
            config[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_in("architecture", value="no_such_net"),
        set_in("architecture", value="resnet18"),
        set_in("architecture", value="vit_giant_patch14_dinov2"),
        set_in("architecture", value="hf-hub:somebody/something"),
        set_in("architecture", value="local-dir:/"),
        set_in("architecture", value="../../other"),
        set_in("architecture", value="a\nb" * 1000),
        set_in("architecture", value=["regnetx_002"]),
        set_in("architecture", value=None),
        set_in("pretrained_cfg", value=[]),
        set_in("pretrained_cfg", "mean", value=[0.4]),
        set_in("chess_cxr", "format", value=99),
        set_in("chess_cxr", "contract", value=None),
        set_in("chess_cxr", "contract", value=[1, 2]),
        set_in("chess_cxr", "contract", "size", value=10**9),
        set_in("chess_cxr", "contract", "size", value="64; import os"),
        set_in("chess_cxr", "contract", "mean", value=[[[0.5]]]),
        set_in("chess_cxr", "contract", "channels", value=3),
        set_in("chess_cxr", "contract", "__class__", value="os.system"),
        set_in("chess_cxr", "contract", "percentiles", value={"low": 0}),
        set_in("chess_cxr", "feature_count", value=10**9),
        set_in("chess_cxr", "feature_count", value=255),
        set_in("chess_cxr", "feature_count", value="256"),
        set_in("chess_cxr", "licence", value={}),
        set_in("chess_cxr", "training", value=None),
        set_in("chess_cxr", "training", "images", value="many"),
        set_in("chess_cxr", "training", "extra", value=1),
        set_in("chess_cxr", "sha256", value=None),
        set_in("chess_cxr", "sha256", value={"../../secret": "0" * 64}),
        set_in("chess_cxr", "sha256", "model.safetensors", value="0" * 64),
        set_in("chess_cxr", "sha256", "model.safetensors", value=5),
    ],
)
def test_a_hostile_config_is_refused_in_one_line(copied: Path, change: Callable[[dict[str, Any]], None]) -> None:
    change_config(copied, change)
    with pytest.raises(ChessError) as error:
        load_encoder(copied)
    assert_one_line(error)
    assert len(str(error.value)) < 600


def test_a_wrong_feature_count_is_found_without_the_check_too(copied: Path) -> None:
    change_config(copied, set_in("chess_cxr", "feature_count", value=255))
    with pytest.raises(ChessError, match="gives 256 features, not 255"):
        load_encoder(copied, check=False).embed(draw_films(1))


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}", pickle.dumps({"a": 1})])
def test_weights_that_are_no_safetensors_are_refused(copied: Path, data: bytes) -> None:
    (copied / "model.safetensors").write_bytes(data)
    with pytest.raises(ChessError, match="not a readable safetensors file") as error:
        load_encoder(copied, check=False)
    assert_one_line(error)


def test_a_config_too_large_to_be_one_is_not_read(copied: Path) -> None:
    with (copied / "config.json").open("a") as stream:
        stream.write(" " * (9 << 20))
    with pytest.raises(ChessError, match="larger than"):
        load_encoder(copied)


def test_a_plain_timm_folder_is_refused_for_it_has_no_contract(copied: Path) -> None:
    change_config(copied, set_in("chess_cxr", value=None))
    with pytest.raises(ChessError, match="no pixel contract"):
        load_encoder(copied)


@pytest.mark.parametrize("name", ["nowhere", "resnet50", "https://example.org/x"])
def test_a_path_that_is_no_folder_is_wrong_use(name: str) -> None:
    with pytest.raises(UsageError, match="not an encoder folder"):
        load_encoder(name)


# Writing


def test_an_existing_path_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "file", "link"):
        with pytest.raises(UsageError, match="exists"):
            write_small(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert not any((tmp_path / "taken").iterdir())


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    assert load_encoder(write_small(tmp_path / "a" / "b" / "encoder")).feature_count == 256


def break_state(kind: str) -> dict[str, Any]:
    state: dict[str, Any] = dict(build_trained_network().state_dict())
    if kind == "missing":
        del state["conv_stem.weight"]
    elif kind == "unknown":
        state["head.fc.weight"] = torch.zeros(10, 256)
    elif kind == "shape":
        state["conv_stem.weight"] = torch.zeros(24, 3, 3, 3)
    elif kind == "nan":
        state["bn1.weight"] = torch.full((24,), torch.nan)
    elif kind == "zeros":
        state = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    elif kind == "list":
        state["bn1.weight"] = [1.0] * 24
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "conv_stem.weight is missing"),
        ("unknown", "'head.fc.weight' is not part of it"),
        ("shape", r"conv_stem.weight is \[24, 3, 3, 3\], expected \[24, 1, 3, 3\]"),
        ("nan", "bn1.weight holds NaN or infinity"),
        ("zeros", "NaN, infinity or zeros"),
        ("list", "bn1.weight is not a plain tensor"),
    ],
)
def test_weights_that_do_not_fit_are_not_written(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ChessError, match=message) as error:
        write_encoder(tmp_path / "out", break_state(kind), ARCHITECTURE, GREY, "MIT", TRAINING)
    assert_one_line(error)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "uid", ["1.2.840.113619.2.5", "JPCLN001", "patient00001/study1", "0123456789ABCDEF", "", "0" * 15, "0" * 20 + "\n"]
)
def test_original_names_of_films_are_never_written(tmp_path: Path, uid: str) -> None:
    with pytest.raises(ChessError, match="1 of 2 training uids are not keyed hashes") as error:
        write_small(tmp_path / "out", training_uids=[UIDS[0], uid])
    assert not uid.strip() or uid not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{"path": Path("x")}, {"loss": float("nan")}])
def test_a_configuration_that_is_no_json_leaves_nothing_behind(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not plain JSON"):
        write_small(tmp_path / "out", training=replace(TRAINING, config=config))
    assert not any(tmp_path.iterdir())


def test_a_training_summary_of_wrong_types_cannot_be_made() -> None:
    with pytest.raises(UsageError, match="images must be int"):
        replace(TRAINING, images="many")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChessError, match="cannot write") as error:
        write_small(tmp_path / "file" / "encoder")
    assert_one_line(error)


def test_a_network_that_cannot_take_the_size_is_not_written(tmp_path: Path) -> None:
    module = build_network("mixer_s32_224", 1)
    with pytest.raises(ChessError, match="fails on input") as error:
        write_encoder(tmp_path / "out", module.state_dict(), "mixer_s32_224", GREY, "MIT", TRAINING)
    assert_one_line(error)
    assert not any(tmp_path.iterdir())


def test_half_precision_weights_are_written_as_float32_without_loss(tmp_path: Path) -> None:
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in build_trained_network().state_dict().items()}
    out = write_encoder(tmp_path / "out", state, ARCHITECTURE, GREY, "MIT", TRAINING)
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(stored[key].to(tensor.dtype), tensor) for key, tensor in state.items())
    assert stored["conv_stem.weight"].dtype == torch.float32


def test_the_evaluation_can_be_added_to_the_card_later(copied: Path) -> None:
    before = (copied / "config.json").read_bytes()
    card = write_card(copied, "Mean AUROC 0.81 on 519 films.")
    assert card == copied / "README.md"
    assert "Mean AUROC 0.81 on 519 films." in card.read_text()
    assert (copied / "config.json").read_bytes() == before
    assert len(list(copied.iterdir())) == 6
    assert load_encoder(copied).licence == "CC-BY-4.0"


# The published CheSS checkpoint

Table = dict[str, Any]


HEADS = {
    "mlp": {"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,), "fc.2.weight": (128, 2048), "fc.2.bias": (128,)},
    "plain": {"fc.weight": (128, 2048), "fc.bias": (128,)},
}


def build_chess_state(head: str, prefix: str = "module.", draw: Callable[[int], Table] | None = None) -> Table:
    """Build a state_dict in the published layout; key and query encoder differ, so that a mix-up shows."""
    query, key = (draw or draw_constants)(1), draw_constants(2)
    fc = {name: torch.zeros(1).expand(shape) for name, shape in HEADS[head].items()}
    state = {f"{prefix}encoder_q.{name}": tensor for name, tensor in {**query, **fc}.items()}
    state |= {f"{prefix}encoder_k.{name}": tensor for name, tensor in {**key, **fc}.items()}
    queue = torch.zeros(1).expand(128, 65_536)
    return state | {f"{prefix}queue": queue, f"{prefix}queue_ptr": torch.zeros(1, dtype=torch.long)}


def draw_constants(seed: int) -> Table:
    """Give each tensor of a ResNet-50 a value of its own, stored once: a checkpoint of a few kilobytes."""
    network = list_expected_tensors("resnet50", 1)
    return {
        name: torch.tensor(seed * 1000 + number, dtype=tensor.dtype).expand(tensor.shape)
        for number, (name, tensor) in enumerate(network.items())
    }


def draw_real(seed: int) -> Table:
    return build_network("resnet50", 1, seed).state_dict()


def save_chess(path: Path, state: Table, **options: Any) -> Path:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], 0.03, momentum=0.9, weight_decay=1e-4)
    weight.sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, path, **options)
    return path


@pytest.fixture(scope="module")
def chess_state() -> Table:
    return build_chess_state("mlp")


def test_the_published_checkpoint_becomes_an_encoder(tmp_path: Path) -> None:
    file = save_chess(tmp_path / "chess.pth.tar", build_chess_state("mlp", draw=draw_real))
    encoder = load_encoder(import_chess(file, tmp_path / "encoder"))
    expected = build_network("resnet50", 1, seed=1).eval().to(memory_format=torch.channels_last)
    film = encoder.contract.prepare(draw_films(1)[0])[None].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        np.testing.assert_array_equal(encoder.embed(draw_films(1)), expected(film).numpy())
    assert encoder.contract == PixelContract(512, (0.658,), (0.221,), (0.0, 99.0))
    assert encoder.licence == "Apache-2.0 (root licence of the published repository)"
    assert (encoder.architecture, encoder.feature_count, encoder.training.images) == ("resnet50", 2048, 4_800_000)
    assert "epoch 200" in encoder.training.method
    assert encoder.training_uids == frozenset()


@pytest.mark.parametrize("head", ["mlp", "plain"])
@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_both_heads_prefixes_and_file_formats_give_the_query_encoder(
    tmp_path: Path, head: str, prefix: str, zipped: bool
) -> None:
    state = build_chess_state(head, prefix)
    file = save_chess(tmp_path / "chess.pth", state, _use_new_zipfile_serialization=zipped)
    found = read_chess_checkpoint(file)
    assert set(found.tensors) == set(list_expected_tensors("resnet50", 1))
    assert all(torch.equal(tensor, state[f"{prefix}encoder_q.{key}"]) for key, tensor in found.tensors.items())
    assert found.epoch == 200


@pytest.mark.parametrize("kept", ["encoder_q with fc", "bare with fc", "bare without fc", "no queue"])
def test_plain_extracts_are_accepted_where_their_keys_are_exactly_a_resnet_50(
    tmp_path: Path, chess_state: Table, kept: str
) -> None:
    query = {key.removeprefix("module."): tensor for key, tensor in chess_state.items() if ".encoder_q." in key}
    extract = {
        "encoder_q with fc": query,
        "bare with fc": {key.removeprefix("encoder_q."): tensor for key, tensor in query.items()},
        "bare without fc": {k.removeprefix("encoder_q."): v for k, v in query.items() if ".fc." not in k},
        "no queue": {key: tensor for key, tensor in chess_state.items() if "queue" not in key},
    }[kept]
    torch.save(extract, tmp_path / "extract.pth")
    found = read_chess_checkpoint(tmp_path / "extract.pth")
    assert torch.equal(found.tensors["layer4.2.conv3.weight"], chess_state["module.encoder_q.layer4.2.conv3.weight"])
    assert found.epoch is None


CONV = "module.encoder_q.layer1.0.conv2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({CONV: None}, f"{CONV} is missing"),
        ({CONV: torch.zeros(64, 64, 1, 1)}, rf"{CONV} is \[64, 64, 1, 1\], expected \[64, 64, 3, 3\]"),
        ({CONV: "text"}, f"{CONV} is not a plain tensor"),
        ({CONV: torch.zeros(64, 64, 3, 3).to_sparse()}, f"{CONV} is not a plain tensor"),
        ({CONV: torch.zeros(64, 64, 3, 3, dtype=torch.int8)}, f"{CONV} holds torch.int8"),
        ({"module.encoder_q.conv1.weight": torch.zeros(64, 3, 7, 7)}, r"conv1.weight is \[64, 3, 7, 7\], expected"),
        ({"module.encoder_q.conv1.weight": None}, "module.encoder_q.conv1.weight is missing"),
        ({"module.encoder_q.fc.2.weight": torch.zeros(256, 2048)}, r"fc.2.weight is \[256, 2048\]"),
        ({"module.encoder_k.bn1.weight": None}, "module.encoder_k.bn1.weight is missing"),
        ({"module.queue": torch.zeros(64, 10)}, r"module.queue is \[64, 10\], expected \[128, 10\]"),
        ({"module.queue_ptr": None}, "module.queue_ptr is missing"),
        ({"module.extra\n": torch.zeros(1)}, "is not part of it"),
        ({7: torch.zeros(1)}, "'7' is not part of it"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    tmp_path: Path, chess_state: Table, change: Table, message: str
) -> None:
    state = {key: tensor for key, tensor in (chess_state | change).items() if tensor is not None}
    file = save_chess(tmp_path / "chess.pth", state)
    with pytest.raises(ChessError, match=message) as error:
        import_chess(file, tmp_path / "out")
    assert "does not fit the published CheSS layout" in str(error.value)
    assert_one_line(error)
    assert not (tmp_path / "out").exists()


class Bomb:
    """A pickle of this makes a folder when it is opened."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, chess_state: Table, zipped: bool, protocol: int
) -> None:
    sign, file = tmp_path / "pwned", tmp_path / "chess.pth.tar"
    state = {**chess_state, "module.extra": Bomb(sign)}
    torch.save({"state_dict": state}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ChessError, match=r"^refused: .* contains code \(posix.mkdir\); only plain tensors are read$"):
        import_chess(file, tmp_path / "out")
    assert not sign.exists()
    assert not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)  # the same file does run its code for who lets it
    assert sign.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path, protocol: int) -> None:
    sign, file = tmp_path / "pwned", tmp_path / "chess.pth.tar"
    file.write_bytes(pickle.dumps({"state_dict": Bomb(sign)}, protocol))
    with pytest.raises(ChessError, match=r"^refused: .* contains code \(posix.mkdir\); only plain tensors are read$"):
        import_chess(file, tmp_path / "out")
    assert not sign.exists()


def make_broken_files(folder: Path) -> dict[str, bytes]:
    whole = io.BytesIO()
    torch.save({"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(64, 1, 7, 7)}}, whole)
    listed = io.BytesIO()
    torch.save([torch.zeros(3)], listed)
    odd = io.BytesIO()
    torch.save({"state_dict": [1, 2]}, odd)
    return {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "html": b"<!DOCTYPE html><html>sign in</html>",
        "truncated": whole.getvalue()[: len(whole.getvalue()) // 2],
        "cut tail": whole.getvalue()[:-20],
        "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "gzip": b"\x1f\x8b" + b"\0" * 100,
        "zip": b"PK\x05\x06" + b"\0" * 18,
        "a list": listed.getvalue(),
        "state_dict is a list": odd.getvalue(),
        "plain pickle": pickle.dumps([1, 2, 3], 2),
    }


@pytest.mark.parametrize("kind", list(make_broken_files(Path())))
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file.pth.tar"
    file.write_bytes(make_broken_files(tmp_path)[kind])
    with pytest.raises(ChessError) as error:
        import_chess(file, tmp_path / "out")
    assert_one_line(error)
    assert str(file) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_importing_a_file_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        import_chess(tmp_path / "nothing.pth", tmp_path / "out")
    with pytest.raises(UsageError, match="is not a file"):
        import_chess(tmp_path, tmp_path / "out")


# Baselines


def test_a_random_encoder_depends_on_its_seed_alone() -> None:
    films = draw_films(2)
    first, again, other = (load_encoder(f"random:regnetx_002@96{seed}") for seed in ("", "#0", "#1"))
    np.testing.assert_array_equal(first.embed(films), again.embed(films))
    assert np.abs(first.embed(films) - other.embed(films)).max() > 1e-3
    assert (first.contract.size, first.name) == (96, "random:regnetx_002@96#0")
    assert first.training_uids == frozenset()


def test_a_random_encoder_takes_any_contract() -> None:
    contract = PixelContract(64, (0.5,) * 3, (0.2,) * 3, channels=3)
    assert build_random_encoder("resnet18", contract).embed(draw_films(1)).shape == (1, 512)


@pytest.mark.parametrize(
    "name",
    [
        "random:regnetx_002",
        "random:regnetx_002@",
        "random:regnetx_002@8",
        "random:regnetx_002@9999",
        "random:no_such_net@64",
        "random:hf-hub:a/b@64",
        "imagenet:resnet50",
        "imagenet:",
        "timm:no_such_net",
        "timm:hf-hub:a/b",
        "timm:../x",
    ],
)
def test_a_baseline_that_does_not_exist_is_wrong_use(name: str) -> None:
    with pytest.raises(UsageError) as error:
        load_encoder(name)
    assert_one_line(error)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_wrong_use(device: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used here|there is no device"):
        load_encoder(folder, device=device)


def test_the_imagenet_baseline_still_recognises_a_flower() -> None:
    """The file's own classifier on our features: daisy is class 985 of ImageNet-1k."""
    package = pytest.importorskip(LITE0_PACKAGE)
    encoder = load_encoder("imagenet:tf_efficientnet_lite0")
    photo = load_sample_image("flower.jpg")[:, 106:533].astype(np.float32) / 255
    plain = PixelContract(224, (0.5,), (0.5,))
    inputs = torch.stack([plain.prepare(photo[:, :, channel])[0] for channel in range(3)])[None]
    published = torch.load(Path(package.__file__).parent / "models" / LITE0_FILE, weights_only=True)
    with torch.inference_mode():
        logits = encoder.module(inputs) @ published["_fc.weight"].T + published["_fc.bias"]
    assert int(logits.argmax()) == 985


@pytest.mark.parametrize("polarity", ["bone_bright", "bone_dark"])
def test_a_network_for_colours_becomes_one_for_grey_films_that_answers_alike(polarity: Polarity) -> None:
    colours = load_encoder("imagenet:tf_efficientnet_lite0")
    colours = replace(colours, contract=replace(colours.contract, polarity=polarity))
    film = draw_golden_film(224)
    network, mean, std = build_grey_network(colours)
    grey = PixelContract(224, (mean,), (std,)).prepare(film)
    assert grey.shape == (1, 224, 224)
    torch.testing.assert_close(
        network.eval()(grey[None]), colours.module(colours.contract.prepare(film)[None]), rtol=1e-3, atol=1e-4
    )


def test_the_imagenet_baseline_sees_the_grey_film_three_times() -> None:
    pytest.importorskip(LITE0_PACKAGE)
    encoder = load_encoder("imagenet:tf_efficientnet_lite0")
    film = encoder.contract.prepare(draw_films(1)[0])
    assert film.shape == (3, 224, 224)
    assert torch.equal(film[0], film[1])
    known = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (encoder.contract.mean, encoder.contract.std) == (known.mean, known.std)
    assert encoder.embed(draw_films(2)).shape == (2, 1280)


def test_timm_weights_that_cannot_be_fetched_are_one_line(tmp_path: Path) -> None:
    program = (
        "from chess_cxr.records import ChessError\nfrom chess_cxr.encoders.load import load_encoder\n"
        "try:\n    load_encoder('timm:regnetx_002')\nexcept ChessError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("timm:regnetx_002 could not be downloaded")
    assert done.stdout.count("\n") == 1


# Real films


@pytest.mark.real_films
def test_real_films_of_any_size_are_embedded_and_told_apart(real_films: Path, folder: Path) -> None:
    paths = sorted((real_films / "jsrt" / "images").rglob("*.png"))[:4]
    assert len(paths) == 4
    films = [np.asarray(Image.open(path).convert("L"), np.float32) / 255 for path in paths]
    features = load_encoder(folder).embed(films)
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 4


def test_a_vit_is_written_at_any_size_that_its_patches_divide_and_timm_alone_loads_it(tmp_path: Path) -> None:
    contract = PixelContract(48, (0.5,), (0.25,))
    state = build_network("test_vit", 1, seed=2).state_dict()
    out = write_encoder(tmp_path / "vit", state, "test_vit", contract, "MIT", TRAINING)
    film_HW = draw_golden_film(48)
    film_1CSS = contract.prepare(film_HW)[None]
    alone = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            alone(film_1CSS)[0].numpy(), load_encoder(out).embed([film_HW])[0], rtol=1e-4, atol=1e-5
        )
