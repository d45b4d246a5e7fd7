"""Training that begins from a bone model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import FilmPair, read_pairs, split_pairs
from chess_cxr.tasks.bones.score import find_spread_scale, shrink_pair
from chess_cxr.tasks.bones.train import finetune_bones
from same_end import Enough, stop_after

ENCODER = "random:regnetx_002@64"
TINY = BonesConfig(size=64, crop=64, decoder="tiny", perceptual="none", steps=2, batch=2)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "first"
    finetune_bones(ENCODER, ["phantom:6@64"], out, TINY)
    return out


def test_it_starts_with_the_weights_of_the_model_and_goes_on_to_the_bit(begun: Path, tmp_path: Path) -> None:
    still = replace(TINY, begin_from=str(begun), learning_rate=1e-12, weight_decay=0.0, seed=1)
    result = finetune_bones(ENCODER, ["phantom:6@64#5"], tmp_path / "still", still)
    first, second = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (begun, tmp_path / "still")
    )
    moved = {name for name in first if np.abs(second[name] - first[name]).max() > 1e-7}
    assert all("running_" in name or "num_batches" in name for name in moved) and moved
    assert result.begun_from == load_bone_suppressor(begun).sha256
    configs = [json.loads((folder / "config.json").read_text()) for folder in (begun, tmp_path / "still")]
    assert configs[1]["finetune"]["begin_from"] == "first"
    assert configs[1]["network"] == configs[0]["network"]  # the scale of the score, too

    config = replace(TINY, begin_from=str(begun), steps=4, checkpoint_every=2)
    finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "whole", config)
    with pytest.raises(Enough):
        finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "parts", config, on_step=stop_after(3))
    with pytest.raises(UsageError, match="another configuration|differs|begun_from"):
        finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "parts", replace(config, begin_from=""))
    finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "parts", config)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts != (begun / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"decoder": "full"}, "a full decoder, a linear head and a spread"),
        ({"head": "softplus"}, "a tiny decoder, a softplus head and a spread"),
        ({"spread": False}, "a tiny decoder, a linear head and no spread"),
    ],
)
def test_a_model_of_another_shape_is_no_beginning(
    change: dict[str, object], asked: str, begun: Path, tmp_path: Path
) -> None:
    config = replace(TINY, begin_from=str(begun), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"to begin from has .*; this training asks for an encoder .*{asked}"):
        finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "out", config)


def test_what_is_no_bone_model_is_no_beginning(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no bone model"):
        finetune_bones(ENCODER, ["phantom:6@64"], tmp_path / "out", replace(TINY, begin_from=str(tmp_path / "none")))


def test_the_spread_is_calibrated_on_real_films_where_there_are_any(tmp_path: Path) -> None:
    drawn = read_pairs("phantom:10@64#4")
    real = [replace(pair, kind="own", name=f"real_{pair.name}", group=f"real_{pair.group}") for pair in drawn]
    pairs: list[FilmPair] = [*drawn, *(replace(pair, film_HW=np.sqrt(pair.film_HW)) for pair in real)]
    finetune_bones(ENCODER, pairs, tmp_path / "out", TINY, val=0.3)
    model = load_bone_suppressor(tmp_path / "out")
    val = [shrink_pair(pair, 64) for pair in split_pairs(pairs, 0.3, 0.2, TINY.seed)["val"]]
    plain = replace(model, spread_scale=1.0, caution=0.0)
    of_real, of_all = (
        find_spread_scale(plain, [pair for pair in val if pair.kind != "phantom" or all_of_them])
        for all_of_them in (False, True)
    )
    assert {pair.kind for pair in val} == {"own", "phantom"}
    assert model.spread_scale == pytest.approx(of_real, rel=1e-4) != pytest.approx(of_all, rel=1e-2)
