"""Real processes that train: killed, stopped, short of disk, or two ranks that talk over gloo."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PixelScale, PretrainConfig
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.records import ChessError
from chess_cxr.training.loop import StepReport, TrainingConfig
from chess_cxr.views import ViewConfig

TINY = PretrainConfig(
    preset="tiny",
    method=MoCoConfig("test_efficientnet", embedding=8, queue=20, key_momentum=0.9, norm_groups=2),
    views=ViewConfig(size=32, crop_area=(0.5, 1.0), flip_p=0.5, noise=(1.0, 8.0), noise_p=0.5),
    training=TrainingConfig(
        steps=30,
        batch=8,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup=0.2,
        clip_norm=5.0,
        log_every=1,
        probe_every=7,
        checkpoint_every=9,
    ),
    pixels=PixelScale(0.5, 0.25),
)
# the trunk thaws on the way, and no step is far from a checkpoint
TINY_WARM = replace(TINY, training=replace(TINY.training, frozen_steps=10, checkpoint_every=2))
TINY_SGD = replace(TINY, training=replace(TINY.training, optimizer="sgd", learning_rate=0.03))
# what each rank computes with it does not depend on which films it was given the others with
WITHOUT_BATCH_NORM = replace(TINY, method=replace(TINY.method, architecture="test_efficientnet_gn", norm_groups=1))

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["chess_cxr.pretraining.pretrain", "chess_cxr.tasks.classify.train"])


def start_training(store: Path, out: Path, config: PretrainConfig, **more: Any) -> tuple[ForkServerProcess, Any]:
    """Start a process that trains; return it and the connection on which its one line would come."""
    ours, theirs = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_train, args=(store, out, config, theirs), kwargs=more)
    process.start()
    theirs.close()
    return process, ours


def train_in_child(store: Path, out: Path, config: PretrainConfig = TINY, **more: Any) -> tuple[int, str]:
    """Train in a process of its own; return its exit code and its line to the user, "" where there is none."""
    return _finish(*start_training(store, out, config, **more))


def train_in_ranks(
    store: Path, outs: Sequence[Path], config: PretrainConfig, more_of_rank: Mapping[int, dict[str, Any]] | None = None
) -> list[tuple[int, str]]:
    """Train in one process for each folder, as ranks of one run; return exit code and line of each."""
    port = find_free_port()
    started = [
        start_training(store, out, config, rank=(rank, len(outs), port), **(more_of_rank or {}).get(rank, {}))
        for rank, out in enumerate(outs)
    ]
    return [_finish(process, line) for process, line in started]


def run_ranks(target: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """Call `target(*args)` in `world` ranks; return what each returned."""
    port = find_free_port()
    started = []
    for rank in range(world):
        ours, theirs = _SERVER.Pipe(duplex=False)
        process = _SERVER.Process(target=_call, args=((rank, world, port), theirs, target, args))
        process.start()
        theirs.close()
        started.append((process, ours))
    answers = [ours.recv() for _, ours in started]
    for process, _ in started:
        process.join(300)
        assert process.exitcode == 0
    return answers


def die_in_child(target: Callable[..., Any], *args: Any) -> int | None:
    """Call `target(*args)`, which is to end its process; return the exit code."""
    ours, theirs = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_call, args=((0, 1, 0), theirs, target, args))
    process.start()
    process.join(300)
    ours.close()
    return process.exitcode


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_lines(path: Path, lines: int, process: ForkServerProcess) -> None:
    """Return when a growing file has so many lines."""
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def _finish(process: ForkServerProcess, line: Any) -> tuple[int, str]:
    try:
        said = line.recv()
    except EOFError:
        said = ""
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode, said


def _join(rank: tuple[int, int, int]) -> None:
    number, world, port = rank
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _call(rank: tuple[int, int, int], answer: Any, target: Callable[..., Any], args: Sequence[Any]) -> None:
    _join(rank)
    torch.set_num_threads(1)
    answer.send(target(*args))


def _train(
    store: Path,
    out: Path,
    config: PretrainConfig,
    line: Any,
    signal_at: tuple[int, int] = (0, signal.SIGTERM),
    largest_file: int = 0,
    rank: tuple[int, int, int] | None = None,
    die_writing: tuple[str, int] = ("", 0),
) -> None:
    """Train; at step `signal_at[0]` this process sends itself signal `signal_at[1]`.

    die_writing: what a checkpoint's writing does when this process is killed, and after how many of its bytes.
    """
    torch.set_num_threads(1)
    if die_writing[0]:
        _die_writing(*die_writing)
    if largest_file:
        sys.dont_write_bytecode = True  # half of a module's bytecode would stay, for all to read
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if rank:
        _join(rank)

    def on_step(report: StepReport, probe: Mapping[str, float]) -> None:
        if report.step == signal_at[0]:
            os.kill(os.getpid(), signal_at[1])

    try:
        pretrain(store, out, config, on_step)
    except ChessError as error:
        line.send(str(error))
        raise SystemExit(error.exit_code) from None


def _die_writing(event: str, most: int) -> None:
    """Die when Python is about to do `event` to a checkpoint, or at byte `most` of the file that it opens.

    "open" with `most` bytes, "os.rename" of the finished file, "os.remove" of an older one.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def watch(happening: str, args: tuple[Any, ...]) -> None:
        if happening != event or "step_" not in str(args[0]) or not str(args[0]).endswith(("tors", str(os.getpid()))):
            return
        if event == "open" and most:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills as surely as SIGKILL does
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        elif event != "open" or "partial" in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def find_rank(torchrun: int, rank: int) -> int:
    """Return the process id of one of the ranks that a torchrun has started (Linux)."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _read_parent(folder) == torchrun:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment:
                return int(folder.name)
    raise LookupError(f"torchrun {torchrun} has no rank {rank}")


def _read_parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended in the meantime
        return 0
