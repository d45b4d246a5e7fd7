from pathlib import Path

import pytest

from chess_cxr.encoders.load import LOADERS, load_encoder
from chess_cxr.encoders.names import EXAMPLES, check_encoder_name
from chess_cxr.records import ChessError, UsageError
from command_line import run


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
def test_every_command_takes_every_kind_of_name(words: tuple[str, ...], small_store: Path, tmp_path: Path) -> None:
    """The weights are not here, which only the loader can say: the name itself was taken."""
    for name in ("xrv:densenet121-res224-all", "chess:" + str(tmp_path / "empty.pth")):
        (tmp_path / "empty.pth").write_bytes(b"")
        given = {"ENCODER": name, "STORE": str(small_store), "OUT": str(tmp_path / "out")}
        answer = run(*(given.get(word, word) for word in words), "--quiet")
        assert answer.code in (1, 2) and "no encoder folder" not in answer.err, answer.err
        assert "weights of xrv" in answer.err or "torchxrayvision" in answer.err or "empty.pth" in answer.err, (
            answer.err
        )


def test_pixels_are_no_network() -> None:
    with pytest.raises(ChessError, match="bare pixels and no network"):
        load_encoder("pixels:32")
