"""Whether two runs ended alike: in weights and everything else of the checkpoint, and in metrics."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.training.checkpoint import find_checkpoint
from chess_cxr.training.loop import StepReport

NOT_REPEATABLE = ("time", "images_per_second", "data_wait_share", "gflop_per_second", "gemm_peak_share")


class Enough(Exception):
    """A run has taken the steps that it should."""


def stop_after(step: int) -> Callable[[StepReport, object], None]:
    """Return a listener of steps that raises `Enough` after one."""

    def stop(report: StepReport, _: object) -> None:
        if report.step == step:
            raise Enough

    return stop


def load_newest(run: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the name of a run's newest checkpoint and its tensors."""
    newest = find_checkpoint(run / "checkpoints")
    assert newest is not None
    return newest.name, load_file(newest)


def check_same_end(run: Path, expected: Path) -> None:
    """Everything to the bit."""
    (name, ours), (expected_name, theirs) = load_newest(run), load_newest(expected)
    assert name == expected_name and ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert read_repeatable(run) == read_repeatable(expected)


def check_nearly_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Whole numbers and random state to the bit; the rest as near as sums in another order come."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not tensor.is_floating_point() or name.endswith(".step"):
            assert torch.equal(tensor, theirs[name]), name
        else:
            torch.testing.assert_close(tensor, theirs[name], atol=2e-3, rtol=1e-2, msg=name)


def read_repeatable(run: Path) -> list[dict[str, float]]:
    """Return the metrics of every step, without what the clock says."""
    lines = [{k: v for k, v in line.items() if k not in NOT_REPEATABLE} for line in read_metrics(run)]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return lines
