"""Statistics over all ranks: many ranks do to a batch what one process does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn

from chess_cxr.methods.simclr import SimCLRConfig
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.training.distributed import average_gradients, join_ranks
from chess_cxr.training.sync_norm import synchronise_batch_norm
from children import TINY, run_ranks, train_in_child, train_in_ranks

FINAL = "checkpoints/step_00000006.safetensors"
# its films are normalised over the whole batch; MoCo's are on purpose not
WHOLE = replace(
    TINY,
    method=SimCLRConfig("test_efficientnet", embedding=8),
    training=replace(TINY.training, sync_batch_norm=True, steps=6, optimizer="sgd", learning_rate=0.01),
)


def build_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(12, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 1))


def step_some(synchronised: bool) -> dict[str, torch.Tensor]:
    """Put three batches of 8 through a network, a share for each rank; return gradients and statistics."""
    rank, world = join_ranks()
    network = build_network()
    if synchronised:
        synchronise_batch_norm(network)
    losses = []
    for films in torch.randn(3, 8, 1, 6, 6, generator=torch.Generator().manual_seed(1)):
        mine = films[rank * (8 // world) : (rank + 1) * (8 // world)]
        losses.append(network(mine).square().mean())
    with average_gradients(network.parameters()):
        torch.stack(losses).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()} | dict(network.named_buffers())
    found["evaluated"] = network.eval()(torch.ones(2, 1, 6, 6)).detach()
    return {name: tensor.tolist() for name, tensor in found.items()}


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    pairs = {name: (torch.tensor(ours[name]), torch.tensor(theirs[name])) for name in theirs}
    return [name for name, pair in pairs.items() if not torch.allclose(*pair, atol=1e-6, rtol=1e-4)]


def test_two_ranks_find_the_gradients_and_statistics_of_one_with_the_whole_batch() -> None:
    (alone,) = run_ranks(step_some, 1, False)
    for rank in run_ranks(step_some, 2, True):
        assert compare(rank, alone) == []
    apart = run_ranks(step_some, 2, False)[0]
    assert {"0.weight", "1.running_mean", "3.running_var"} <= set(compare(apart, alone))  # else nothing is shown


def test_alone_nothing_changes_to_the_bit() -> None:
    assert step_some(True) == step_some(False)


def test_a_run_of_two_ranks_with_batch_norm_ends_where_one_with_the_whole_batch_ends(
    small_store: Path, tmp_path: Path
) -> None:
    """Six steps: a network with BatchNorm on 8 films makes three times as much of a rounding error with each."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert train_in_child(small_store, alone, WHOLE) == (0, "")
    assert train_in_ranks(small_store, (together, tmp_path / "b"), WHOLE) == [(0, ""), (0, "")]
    ours, theirs = load_file(together / FINAL), load_file(alone / FINAL)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-3, msg=name)
    losses = [[line["loss/encoder"] for line in read_metrics(run)] for run in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
