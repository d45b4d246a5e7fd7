"""States of networks and optimisers, bit by bit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def copy_state(method: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, fields in optimizer.state_dict()["state"].items():
            state |= {f"{name}.{index}.{key}": value.clone() for key, value in fields.items()}
    return state


def list_changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
