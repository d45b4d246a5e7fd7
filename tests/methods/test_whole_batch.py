"""Two ranks that talk over gloo compute what one process computes from the whole batch."""

from typing import Any

import numpy as np
import pytest
import torch

from chess_cxr.methods.heads import BatchNormOverRanks
from chess_cxr.methods.ranks import gather_ranks_with_gradient
from chess_cxr.training.distributed import join_ranks
from children import run_ranks
from tiny_methods import CONFIGS, train_tiny

Numbers = dict[str, Any]


@pytest.fixture(scope="module")
def alone(phantom_pairs: torch.Tensor) -> Numbers:
    return train_tiny(phantom_pairs)


@pytest.fixture(scope="module")
def two_ranks(phantom_pairs: torch.Tensor) -> list[Numbers]:
    return run_ranks(train_tiny, 2, phantom_pairs)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_compute_the_losses_and_gradients_of_the_whole_batch(
    name: str, alone: Numbers, two_ranks: list[Numbers]
) -> None:
    for rank in two_ranks:
        assert rank[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-4, abs=1e-6)
        assert rank[name]["gradients"] == pytest.approx(alone[name]["gradients"], rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_end_with_the_state_of_the_whole_batch(name: str, alone: Numbers, two_ranks: list[Numbers]) -> None:
    for rank in two_ranks:
        assert rank[name]["state"].keys() == alone[name]["state"].keys()
        for key, found in rank[name]["state"].items():
            np.testing.assert_allclose(found, alone[name]["state"][key], rtol=1e-3, atol=2e-4, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ranks_hold_the_same_state_to_the_bit(name: str, two_ranks: list[Numbers]) -> None:
    first, second = (rank[name]["state"] for rank in two_ranks)
    for key, found in first.items():
        np.testing.assert_array_equal(found, second[key], err_msg=key)


def test_the_age_of_the_queue_counts_the_keys_of_all_ranks(alone: Numbers, two_ranks: list[Numbers]) -> None:
    ages = [run["moco_v2"]["signals"]["queue_age_steps"] for run in (alone, *two_ranks)]
    # 48 keys of 3 steps of 16 have come into 40 places
    assert ages == pytest.approx([(16 * 1 + 16 * 2 + 8 * 3) / 40] * 3)


def gather_and_normalise(values_BD: torch.Tensor) -> Numbers:
    """What a rank gets of its share of [B, D]: from gathering with a gradient, and from the norm over ranks."""
    rank, world = join_ranks()
    share = len(values_BD) // world
    own = values_BD[rank * share : (rank + 1) * share].clone().requires_grad_(True)
    weight_BB = torch.arange(len(values_BD) ** 2.0).reshape(len(values_BD), -1)[rank * share : (rank + 1) * share]
    # the rows of this rank's loss differ from those of the other's
    (own @ gather_ranks_with_gradient(own).T * weight_BB).sum().backward()
    gathered, own.grad = own.grad, None
    norm = BatchNormOverRanks(values_BD.shape[1])
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    normed = norm(own)
    normed.pow(3).sum().backward()
    numbers = {"gathered": gathered, "normed": normed.detach(), "through norm": own.grad}
    return {name: tensor.numpy() for name, tensor in numbers.items() if tensor is not None} | {
        "running": [norm.running_mean.tolist(), norm.running_var.tolist(), int(norm.num_batches_tracked)],
        "evaluated": norm.eval()(own).detach().numpy(),
    }


def test_a_row_gets_what_the_losses_of_all_ranks_ask_of_it_and_norms_are_those_of_all_films() -> None:
    values_BD = torch.randn(12, 5, generator=torch.Generator().manual_seed(3)) * 2 + 1
    ranks, alone = run_ranks(gather_and_normalise, 2, values_BD), gather_and_normalise(values_BD)
    for name in ("gathered", "normed", "through norm", "evaluated"):
        together = np.concatenate([rank[name] for rank in ranks])
        np.testing.assert_allclose(together, alone[name], rtol=1e-4, atol=1e-4, err_msg=name)
    for rank in ranks:
        assert rank["running"][:2] == [pytest.approx(part, rel=1e-5) for part in alone["running"][:2]]
        assert rank["running"][2] == alone["running"][2] == 1
