"""Weight decay that spares biases and normalisation layers."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chess_cxr.training.decay import spare_norms
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train

CONFIG = TrainingConfig(steps=1, batch=4, learning_rate=0.1, momentum=0.0, weight_decay=0.5, decay_norms=False)


class Small(nn.Module):
    """A network whose loss has no gradient, so that only decay moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"all": list(self.parameters())}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "all", sum((parameter * 0).sum() for parameter in self.parameters()) + torch.zeros(())

    def after_step(self) -> None:
        pass


def find_moved(config: TrainingConfig, groups: dict[str, Any] | None = None, network: Small | None = None) -> set[str]:
    """Return the names of the parameters that decayed, after having checked by how much."""
    network = network or Small()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    list(train(network, iter([torch.zeros(1)]), build_optimizers(network, config, groups), config))
    for parameter in network.parameters():
        assert parameter.unique().item() in (1.0, pytest.approx(0.95))
    return {name for name, parameter in network.named_parameters() if parameter.max() < 1}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_spares_what_has_one_dimension_if_asked_to_and_nothing_otherwise(optimizer: Any) -> None:
    spared = replace(CONFIG, optimizer=optimizer)
    assert find_moved(spared) == {"encoder.0.weight", "encoder.3.weight"}
    assert find_moved(replace(spared, decay_norms=True)) == {name for name, _ in Small().named_parameters()}


def test_the_groups_of_a_task_keep_their_other_entries() -> None:
    network = Small()
    first, second = list(network.encoder[0].parameters()), list(network.encoder[3].parameters())
    given = [{"params": first, "rate_scale": 0.3, "betas": (0.5, 0.9)}, {"params": second, "weight_decay": 0.25}]
    made = spare_norms(given)
    assert [[tuple(parameter.shape) for parameter in group["params"]] for group in made] == [
        [(2, 1, 3, 3)], [(2,)], [(3, 2)], [(3,)],
    ]  # fmt: skip
    assert [group.get("weight_decay") for group in made] == [None, 0.0, 0.25, 0.0]
    assert [group.get("rate_scale") for group in made] == [0.3, 0.3, None, None]
    assert made[1]["betas"] == (0.5, 0.9)
    assert find_moved(CONFIG, {"all": [{"params": first}]}, network) == {"encoder.0.weight"}


def test_by_default_optimisers_are_what_they_were() -> None:
    network = Small()
    [group] = build_optimizers(network, replace(CONFIG, decay_norms=True))["all"].param_groups
    assert group["params"] == list(network.parameters()) and asdict(TrainingConfig(1))["decay_norms"] is True
