"""What ranks send for ShuffleBN: bytes, not floats, and within a node only."""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.step_traffic import StepTraffic
from torch import Tensor

from chess_cxr.methods.batch import RawViews, ViewBatch
from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.methods.ranks import draw_shared_permutation, get_node
from chess_cxr.pretraining.plan import count_sent_bytes
from chess_cxr.pretraining.presets import PixelScale, demo
from chess_cxr.pretraining.pretrain import normalise_views
from chess_cxr.training.distributed import copy_from_first_rank, join_ranks
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from children import run_ranks

PIXELS = PixelScale(0.53, 0.237)
CONFIG = MoCoConfig("test_efficientnet_gn", embedding=8, queue=40, key_momentum=0.9, norm_groups=2)
SIDE, BATCH = 32, 16


def draw_views(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (2, BATCH, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def train_moco(world: int, a_node: int, raw: bool, config: MoCoConfig) -> dict[str, Any]:
    os.environ["LOCAL_WORLD_SIZE"] = str(a_node)
    rank, found = join_ranks()
    assert found == world
    torch.manual_seed(0)
    method = MoCo(config)
    copy_from_first_rank(method)
    torch.manual_seed(7)
    training = TrainingConfig(steps=3, batch=BATCH, learning_rate=0.05)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    batches = [normalise_views(draw_views(step)[:, own], PIXELS) for step in range(3)]
    if not raw:
        batches = [replace(batch, raw=None) for batch in batches]
    with StepTraffic() as traffic:
        reports = list(train(method, iter(batches), build_optimizers(method, training), training))
    state = {name: tensor.tolist() for name, tensor in method.state_dict().items()}
    random = torch.get_rng_state().tolist()
    return {"sent": dict(traffic.sent), "state": state, "loss": reports[-1].losses["encoder"], "random": random}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(train_moco, 2, 2, 2, True, CONFIG)


def test_views_are_sent_as_bytes_and_everything_ends_to_the_bit_as_with_floats(two_ranks: list[dict[str, Any]]) -> None:
    floats = run_ranks(train_moco, 2, 2, 2, False, CONFIG)
    for ours, theirs in zip(two_ranks, floats, strict=True):
        assert ours["sent"]["views"] == 3 * (BATCH // 2) * SIDE * SIDE
        assert theirs["sent"]["views"] == 4 * ours["sent"]["views"]
        assert {name: ours[name] for name in ("state", "loss", "random")} == {
            name: theirs[name] for name in ("state", "loss", "random")
        }


def test_the_planner_counts_the_bytes_that_are_sent(two_ranks: list[dict[str, Any]]) -> None:
    planned = demo()
    planned = replace(
        planned, method=CONFIG, views=replace(planned.views, size=SIDE), training=replace(planned.training, batch=BATCH)
    )
    weights = sum(4 * parameter.numel() for parameter in MoCo(CONFIG).get_parameters()["encoder"])
    sent = count_sent_bytes(planned, weights, 2)
    for rank in two_ranks:
        assert rank["sent"]["gradients"] == 3 * sent.gradients
        assert rank["sent"]["views"] + rank["sent"]["embeddings"] == 3 * (sent.within_node + sent.embeddings)


def test_two_nodes_of_two_ranks_send_views_within_the_node_only_and_learn_the_same() -> None:
    nodes = run_ranks(train_moco, 4, 4, 2, True, CONFIG)
    (alone,) = run_ranks(train_moco, 1, 1, 1, True, CONFIG)
    planned = demo()
    planned = replace(
        planned, method=CONFIG, views=replace(planned.views, size=SIDE), training=replace(planned.training, batch=BATCH)
    )
    sent = count_sent_bytes(planned, 0, 4, a_node=2)
    for rank in nodes:
        assert rank["sent"]["views"] == 3 * (BATCH // 4) * SIDE * SIDE
        assert rank["sent"]["views"] + rank["sent"]["embeddings"] == 3 * (sent.within_node + sent.embeddings)
        assert rank["random"] == alone["random"]  # so that a run goes on alike on another number of nodes
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-4)  # no BatchNorm: company does not matter
        for name, found in rank["state"].items():
            torch.testing.assert_close(
                torch.tensor(found), torch.tensor(alone["state"][name]), rtol=1e-3, atol=2e-4, msg=name
            )


def test_nodes_of_one_rank_with_one_group_shuffle_over_all_ranks() -> None:
    """Otherwise BatchNorm would normalise each key together with its own query."""
    ranks = run_ranks(train_moco, 2, 2, 1, True, CONFIG)
    assert all(rank["sent"]["views"] == 3 * (BATCH // 2) * SIDE * SIDE for rank in ranks)
    alone = run_ranks(train_moco, 2, 2, 1, True, replace(CONFIG, norm_groups=4))
    assert all(not rank["sent"].get("views") for rank in alone)  # two groups of its own are enough


def draw_company(a_node: int) -> tuple[list[int], int]:
    os.environ["LOCAL_WORLD_SIZE"] = str(a_node)
    join_ranks()
    torch.manual_seed(3)
    node = get_node()
    drawn = draw_shared_permutation(4, torch.device("cpu"), node).tolist()
    torch.distributed.barrier()  # the first rank holds the store, which the others may still ask
    return drawn, node.first


def test_films_are_shuffled_within_their_node_and_with_one_node_over_all_ranks() -> None:
    torch.manual_seed(3)
    everyone = torch.randperm(16).tolist()
    for company, first in run_ranks(draw_company, 4, 2):
        assert company == [film - 4 * first for film in everyone if 0 <= film - 4 * first < 8]
    assert [company for company, _ in run_ranks(draw_company, 2, 2)] == [torch_permutation(8)] * 2


def torch_permutation(length: int) -> list[int]:
    torch.manual_seed(3)
    found: list[int] = torch.randperm(length).tolist()
    return found


def test_bytes_become_the_normalised_views_again_to_the_bit() -> None:
    views = draw_views(0)
    batch: ViewBatch = normalise_views(views, PIXELS)
    assert isinstance(batch.raw, RawViews) and batch.raw.views_GB1SS.dtype == torch.uint8
    assert torch.equal(batch.raw.normalise(batch.raw.views_GB1SS[1].flip(0)), batch.global_GB1SS[1].flip(0))
