"""Batches prepared ahead by threads, and sent to a device."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from chess_cxr.methods.batch import ViewBatch
from chess_cxr.training.ahead import change_tensors, prepare_ahead

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Two:
    films: Tensor
    more: dict[str, Any]
    label: str = ""


def prepare(step: int) -> ViewBatch:
    views = torch.full((2, 4, 1, 8, 8), step, dtype=torch.uint8)
    return ViewBatch(views, views[:, :, :, :4, :4], {"site": torch.full((4,), step)})


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_order_as_they_were_prepared(threads: int) -> None:
    batches = list(prepare_ahead(prepare, range(3, 12), threads, CPU))
    assert [int(batch.guides["site"][0]) for batch in batches] == list(range(3, 12))
    for step, batch in enumerate(batches, 3):
        assert batch.global_GB1SS.dtype == torch.uint8 and int(batch.global_GB1SS.max()) == step
        assert batch.local_LB1ss is not None and batch.local_LB1ss.shape == (2, 4, 1, 4, 4)


def test_every_tensor_of_a_batch_is_changed_and_nothing_else() -> None:
    changed = change_tensors(Two(torch.ones(2), {"a": torch.ones(1), "b": "text"}, "label"), lambda it: it + 1)
    assert changed.films.tolist() == [2, 2] and changed.more["a"].tolist() == [2]
    assert (changed.more["b"], changed.label) == ("text", "label")
    assert change_tensors(torch.zeros(2), lambda it: it + 1).tolist() == [1, 1]
    assert change_tensors(ViewBatch(torch.zeros(2)), lambda it: it + 1).raw is None


def test_an_error_comes_at_the_batch_that_has_it() -> None:
    def fail(step: int) -> Tensor:
        if step == 4:
            raise ValueError("broken film")
        return torch.tensor(step)

    batches = prepare_ahead(fail, range(10), 2, CPU)
    assert [int(next(batches)) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="broken film"):
        next(batches)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gets_what_a_cpu_gets() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for batch, expected in zip(
        prepare_ahead(prepare, range(20), 2, device), prepare_ahead(prepare, range(20), 2, CPU), strict=True
    ):
        assert batch.global_GB1SS.device == device
        assert torch.equal(batch.global_GB1SS.cpu(), expected.global_GB1SS)
        assert torch.equal(batch.guides["site"].cpu(), expected.guides["site"])
