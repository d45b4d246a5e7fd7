"""Training a bone network in a folder, and what it is scored on."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.image_metrics import compute_psnr
from chess_cxr.judges.lpips import compute_lpips
from chess_cxr.pretraining.runs import read_lines
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.network import BoneNetwork, build_bone_network
from chess_cxr.tasks.bones.pairs import FilmPair, draw_phantom_pair, read_pairs
from chess_cxr.tasks.bones.plan import check_bones_config
from chess_cxr.tasks.bones.score import score_added_nodules, score_pair, score_pairs, shrink_pair
from chess_cxr.tasks.bones.train import train_bone_network
from chess_cxr.training.loop import StepReport
from chess_cxr.training.stop import Stopped
from states import list_changed

TINY = BonesConfig(size=64, crop=64, decoder="tiny", steps=6, batch=2, checkpoint_every=2)


@cache
def draw_pairs() -> tuple[FilmPair, ...]:
    return tuple(read_pairs("phantom:6@64#2"))


def fit(folder: Path, encoder: Encoder, config: BonesConfig = TINY, stop_at: int = 0) -> BoneNetwork:
    def stop(report: StepReport, _: Mapping[str, float]) -> None:
        if report.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    return train_bone_network(folder, encoder, draw_pairs()[:4], draw_pairs()[4:5], config, stop, say=lambda _: None)


def test_a_run_that_was_stopped_and_started_again_ends_to_the_bit_as_one_that_was_not(
    encoder: Encoder, tmp_path: Path
) -> None:
    whole = fit(tmp_path / "whole", encoder).state_dict()
    with pytest.raises(Stopped, match="the same command continues it"):
        fit(tmp_path / "cut", encoder, stop_at=3)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] != []
    assert list_changed(whole, fit(tmp_path / "cut", encoder).state_dict()) == []
    lines = [read_lines(tmp_path / it / "metrics.jsonl") for it in ("whole", "cut")]
    assert lines[0][-1]["step"] == lines[1][-1]["step"] == 6
    assert lines[0][-1]["val/psnr"] == lines[1][-1]["val/psnr"]
    assert list_changed(whole, fit(tmp_path / "other", encoder, replace(TINY, seed=1)).state_dict()) != []


def test_a_run_begun_before_there_was_a_linear_head_goes_on_with_its_softplus(encoder: Encoder, tmp_path: Path) -> None:
    softplus = replace(TINY, head="softplus")
    whole = fit(tmp_path / "whole", encoder, softplus)
    with pytest.raises(Stopped):
        fit(tmp_path / "cut", encoder, softplus, stop_at=3)
    described = json.loads((tmp_path / "cut" / "config.json").read_text())
    del described["bones"]["head"]
    (tmp_path / "cut" / "config.json").write_text(json.dumps(described))
    network = fit(tmp_path / "cut", encoder)
    assert list_changed(whole.state_dict(), network.state_dict()) == [] and network.shape == whole.shape


def test_a_finished_run_is_not_trained_again(encoder: Encoder, tmp_path: Path) -> None:
    first = fit(tmp_path / "run", encoder)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert list_changed(first.state_dict(), fit(tmp_path / "run", encoder).state_dict()) == []
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


def test_another_configuration_encoder_or_other_pairs_cannot_go_on(encoder: Encoder, tmp_path: Path) -> None:
    fit(tmp_path / "run", encoder)
    with pytest.raises(UsageError, match="another configuration: bones.perceptual_weight was 1.0, is 2.0"):
        fit(tmp_path / "run", encoder, replace(TINY, perceptual_weight=2.0))
    with pytest.raises(UsageError, match="another configuration: encoder_sha256"):
        fit(tmp_path / "run", load_encoder("random:regnetx_002@64#1"))
    with pytest.raises(UsageError, match="another configuration: pairs"):
        train_bone_network(tmp_path / "run", encoder, draw_pairs()[:3], draw_pairs()[4:5], TINY)


def test_training_moves_encoder_and_decoder_and_leaves_the_given_encoder_alone(
    encoder: Encoder, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    begun = build_bone_network(encoder, "tiny", TINY.seed, TINY.spread).state_dict()
    network = fit(tmp_path / "run", encoder)
    moved = list_changed(begun, network.state_dict())
    for part in ("encoder.", "decoder.", "head.", "spread_head."):
        assert any(name.startswith(part) for name in moved)
    assert list_changed(before, encoder.module.state_dict()) == [] and not network.training
    still = fit(tmp_path / "still", encoder, replace(TINY, encoder_rate=0.0))
    moved = [n for n in list_changed(begun, still.state_dict()) if n.startswith("encoder.")]
    assert all("running" in name or "num_batches" in name for name in moved)


def test_the_log_tells_the_parts_of_the_loss_and_held_out_pairs(encoder: Encoder, tmp_path: Path) -> None:
    fit(tmp_path / "run", encoder)
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert {"part/l1", "part/ms_ssim", "part/perceptual", "part/nodules", "part/spread", "val/psnr"} <= set(last)
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["perceptual"] == "random:regnetx_002@64#0 (regnetx_002 at 64²)"
    assert described["pairs"]["train"] == 4 and described["pairs"]["val"] == 1


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"crop": 10}, "11 <= crop <= size <= 4096"),
        ({"crop": 128}, "crop <= size"),
        ({"size": 5000}, "size <= 4096"),
        ({"perceptual_weight": -1.0}, "perceptual weight of 0 or more"),
        ({"perceptual_weight": float("nan")}, "perceptual weight of 0 or more"),
        ({"encoder_rate": 1.5}, "encoder rate from 0 to 1"),
        ({"keep_nodules": -1.0}, "weight of kept nodules"),
        ({"caution": 1.0, "spread": False}, "caution needs the spread"),
        ({"strengthen_bone": 0.5}, "a factor from 1 to 10"),
        ({"strengthen_bone": float("nan")}, "a factor from 1 to 10"),
    ],
)
def test_numbers_that_cannot_train_are_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        check_bones_config(replace(TINY, **change))


def test_a_run_needs_a_pair_and_leaves_nothing_without_one(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one pair to learn from"):
        train_bone_network(tmp_path / "run", encoder, [], [], TINY)
    with pytest.raises(UsageError, match="at least 1 step"):
        fit(tmp_path / "run", encoder, replace(TINY, steps=0))
    assert list(tmp_path.iterdir()) == []


# At work


@pytest.mark.parametrize("bias", [-50.0, 0.1, 50.0])
def test_a_result_is_nowhere_above_its_film_and_nowhere_below_0(bias: float, encoder: Encoder) -> None:
    network = build_bone_network(encoder)
    torch.nn.init.constant_(network.head[-1].bias, bias)  # type: ignore[arg-type]
    suppressor = BoneSuppressor(network, 64, 64)
    for film in (draw_pairs()[1].film_HW, np.random.default_rng(0).random((150, 201), np.float32)):
        bone, result = suppressor.predict_bone(film), suppressor.suppress(film)
        assert result.dtype == np.float32 and result.shape == film.shape
        assert (result <= film).all() and result.min() >= 0 and bone.min() >= 0
        np.testing.assert_allclose(film - bone, result, atol=1e-6)


def test_pairs_are_scored_at_the_networks_size_with_all_their_masks(encoder: Encoder) -> None:
    [pair] = read_pairs("phantom:2@128#1")[1:]
    small = shrink_pair(pair, 64)
    for picture in (small.film_HW, small.bone_free_HW, small.lung_HW, small.bone_cm_HW, small.nodule_HW):
        assert picture is not None and picture.shape == (64, 64)
    assert small.lung_HW is not None and small.lung_HW.dtype == bool and pair.lung_HW is not None
    assert small.lung_HW.mean() == pytest.approx(pair.lung_HW.mean(), rel=0.05)
    assert shrink_pair(pair, 128) is pair and shrink_pair(pair, 500) is pair
    suppressor = BoneSuppressor(build_bone_network(encoder), 64, 64)
    [found] = score_pairs(suppressor, [pair])
    expected = score_pair(small, suppressor.suppress(small.film_HW)) | score_added_nodules(suppressor, small)
    assert found == pytest.approx(expected, nan_ok=True) and "added_nodule_kept" in found


def test_the_truth_scores_best_and_the_film_itself_has_all_its_bone() -> None:
    pair = draw_pairs()[1]
    truth, nothing = score_pair(pair, pair.bone_free_HW.copy()), score_pair(pair, pair.film_HW)
    assert nothing["psnr"] == pytest.approx(compute_psnr(pair.film_HW, pair.bone_free_HW))
    assert truth["ssim"] == pytest.approx(1) and truth["rmse"] == 0 and nothing["rmse"] > 1
    assert any("nodule" in name for name in truth)


def test_lpips_is_among_the_scores_where_its_weights_are_at_hand_and_zero_for_the_truth_itself(
    monkeypatch: pytest.MonkeyPatch, vgg16_file: Path
) -> None:
    pair = draw_phantom_pair(1, 1, 64)
    suppressor = BoneSuppressor(build_bone_network(load_encoder("random:regnetx_002@64")), 64, 64)
    [scores] = score_pairs(suppressor, [pair])
    assert scores["lpips"] == pytest.approx(compute_lpips(suppressor.suppress(pair.film_HW), pair.bone_free_HW))
    [truth] = score_pairs(suppressor, [replace(pair, bone_free_HW=suppressor.suppress(pair.film_HW))])
    assert truth["lpips"] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr("chess_cxr.tasks.bones.score.has_vgg16", lambda: False)
    assert "lpips" not in score_pairs(suppressor, [pair])[0]
