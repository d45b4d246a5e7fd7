"""Two ranks over gloo are one run: one result, one writer, one end."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.dino import DINOConfig
from chess_cxr.methods.guides import Guide
from chess_cxr.methods.lejepa import LeJEPAConfig
from chess_cxr.pretraining.crops import Crops
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.pretraining.pretrain import RunPlan, pretrain_run
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.store import open_store
from chess_cxr.training.distributed import (
    agree_on_largest,
    average_gradients,
    average_over_ranks,
    copy_from_first_rank,
    join_ranks,
)
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.stop import Stopped
from children import TINY, WITHOUT_BATCH_NORM, run_ranks, train_in_child, train_in_ranks
from same_end import check_nearly_same, load_newest

FINAL = "checkpoints/step_00000030.safetensors"


def agree(world: int) -> dict[str, Any]:
    """What one rank holds after each collective, started from numbers of its own."""
    rank, found = join_ranks()
    assert found == world
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    copy_from_first_rank(network)
    used, unused = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))
    with average_gradients([used, unused]):
        (used * (rank + 1)).sum().backward()
    return {
        "state": {name: tensor.tolist() for name, tensor in network.state_dict().items()},
        "gradient": used.grad.tolist(),
        "unused": unused.grad,
        "mean": float(average_over_ranks(torch.tensor(float(rank)))),
        "largest": agree_on_largest(7 * rank),
        "not finite": float(average_over_ranks(torch.tensor(float("nan") if rank else 1.0))),
    }


class SpoilsOneRank(nn.Module):
    """Its second loss is NaN, and the gradient of its third, on rank 1 only."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.signals: dict[str, float] = {}
        self.rank, self.step, self.followed = rank, 0, 0

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"only": [self.weight]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        self.step += 1
        loss = self.weight * (float("nan") if self.rank and self.step == 2 else self.rank + 1.0)
        yield "only", loss + (self.weight * 0).sqrt() if self.rank and self.step == 3 else loss

    def after_step(self) -> None:
        self.followed += 1


def train_spoiled() -> tuple[list[tuple[str, int]], float, int]:
    rank, _ = join_ranks()
    method, config = SpoilsOneRank(rank), TrainingConfig(steps=4, batch=2, momentum=0.0, weight_decay=0.0)
    reports = train(method, repeat(torch.zeros(1)), build_optimizers(method, config), config)
    return [(report.problem, report.skipped_steps) for report in reports], method.weight.item(), method.followed


class RemembersFilms(nn.Module):
    """Trains next to nothing, but keeps for each step what views and columns all ranks saw, in the order of films."""

    def __init__(self, steps: int, batch: int, rows: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))
        self.head = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(steps, rows, batch))
        self.register_buffer("drawn", torch.zeros(steps))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"only": [*self.encoder.parameters(), *self.head.parameters()]}

    def losses(self, batch: ViewBatch) -> Iterator[tuple[str, Tensor]]:
        pair, local = batch.global_GB1SS, batch.local_LB1ss
        of_views = [view.double().pow(2).mean((2, 3, 4)) for view in (pair, local) if view is not None]
        of_columns = [value_B[None].double() for value_B in batch.guides.values()]
        self.mine_RB = torch.cat([*of_views, *of_columns]).float().contiguous()
        yield "only", self.head(self.encoder(pair[0])).square().mean()

    def after_step(self) -> None:
        parts = [torch.empty_like(self.mine_RB) for _ in range(join_ranks()[1])]
        if len(parts) > 1:
            torch.distributed.all_gather(parts, self.mine_RB)
        else:
            parts = [self.mine_RB]
        self.seen[self.step] = torch.cat(parts, 1)
        self.drawn[self.step] = torch.rand(())
        self.step += 1


def remember_films(store: Path, out: Path, until: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train until a step, as one rank or one of several; return this rank's random state at the end."""
    rank, _ = join_ranks()
    torch.manual_seed(0)
    plan = RunPlan(replace(TINY.training, checkpoint_every=3), TINY.views, TINY.pixels, **options)

    def stop(report: Any, probe: Any) -> None:
        if report.step == until - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    rows = plan.crops.global_views + plan.crops.local_views + len(plan.guides)
    method = RemembersFilms(plan.training.steps, plan.training.batch, rows)
    with suppress(Stopped):
        pretrain_run(out, method, [open_store(store)], plan, {}, stop)
    return {"rank": rank, "random": torch.get_rng_state().tolist(), "step": int(method.step)}


@pytest.fixture(scope="module")
def two_ranks(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folders, one given to each rank, of a run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = (folder / "first", folder / "second")
    assert train_in_ranks(small_store, outs, WITHOUT_BATCH_NORM) == [(0, ""), (0, "")]
    return outs


@pytest.fixture(scope="module")
def alone(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same run by one process with the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    assert train_in_child(small_store, folder, WITHOUT_BATCH_NORM) == (0, "")
    return folder


def test_ranks_share_weights_gradients_and_numbers() -> None:
    first, second = run_ranks(agree, 2, 2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    assert first["state"] == second["state"] == {name: t.tolist() for name, t in network.state_dict().items()}
    assert first["gradient"] == second["gradient"] == [[1.5] * 3] * 2
    assert first["unused"] is None and second["unused"] is None
    assert first["mean"] == second["mean"] == 0.5
    assert first["largest"] == second["largest"] == 7
    assert first["not finite"] != first["not finite"] and second["not finite"] != second["not finite"]


def test_what_is_not_finite_on_one_rank_makes_all_skip_the_same_steps() -> None:
    first, second = run_ranks(train_spoiled, 2)
    assert first == second
    told, weight, followed = first
    problems = ["", "the only loss became nan", "the gradient of the only loss became nan", ""]
    assert told == list(zip(problems, [0, 1, 2, 2], strict=True))
    last_rate = 0.03 * 0.5 * (1 + np.cos(np.pi * 3 / 4))
    assert weight == pytest.approx(1 - (0.03 + last_rate) * 1.5) and followed == 2


def test_two_ranks_end_where_one_with_the_whole_batch_ends(two_ranks: tuple[Path, Path], alone: Path) -> None:
    check_nearly_same(load_file(two_ranks[0] / FINAL), load_file(alone / FINAL))
    losses = [[line["loss/encoder"] for line in read_metrics(run)] for run in (alone, two_ranks[0])]
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


@pytest.mark.long
def test_two_ranks_with_batch_norm_that_are_killed_again_and_again_end_with_the_same_weights(
    small_store: Path, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert train_in_ranks(small_store, (undisturbed, tmp_path / "b"), TINY) == [(0, ""), (0, "")]
    lost = "another rank has ended or cannot be reached: its own message says why; the same command continues the run"
    for step in (4, 11, 20):
        ends = train_in_ranks(small_store, (killed, killed), TINY, {0: {"signal_at": (step, signal.SIGKILL)}})
        assert ends == [(-signal.SIGKILL, ""), (1, lost)]
    assert train_in_ranks(small_store, (killed, killed), TINY) == [(0, ""), (0, "")]
    ours, theirs = load_file(killed / FINAL), load_file(undisturbed / FINAL)
    assert any("running_mean" in name for name in ours)
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


EVERY_OPTION = {
    "crops": Crops(global_views=3, local_views=2, local_size=12),
    "guides": (Guide("site"),),
    "balance": "site",
    "sizes": ((0.4, 16), (1.0, 32)),  # the size changes at step 12, where two ranks train
}


@pytest.mark.parametrize("options", [{}, EVERY_OPTION], ids=["pairs", "every option"])
def test_films_their_views_and_random_numbers_go_on_to_the_bit_when_the_ranks_change(
    options: dict[str, Any], two_sites: Path, tmp_path: Path
) -> None:
    (alone,) = run_ranks(remember_films, 1, two_sites, tmp_path / "alone", 99, options)
    for world, until in ((1, 7), (2, 18), (1, 99)):
        ends = run_ranks(remember_films, world, two_sites, tmp_path / "changing", until, options)
        assert [end["step"] for end in ends] == [min(until, 30)] * world
        assert all(end["random"] == ends[0]["random"] for end in ends)
    ours, theirs = load_file(tmp_path / "changing" / FINAL), load_file(tmp_path / "alone" / FINAL)
    for name in ("method.seen", "method.drawn", "method.step", "rng.torch", "loop.skipped.total"):
        assert torch.equal(ours[name], theirs[name]), name
    assert ends[0]["random"] == alone["random"]
    views = theirs["method.seen"][:, : 5 if options else 2].flatten().tolist()
    assert len(set(views)) > 0.99 * len(views)  # otherwise it would prove nothing; small views may agree by chance


def small(**changed: Any) -> PretrainConfig:
    """Nine steps, without BatchNorm in the encoder."""
    return replace(WITHOUT_BATCH_NORM, training=replace(TINY.training, steps=9), **changed)


LOCAL = Crops(local_views=2, local_size=16)
TRUNK = WITHOUT_BATCH_NORM.method.architecture
CHANGING = {
    "moco": small(),
    "local": small(crops=LOCAL),
    "lejepa": small(method=LeJEPAConfig(TRUNK, 8, hidden=16, directions=8), crops=LOCAL),
    "dino": small(method=DINOConfig(TRUNK, 8, hidden=16, prototypes=8), crops=LOCAL),
    "options": small(guides=(Guide("site", "adversary"),), balance="site", sizes=((0.5, 16), (1.0, 32))),
}


@pytest.mark.parametrize("name", ["moco", "lejepa", "dino", "options", pytest.param("local", marks=pytest.mark.long)])
def test_weights_queue_and_moments_go_on_to_float_tolerance_when_the_ranks_change(
    name: str, two_sites: Path, tmp_path: Path
) -> None:
    config = CHANGING[name]
    steps = config.training.steps
    assert train_in_child(two_sites, tmp_path / "alone", config) == (0, "")
    for world, stop in ((1, steps // 4), (2, 3 * steps // 5), (1, 0)):
        signals = {0: {"signal_at": (stop - 1, signal.SIGTERM)}} if stop else {}
        ends = train_in_ranks(two_sites, [tmp_path / "run"] * world, config, signals)
        assert [code for code, _ in ends] == [143 if stop else 0] * world
        assert load_newest(tmp_path / "run")[0] == f"step_{stop or steps:08d}.safetensors"
    check_nearly_same(load_newest(tmp_path / "run")[1], load_newest(tmp_path / "alone")[1])
    losses = [[line["loss/encoder"] for line in read_metrics(run)] for run in (tmp_path / "run", tmp_path / "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == steps
    rates = [[line["learning_rate"] for line in read_metrics(run)] for run in (tmp_path / "run", tmp_path / "alone")]
    assert rates[0] == rates[1]
