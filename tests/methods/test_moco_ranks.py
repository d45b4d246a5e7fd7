"""MoCo on two real processes that talk over gloo."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from children import run_ranks

PROGRAM = """
import sys
import torch
import torch.nn.functional as F
from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.methods.ranks import gather_ranks
from chess_cxr.training.distributed import copy_from_first_rank, join_ranks, leave_ranks
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train

rank, world = join_ranks()
torch.manual_seed(rank)  # ranks that start apart must be brought together
method = MoCo(MoCoConfig("test_resnet", embedding=8, queue=24, key_momentum=0.9, norm_groups=2))
copy_from_first_rank(method)

films = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(7))
mine = films[rank * 8 : (rank + 1) * 8]
method.eval()
expected = F.normalize(method.key_head(method.key_encoder(mine)), dim=1)
shuffled = method._embed_keys(mine)
method.train()
torch.manual_seed(100 + rank)
in_company = method._embed_keys(mine)
three_channels = torch.arange(48.0).reshape(2, 3, 2, 4) + 48 * rank
gathered = gather_ranks(three_channels.to(memory_format=torch.channels_last))

def batches():
    for step in range(3):
        pairs = torch.randn(2, 16, 1, 32, 32, generator=torch.Generator().manual_seed(step))
        yield pairs[:, rank * 8 : (rank + 1) * 8]

config = TrainingConfig(steps=3, batch=16, learning_rate=0.05)
reports = list(train(method, batches(), build_optimizers(method, config), config))
state = {name: tensor for name, tensor in method.state_dict().items() if "running" not in name and "num_" not in name}
torch.save(
    {
        "expected": expected.detach(),
        "shuffled": shuffled,
        "in_company": in_company,
        "gathered": gathered.contiguous(),
        "state": state,
        "loss": reports[-1].losses["encoder"],
    },
    f"{sys.argv[1]}/rank{rank}.pt",
)
leave_ranks()
"""


def run_program(code: str, folder: str) -> None:
    sys.argv = ["program.py", folder]
    exec(compile(code, "program.py", "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two ranks saved after three steps."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_program, 2, PROGRAM, str(folder))
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_keys_come_back_to_the_rank_and_place_of_their_queries(ranks: list[dict]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["shuffled"], rank["expected"], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ranks[0]["expected"], ranks[1]["expected"], atol=1e-3)


def test_keys_are_normalised_in_the_company_that_rank_0_drew_over_all_ranks(ranks: list[dict]) -> None:
    torch.manual_seed(0)
    method = MoCo(MoCoConfig("test_resnet", embedding=8, queue=24, key_momentum=0.9, norm_groups=2))
    films = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(100)
    order = torch.randperm(16)
    assert all({0, 1} == {int(film) // 8 for film in company} for company in order.split(8))
    expected = torch.empty(16, 8)
    with torch.no_grad():
        for company in order.split(8):
            expected[company] = F.normalize(method.key_head(method.key_encoder(films[company])), dim=1)
    found = torch.cat([rank["in_company"] for rank in ranks])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_two_ranks_of_one_group_learn_what_one_process_of_two_groups_learns(ranks: list[dict]) -> None:
    torch.manual_seed(0)
    method = MoCo(MoCoConfig("test_resnet", embedding=8, queue=24, key_momentum=0.9, norm_groups=2))
    films = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(100)
    method.train()._embed_keys(films)  # draws the same company as the ranks did before they trained
    batches = (torch.randn(2, 16, 1, 32, 32, generator=torch.Generator().manual_seed(step)) for step in range(3))
    config = TrainingConfig(steps=3, batch=16, learning_rate=0.05)
    reports = list(train(method, batches, build_optimizers(method, config), config))
    assert reports[-1].losses["encoder"] == pytest.approx(ranks[0]["loss"], rel=1e-4)
    for name, tensor in ranks[0]["state"].items():
        torch.testing.assert_close(method.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_gathering_keeps_every_element_in_its_place_whatever_the_memory_layout(ranks: list[dict]) -> None:
    for rank in ranks:
        assert torch.equal(rank["gathered"], torch.arange(96.0).reshape(4, 3, 2, 4))


def test_parameters_and_queue_are_bit_identical_on_both_ranks(ranks: list[dict]) -> None:
    first, second = (rank["state"] for rank in ranks)
    assert {"queue_KD", "queue_position"} <= first.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_queue_holds_the_keys_of_all_ranks(ranks: list[dict]) -> None:
    assert int(ranks[0]["state"]["queue_position"]) == 3 * 16


def test_both_ranks_report_the_mean_loss(ranks: list[dict]) -> None:
    assert ranks[0]["loss"] == ranks[1]["loss"]
