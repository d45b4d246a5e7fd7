"""Networks compiled by torch.compile: the same names, nearly the same numbers, and one line where no compiler is."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chess_cxr.encoders.load import load_encoder
from chess_cxr.methods.guides import Guide, Guided
from chess_cxr.pretraining.export import export
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import UsageError
from chess_cxr.training.compiled import compile_networks
from tiny_methods import build_tiny
from tiny_runs import build_tiny_config

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


def list_compiled(method: nn.Module) -> set[str]:
    return {name for name, module in method.named_modules() if module._compiled_call_impl is not None}


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_a_compiled_run_has_the_same_names_and_nearly_the_same_numbers(
    small_store: Path, pretrained: Path, tmp_path: Path
) -> None:
    config = build_tiny_config()
    config = replace(config, training=replace(config.training, compile=True))
    pretrain(small_store, tmp_path / "run", config, device="cpu")
    name = "checkpoints/step_00000004.safetensors"
    compiled, plain = load_file(tmp_path / "run" / name), load_file(pretrained / name)
    assert compiled.keys() == plain.keys()
    losses = [[line["loss/encoder"] for line in read_metrics(run)] for run in (tmp_path / "run", pretrained)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    export(tmp_path / "run", tmp_path / "encoder", "none")
    assert load_encoder(str(tmp_path / "encoder")).architecture == config.method.architecture


@needs_compiler
def test_the_networks_of_a_method_are_compiled_and_what_holds_them_is_not() -> None:
    method: Any = Guided(build_tiny("byol"), (Guide("view"),), {"view": 3})  # type: ignore[arg-type]
    names = list(method.state_dict())
    compile_networks(method, torch.device("cpu"))
    networks = {"encoder", "head", "predictor", "target_encoder", "target_head"}
    assert list_compiled(method) == {f"inner.{name}" for name in networks} | {"heads.view"}
    assert list(method.state_dict()) == names


@needs_compiler
def test_heads_that_talk_to_other_ranks_are_compiled_for_one_rank_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    method: Any = build_tiny("byol")
    compile_networks(method, torch.device("cpu"))
    assert list_compiled(method) == {"encoder", "target_encoder"}


def test_without_a_compiler_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="training.compile needs the C.. compiler no-such-compiler; install it or set"):
        compile_networks(build_tiny("byol"), torch.device("cpu"))
