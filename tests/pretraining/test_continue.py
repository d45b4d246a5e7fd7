"""Runs with local views, guides, balance, sizes and new methods: resumed to the bit, exported, continued by others."""

import json
import random
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chess_cxr.encoders.folder import read_heads
from chess_cxr.encoders.load import load_encoder
from chess_cxr.methods.dino import DINOConfig
from chess_cxr.methods.guides import Guide
from chess_cxr.methods.lejepa import LeJEPAConfig
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.crops import Crops
from chess_cxr.pretraining.export import export
from chess_cxr.pretraining.presets import PretrainConfig, read_pretrain_config
from chess_cxr.pretraining.pretrain import continue_from, pretrain
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import UsageError
from chess_cxr.store import open_store
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from children import train_in_child
from same_end import check_same_end
from tiny_runs import build_tiny_config

LOCAL = Crops(local_views=2, local_size=16)


def build(training: dict[str, Any] | None = None, **changed: Any) -> PretrainConfig:
    tiny = build_tiny_config(steps=12)
    training = replace(tiny.training, log_every=1, probe_every=6, checkpoint_every=4, **training or {})
    return replace(tiny, training=training, **changed)


CONFIGS = {
    "local": build(crops=LOCAL),
    "sizes": build(sizes=((0.5, 16), (1.0, 32))),
    "guided": build(guides=(Guide("site", "adversary"),)),
    "balanced": build(balance="site"),
    "lejepa": build(method=LeJEPAConfig("test_resnet", 8, hidden=16, directions=8), crops=LOCAL),
    "dino": build(method=DINOConfig("test_resnet", 8, hidden=16, prototypes=8), crops=LOCAL),
    "vit": build(method=DINOConfig("test_vit", 8, hidden=16, prototypes=8), crops=LOCAL),
    "decay of weights": build({"decay_norms": False}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "vit" else name for name in CONFIGS]
)
def test_a_run_killed_at_random_steps_ends_as_one_that_was_not(name: str, two_sites: Path, tmp_path: Path) -> None:
    """Killed before and after the step at which the size of the views changes."""
    config, rng = CONFIGS[name], random.Random(name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_in_child(two_sites, whole, config) == (0, "")
    for step in (rng.randint(2, 6), rng.randint(7, 11)):
        code, _ = train_in_child(two_sites, killed, config, signal_at=(step, signal.SIGKILL))
        assert code == -signal.SIGKILL and read_metrics(killed)[-1]["step"] == step
    assert train_in_child(two_sites, killed, config) == (0, "")
    check_same_end(killed, whole)
    described = json.loads((whole / "config.json").read_text())
    assert read_pretrain_config(described) == config
    exported = load_encoder(export(whole, tmp_path / "encoder"))
    assert exported.contract.size == config.views.size


def test_the_averaged_encoder_is_the_key_encoder(two_sites: Path, tmp_path: Path) -> None:
    run = pretrain(two_sites, tmp_path / "run", CONFIGS["local"])
    newest = find_checkpoint(run / "checkpoints")
    assert newest is not None
    tensors = read_checkpoint(newest)[2]
    for which, part in (("trained", "encoder"), ("averaged", "key_encoder")):
        state = load_encoder(export(run, tmp_path / which, which=which)).module.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(tensor, tensors[f"method.{part}.{key}"]) for key, tensor in state.items())
    lejepa = pretrain(two_sites, tmp_path / "lejepa", CONFIGS["lejepa"])
    with pytest.raises(UsageError, match="LeJEPA has no averaged encoder"):
        export(lejepa, tmp_path / "none", which="averaged")


def test_heads_travel_with_the_encoder_and_are_taken_up(two_sites: Path, tmp_path: Path) -> None:
    run = pretrain(two_sites, tmp_path / "run", CONFIGS["local"])
    folder = export(run, tmp_path / "encoder")
    name, heads = read_heads(folder)
    assert name == "moco_v2" and heads.keys() == {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}
    continued = continue_from(CONFIGS["local"], str(folder))
    assert continued.training.frozen_steps == 0
    first = pretrain(two_sites, tmp_path / "next", replace(continued, training=replace(continued.training, steps=1)))
    newest = find_checkpoint(first / "checkpoints")
    assert newest is not None
    state = read_checkpoint(newest)[2]
    # key heads follow slowly: after one step they are still almost what the folder holds
    torch.testing.assert_close(state["method.key_head.0.weight"], heads["head.0.weight"], rtol=0, atol=0.02)
    assert continue_from(replace(CONFIGS["lejepa"], crops=Crops()), str(folder)).training.frozen_steps == 1
    wide = replace(CONFIGS["local"], method=MoCoConfig("test_resnet", 24, queue=32, norm_groups=2))
    with pytest.raises(UsageError, match="heads of .* have other sizes"):
        pretrain(two_sites, tmp_path / "wide", wide, begin_from=str(folder))


def test_what_cannot_guide_or_be_patched_is_refused_before_anything_is_trained(
    two_sites: Path, small_store: Path, tmp_path: Path
) -> None:
    for place, config, said in (
        (small_store, CONFIGS["guided"], "'site' is unknown for all films"),
        (two_sites, build(guides=(Guide("weather"),)), "no column 'weather' can guide"),
        (
            two_sites,
            replace(CONFIGS["vit"], crops=Crops(local_views=2, local_size=20)),
            "patches of 16 pixels .* not 20",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            pretrain(place, tmp_path / "run", config)
        assert not (tmp_path / "run").exists()
    assert open_store(two_sites).films["site"].nunique() == 2


def test_entries_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="a column guides once"):
        build(guides=(Guide("site"), Guide("site", "adversary")))
    with pytest.raises(UsageError, match="larger than the global ones of 12"):
        build(crops=LOCAL, sizes=((0.5, 12), (1.0, 32)))
    assert asdict(build())["guides"] == ()
