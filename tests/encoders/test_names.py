import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chess_cxr
from chess_cxr.benchmarking.suite import anchor_encoder
from chess_cxr.encoders.load import LOADERS, load_encoder
from chess_cxr.encoders.names import (
    EXAMPLES,
    WEIGHTS_PACKAGE,
    check_encoder_name,
    list_published,
    locate_encoder,
    locate_model,
)
from chess_cxr.records import ChessError, UsageError
from command_line import run
from places import CHECKOUT

WEIGHTS = CHECKOUT / "weights"


def test_every_kind_of_name_has_a_loader_and_an_example() -> None:
    assert {*LOADERS, "pixels"} == set(EXAMPLES)
    assert all(example.startswith(f"{kind}:") for kind, example in EXAMPLES.items())


@pytest.mark.parametrize(
    "name", ["hf:owner/name", "timm:resnet18.a1_in1k", "xrv:densenet121-res224-all", "random:x@32"]
)
def test_a_name_of_a_known_kind_is_taken_before_anything_is_loaded(name: str) -> None:
    check_encoder_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no encoder folder nowhere"), ("gan:x", "no encoder folder gan:x"), ("hf:", "should be hf:NAME"),
        ("chess", "chess needs the published file"), ("chess:none.pth", "there is no file none.pth"),
    ],
)  # fmt: skip
def test_what_is_neither_folder_nor_name_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_encoder_name(name)


def test_a_folder_may_be_called_like_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)
    check_encoder_name("random")


@pytest.mark.parametrize("words", [
    ("embed", "ENCODER", "STORE", "--out", "OUT"), ("evaluate", "STORE", "--encoders", "ENCODER"),
    ("finetune", "classify", "ENCODER", "STORE", "--out", "OUT"),
    ("finetune", "bones", "ENCODER", "phantom:8@64", "--out", "OUT"),
    ("finetune", "nodules", "ENCODER", "phantom:8@64", "--out", "OUT"),
    ("pretrain", "STORE", "--begin-from", "ENCODER", "--out", "OUT"),
])  # fmt: skip
def test_every_command_takes_every_kind_of_name(
    words: tuple[str, ...], small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are not here, which only the loader can say: the name itself was taken."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("xrv:densenet121-res224-all", "chess:" + str(tmp_path / "empty.pth"), "cxr-tiny"):
        (tmp_path / "empty.pth").write_bytes(b"")
        given = {"ENCODER": name, "STORE": str(small_store), "OUT": str(tmp_path / "out")}
        answer = run(*(given.get(word, word) for word in words), "--quiet")
        assert answer.code in (1, 2) and "no encoder folder" not in answer.err, answer.err
        said = ("weights of xrv", "torchxrayvision", "empty.pth", "hf:chess-cxr/cxr-tiny could not be fetched")
        assert any(words in answer.err for words in said), answer.err


def test_pixels_are_no_network() -> None:
    with pytest.raises(ChessError, match="bare pixels and no network"):
        load_encoder("pixels:32")


# Published encoders


@pytest.mark.parametrize("folder", sorted(WEIGHTS.glob("cxr-*")), ids=lambda folder: folder.name)
def test_a_folder_among_the_weights_is_an_encoder_by_its_name(folder: Path) -> None:
    assert list_published()[folder.name] == folder
    check_encoder_name(folder.name)
    encoder = load_encoder(folder.name)
    assert encoder.name == folder.name and len(encoder.training_uids) == encoder.training.images
    assert json.loads(run("weights", "show", folder.name).out)["architecture"] == encoder.architecture


def test_a_model_among_the_weights_is_found_by_its_name_and_is_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / WEIGHTS_PACKAGE / "bones-tiny").mkdir(parents=True)
    (tmp_path / WEIGHTS_PACKAGE / "bones-tiny" / "config.json").write_text('{"task": "bones"}')
    assert locate_model(Path("bones-tiny")) == tmp_path / WEIGHTS_PACKAGE / "bones-tiny"
    assert "bones-tiny" not in list_published() and "cxr-small" in list_published()
    for name in ("cxr-small", "models/bones-tiny", "bones-huge"):
        assert locate_model(Path(name)) == Path(name)
    (tmp_path / "bones-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_model(Path("bones-tiny")) == Path("bones-tiny")


def test_a_folder_of_the_same_name_in_the_working_directory_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cxr-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_encoder("cxr-small") == "cxr-small"
    with pytest.raises(UsageError, match="no config.json"):
        load_encoder("cxr-small")
    assert anchor_encoder("cxr-small", tmp_path) == str(tmp_path / "cxr-small")
    assert anchor_encoder("cxr-small", tmp_path / "elsewhere") == str(tmp_path / "elsewhere" / "cxr-small")
    monkeypatch.chdir(CHECKOUT)
    assert anchor_encoder("cxr-small", tmp_path / "elsewhere") == "cxr-small"


def test_without_a_checkout_the_name_leads_to_the_package_of_weights_and_else_to_the_hub(tmp_path: Path) -> None:
    """A copy of the package stands for an installed one; nothing else of it is loaded than the names."""
    shutil.copytree(Path(chess_cxr.__file__).parent, tmp_path / "chess_cxr", ignore=shutil.ignore_patterns("*.npz"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from chess_cxr.encoders.names import locate_encoder; print(locate_encoder('cxr-small'))"

    def locate() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()

    assert locate() == "hf:chess-cxr/cxr-small"
    (tmp_path / WEIGHTS_PACKAGE).mkdir()
    (tmp_path / WEIGHTS_PACKAGE / "cxr-small").symlink_to(WEIGHTS / "cxr-small")
    assert locate() == str(tmp_path / WEIGHTS_PACKAGE / "cxr-small")


@pytest.mark.parametrize("name", ["cxr_small", "CXR-small", "small"])
def test_an_unknown_name_is_one_line_with_the_known_ones(name: str) -> None:
    for refuse in (check_encoder_name, load_encoder):
        with pytest.raises(UsageError, match=f"{name}.* no name such as .*cxr-small") as error:
            refuse(name)
        assert "\n" not in str(error.value)


def test_a_published_name_that_is_not_here_is_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_encoder_name("cxr-tiny")
    with pytest.raises(ChessError, match="hf:chess-cxr/cxr-tiny could not be fetched.*here: .*cxr-small") as error:
        load_encoder("cxr-tiny")
    assert "\n" not in str(error.value)


def test_the_package_of_weights_holds_the_folders_of_the_repository_and_no_copy_in_it() -> None:
    package = CHECKOUT / "packages" / "chess-cxr-weights"
    assert '"../../weights" = "chess_cxr_weights"' in (package / "pyproject.toml").read_text()
    assert not list(package.rglob("*.safetensors"))
