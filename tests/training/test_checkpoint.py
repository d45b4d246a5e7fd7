"""Checkpoints: whole or absent, exact, and refused where they do not belong."""

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chess_cxr.files.whole import hold, write_atomically
from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.checkpoint import (
    find_checkpoint,
    name_checkpoint,
    read_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)

DESCRIBED: dict[str, Any] = {"training": {"learning_rate": 0.1, "steps": 9}, "sizes": (1, 2)}


def build_trained(seed: int, steps: int = 3) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    """Two halves with an optimiser each, channels last, some steps old; one parameter never gets a gradient."""
    torch.manual_seed(seed)
    network = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "b": nn.Conv2d(3, 2, 3)})
    network["unused"] = nn.Linear(2, 2)
    network.to(memory_format=torch.channels_last)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "a": torch.optim.AdamW([*network["a"].parameters(), *network["unused"].parameters()], lr=0.01),
        "b": torch.optim.SGD(network["b"].parameters(), lr=0.1, momentum=0.9),
    }
    train_some(network, optimizers, steps)
    return network, optimizers


def train_some(network: nn.Module, optimizers: dict[str, torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        films = torch.randn(5, 3, 6, 6)
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            network.get_submodule(name)(films).square().sum().backward()
            optimizer.step()


def test_what_is_restored_goes_on_exactly_like_what_was_written(tmp_path: Path) -> None:
    network, optimizers = build_trained(0)
    path = write_checkpoint(tmp_path, 3, network, optimizers, DESCRIBED)
    train_some(network, optimizers, 3)
    other, other_optimizers = build_trained(1, steps=0)
    assert restore_checkpoint(path, other, other_optimizers, DESCRIBED) == 3
    moment = other_optimizers["b"].state[other["b"].weight]["momentum_buffer"]
    assert moment.stride() == other["b"].weight.stride() and not moment.is_contiguous()
    train_some(other, other_optimizers, 3)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_checkpoint_is_plain_tensors_and_json(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, *build_trained(0), DESCRIBED)
    assert path == name_checkpoint(tmp_path, 3) == tmp_path / "step_00000003.safetensors"
    step, described, tensors = read_checkpoint(path)
    assert (step, described) == (3, json.loads(json.dumps(DESCRIBED)))
    assert load_file(path).keys() == tensors.keys()
    assert {"method.a.1.running_mean", "optimizer.a.0.exp_avg", "optimizer.b.0.momentum_buffer"} <= tensors.keys()


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    network, optimizers = build_trained(0, steps=1)
    for step in (8, 9, 10, 100):
        write_checkpoint(tmp_path, step, network, optimizers, DESCRIBED, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000009.safetensors",
        "step_00000010.safetensors",
        "step_00000100.safetensors",
    ]
    assert find_checkpoint(tmp_path) == name_checkpoint(tmp_path, 100)
    assert find_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({**DESCRIBED, "training": {"learning_rate": 0.2, "steps": 9}}, "training.learning_rate was 0.1, is 0.2"),
        ({**DESCRIBED, "sizes": (1, 3)}, r"sizes was \[1, 2\], is \[1, 3\]"),
        ({**DESCRIBED, "more": True}, "more was null, is true"),
    ],
)
def test_another_configuration_is_refused_by_its_first_difference(
    now: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "run" / "checkpoints", 3, *build_trained(0), DESCRIBED)
    other, optimizers = build_trained(1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UsageError, match=rf"run holds a run of another configuration: {difference}; use another --out"):
        restore_checkpoint(path, other, optimizers, now)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "text"])
def test_a_damaged_checkpoint_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, *build_trained(0), DESCRIBED)
    content = path.read_bytes()
    damaged = {"empty": b"", "cut": content[:-1], "header": b"\xff" * 8 + content[8:], "text": b"not tensors"}
    path.write_bytes(damaged[damage])
    with pytest.raises(ChessError, match=r"_00000003.safetensors is damaged \(.*\); there is no older one") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    shutil.copyfile(path, path.with_name("step_00000002.safetensors"))
    with pytest.raises(ChessError, match="; remove it to go on from an older one"):
        read_checkpoint(path)


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "step_00000001.safetensors")
    with pytest.raises(UsageError, match="not a checkpoint of this version"):
        read_checkpoint(tmp_path / "step_00000001.safetensors")


def write_with_little_room(path: Path, content: bytes, most: int, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        write_atomically(path, content)
    except ChessError as error:
        answer.send(str(error))


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    server = multiprocessing.get_context("forkserver")
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=write_with_little_room, args=(path, b"new" * 100_000, 1000, theirs))
    process.start()
    theirs.close()
    line = ours.recv()
    process.join()
    assert line == f"no space left for {path}: it needs 0.3 MB (nothing half-written)"
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_other_than_space_is_not_called_one(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


HOLD = """
import pathlib, sys, time
from chess_cxr.files.whole import hold
with hold(pathlib.Path(sys.argv[1]), Exception()):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_trains_in_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match="another process trains in"),
            hold(tmp_path, UsageError("another process trains in it")),
        ):
            raise AssertionError("held twice")
        other.kill()
    with hold(tmp_path, UsageError("another process trains in it")):
        assert tmp_path.is_dir()
