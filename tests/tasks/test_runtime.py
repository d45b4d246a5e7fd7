"""Model folders with torch and with ONNX Runtime: the same numbers, and damage is one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

import chess_cxr.encoders.onnx_network as onnx_files
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.records import ChessError, UsageError
from chess_cxr.store import Store
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.train import finetune_bones
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.train import finetune_classifier

CONFIGS = {
    mode: FinetuneConfig(mode, steps=8, batch=8, learning_rate=1e-2) for mode in ("linear", "mlp", "attentive", "full")
}  # type: ignore[arg-type]
CONFIGS["findings"] = FinetuneConfig(task="multilabel")
RNG = np.random.default_rng(0)
FILMS = [RNG.random(shape).astype(np.float32) for shape in ((50, 40), (32, 32), (90, 64))]


@pytest.fixture(scope="module")
def models(tiny_encoder: Encoder, store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        finetune_classifier(tiny_encoder, store, out / name, config=config, device="cpu")
    return {name: out / name for name in CONFIGS}


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(models["linear"], tmp_path / "model")


@pytest.fixture(scope="module")
def bones(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bones") / "model"
    config = BonesConfig(size=64, crop=64, decoder="tiny", perceptual="none", steps=2, batch=2)
    finetune_bones(encoder, ["phantom:8@64#2"], out, config, test=0.25)
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_says_what_torch_says_for_any_number_of_films(name: str, models: dict[str, Path]) -> None:
    torch_model, onnx_model = (load_classifier(models[name], runtime=it) for it in ("torch", "onnx"))  # type: ignore[arg-type]
    assert torch_model.onnx is None and onnx_model.onnx is not None
    expected = torch_model.predict(FILMS)
    assert expected.shape == (3, 2) and np.ptp(expected, axis=0).min() > 1e-3
    for films in (FILMS, FILMS[:1]):
        np.testing.assert_allclose(onnx_model.predict(films), expected[: len(films)], atol=1e-5)
    assert load_classifier(models[name], runtime="auto").onnx is not None


def test_bones_of_films_of_any_size_are_the_same_with_onnx(bones: Path) -> None:
    torch_model, onnx_model = (load_bone_suppressor(bones, runtime=it) for it in ("torch", "onnx"))  # type: ignore[arg-type]
    for shape in ((64, 64), (100, 75), (37, 200)):
        film = np.random.default_rng(1).random(shape).astype(np.float32)
        expected = torch_model.predict_bone(film)
        assert expected.max() > 0.001  # a hundred times what may differ
        np.testing.assert_allclose(onnx_model.predict_bone(film), expected, atol=1e-5)


def test_a_folder_says_which_encoder_and_which_files_it_holds(models: dict[str, Path], tiny_encoder: Encoder) -> None:
    config = json.loads((models["linear"] / "config.json").read_text())
    assert config["encoder_sha256"] == compute_state_sha256(tiny_encoder.module)
    assert set(config["files"]) == {"model.safetensors", "golden.safetensors", "model.onnx"}
    for name, facts in config["files"].items():
        content = (models["linear"] / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert load_classifier(models["linear"]).sha256 == config["files"]["model.safetensors"]["sha256"]
    assert b"/site-packages" not in (models["linear"] / "model.onnx").read_bytes()  # no path of this machine
    onnx.checker.check_model(str(models["linear"] / "model.onnx"))


def change_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("spoil", [change_bytes, cut])
@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors", "model.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(name: str, spoil: Callable[[Path], None], model: Path) -> None:
    spoil(model / name)
    message = f"{name} (is not the file its config.json describes|does not hold this model)"
    with pytest.raises(ChessError, match=message) as caught:
        load_classifier(model, runtime="onnx")
    assert "\n" not in str(caught.value)


def describe_anew(model: Path, name: str) -> None:
    """Let the configuration of a folder vouch for a changed file, as a stranger would."""
    config = json.loads((model / "config.json").read_text())
    content = (model / name).read_bytes()
    config["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (model / "config.json").write_text(json.dumps(config))


def write_garbage(file: Path) -> None:
    file.write_bytes(b"no protocol buffer" * 100)


def write_outside(file: Path) -> None:
    """Let the weights lie in a file elsewhere on the machine."""
    graph = onnx.load(str(file))
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/hostname"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    file.write_bytes(graph.SerializeToString())


def write_shifted(file: Path) -> None:
    graph = onnx.load(str(file))
    [bias] = [tensor for tensor in graph.graph.initializer if tensor.name == "head.bias"]
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + np.float32(1e-3)).tobytes()
    file.write_bytes(graph.SerializeToString())


def write_two_inputs(file: Path) -> None:
    kind = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["c"])], "g", [kind, other], [out])
    file.write_bytes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (write_garbage, "model.onnx cannot be run: "),
        (write_outside, "model.onnx cannot be run: "),
        (write_shifted, "model.onnx differs by .* golden films: it is damaged"),
        (write_two_inputs, "no network with one input and one output"),
    ],
)
def test_a_hostile_onnx_file_is_refused_in_one_line(
    change: Callable[[Path], None], message: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(model / "model.onnx")
    describe_anew(model, "model.onnx")
    with pytest.raises(ChessError, match=message) as caught:
        load_classifier(model, runtime="onnx")
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    load_classifier(model)  # torch does not need it


def test_a_giant_beside_small_weights_is_not_read(model: Path) -> None:
    with (model / "model.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    config = json.loads((model / "config.json").read_text())
    config["files"]["model.onnx"]["bytes"] = 1 << 40
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ChessError, match="much larger than the weights beside it"):
        load_classifier(model, runtime="onnx")


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_another_pixel_contract_or_other_weights_are_noticed(runtime: str, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"contract": config["contract"] | {"mean": [0.51]}}))
    with pytest.raises(ChessError, match="from what was written for the golden films"):
        load_classifier(model, runtime=runtime)  # type: ignore[arg-type]
    (model / "config.json").write_text(json.dumps(config))
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + torch.tensor(1e-2)
    safetensors.torch.save_file(tensors, model / "model.safetensors")
    describe_anew(model, "model.safetensors")
    if runtime == "torch":
        with pytest.raises(ChessError, match="model.safetensors differs by 0.0"):
            load_classifier(model)


def test_a_folder_without_onnx_works_with_torch_and_says_so(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["files"]["model.onnx"]
    (model / "config.json").write_text(json.dumps(config))
    assert load_classifier(model, runtime="auto").onnx is None
    with pytest.raises(ChessError, match="has no model.onnx: it was trained without the extra onnx"):
        load_classifier(model, runtime="onnx")


def test_onnx_runs_on_the_cpu_alone(model: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to refuse")
    with pytest.raises(UsageError, match="ONNX Runtime computes on the CPU here"):
        load_classifier(model, "cuda", "onnx")


def test_without_the_extra_the_result_is_still_written_with_one_line(
    tiny_encoder: Encoder, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(module: str, extra: str, purpose: str) -> None:
        raise UsageError(f"{purpose} needs the package {module}: pip install 'chess-cxr[{extra}]'")

    monkeypatch.setattr(onnx_files, "import_extra", lack)
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model")
    line = "no model.onnx: it needs the package onnx: pip install 'chess-cxr[onnx]'"
    assert result.deployment[-1] == line and result.as_text().splitlines()[-1] == line
    assert not (tmp_path / "model" / "model.onnx").exists()
    assert load_classifier(tmp_path / "model", runtime="torch").predict(FILMS).shape == (3, 2)
    assert "model.onnx" not in (tmp_path / "model" / "README.md").read_text()
    bones = BonesConfig(size=64, crop=64, decoder="tiny", perceptual="none", steps=1, batch=2)
    made = finetune_bones("random:regnetx_002@64", ["phantom:8@64#2"], tmp_path / "bones", bones, test=0.25)
    assert made.notes == (line,) and (tmp_path / "bones" / "golden.safetensors").exists()
