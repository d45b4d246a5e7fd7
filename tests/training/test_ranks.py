"""Two ranks over gloo are one run: one result, one writer, one end."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from children import TINY, WITHOUT_BATCH_NORM, run_ranks, train_in_child, train_in_ranks
from safetensors.torch import load_file
from torch import Tensor, nn

from chess_cxr.api import read_metrics
from chess_cxr.records import ChessError
from chess_cxr.training.distributed import agree_on_mean, average_gradients, copy_from_first_rank, join_ranks
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train

FINAL = "checkpoints/step_00000030.safetensors"


def agree(world: int) -> dict[str, Any]:
    """What one rank holds after each collective, started from numbers of its own."""
    rank, found = join_ranks()
    assert found == world
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    copy_from_first_rank(network)
    used, unused = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))
    used.grad = torch.full((2, 3), float(rank + 1))
    average_gradients([used, unused])
    return {
        "state": {name: tensor.tolist() for name, tensor in network.state_dict().items()},
        "gradient": used.grad.tolist(),
        "unused": unused.grad,
        "mean": agree_on_mean(float(rank), torch.device("cpu")),
        "not finite": agree_on_mean(float("nan") if rank else 1.0, torch.device("cpu")),
    }


class SpoilsOneRank(nn.Module):
    """Its second loss is NaN, on rank 1 only."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.signals: dict[str, float] = {}
        self.rank, self.step = rank, 0

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"only": [self.weight]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        self.step += 1
        yield "only", self.weight * (float("nan") if self.rank and self.step == 2 else self.rank + 1.0)

    def after_step(self) -> None:
        pass


def train_spoiled() -> tuple[list[float], str, float]:
    rank, _ = join_ranks()
    method, config = (
        SpoilsOneRank(rank),
        TrainingConfig(max_skipped=1, steps=4, batch=2, momentum=0.0, weight_decay=0.0),
    )
    losses: list[float] = []
    try:
        reports = train(method, repeat(torch.zeros(1)), build_optimizers(method, config), config)
        losses.extend(report.losses["only"] for report in reports)
    except ChessError as error:
        return losses, str(error), method.weight.item()
    raise AssertionError("a loss of NaN went unnoticed")


@pytest.fixture(scope="module")
def two_ranks(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folders, one given to each rank, of a run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = (folder / "first", folder / "second")
    assert train_in_ranks(small_store, outs, WITHOUT_BATCH_NORM) == [(0, ""), (0, "")]
    return outs


def test_ranks_share_weights_gradients_and_numbers() -> None:
    first, second = run_ranks(agree, 2, 2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    assert first["state"] == second["state"] == {name: t.tolist() for name, t in network.state_dict().items()}
    assert first["gradient"] == second["gradient"] == [[1.5] * 3] * 2
    assert first["unused"] is None and second["unused"] is None
    assert first["mean"] == second["mean"] == 0.5
    assert first["not finite"] != first["not finite"] and second["not finite"] != second["not finite"]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_the_same_step() -> None:
    first, second = run_ranks(train_spoiled, 2)
    assert first == second
    losses, line, weight = first
    assert losses == [1.5] and line == "the only loss became nan at step 2; try a lower learning rate"
    assert weight == pytest.approx(1 - 0.03 * 1.5)


def test_two_ranks_end_where_one_with_the_whole_batch_ends(
    small_store: Path, two_ranks: tuple[Path, Path], tmp_path: Path
) -> None:
    assert train_in_child(small_store, tmp_path, WITHOUT_BATCH_NORM) == (0, "")
    alone, together = load_file(tmp_path / FINAL), load_file(two_ranks[0] / FINAL)
    assert alone.keys() == together.keys()
    for name in ("method.queue_position", "rng.torch"):
        assert torch.equal(alone[name], together[name])
    torch.testing.assert_close(together["method.queue_KD"], alone["method.queue_KD"], atol=2e-3, rtol=1e-2)
    losses = [[line["loss/encoder"] for line in read_metrics(run)] for run in (tmp_path, two_ranks[0])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][:5] == pytest.approx(losses[0][:5], rel=1e-5)


def test_only_the_first_rank_writes(two_ranks: tuple[Path, Path]) -> None:
    assert (two_ranks[0] / FINAL).exists() and not two_ranks[1].exists()


def test_a_signal_to_one_rank_stops_both_and_they_continue_to_the_same_weights(
    small_store: Path, two_ranks: tuple[Path, Path], tmp_path: Path
) -> None:
    # the first rank alone calls back, so it alone is signalled
    stopped = train_in_ranks(
        small_store, (tmp_path, tmp_path), WITHOUT_BATCH_NORM, {0: {"signal_at": (12, signal.SIGTERM)}}
    )
    assert stopped == [(143, "stopped at step 13 of 30; the same command continues it")] * 2
    assert train_in_ranks(small_store, (tmp_path, tmp_path), WITHOUT_BATCH_NORM) == [(0, ""), (0, "")]
    ours, theirs = load_file(tmp_path / FINAL), load_file(two_ranks[0] / FINAL)
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


def test_a_batch_that_two_ranks_cannot_share_is_one_line_and_leaves_nothing(small_store: Path, tmp_path: Path) -> None:
    odd = replace(TINY, training=replace(TINY.training, batch=9))
    line = "a batch of 9 films cannot be shared by 2 ranks; choose a multiple"
    assert train_in_ranks(small_store, (tmp_path / "a", tmp_path / "b"), odd) == [(2, line), (2, line)]
    assert not list(tmp_path.iterdir())
