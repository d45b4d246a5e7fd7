"""The loop that trains every method."""

import math

import pytest
import torch
from torch import Tensor, nn

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.loop import (
    TrainingConfig,
    build_optimizers,
    check_training_config,
    compute_learning_rate,
    train,
)


class Duel(nn.Module):
    """Two players in one method, as in a GAN: each is stepped before the other's loss is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1.0))
        self.second = nn.Parameter(torch.tensor(2.0))
        self.signals: dict[str, float] = {}
        self.seen: list[float] = []
        self.steps = 0

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"generator": [self.first], "discriminator": [self.second]}

    def losses(self, batch: Tensor):
        yield "generator", (self.first - batch).square()
        self.seen.append(self.first.item())
        yield "discriminator", (self.second - self.first.detach()).square()

    def after_step(self) -> None:
        self.steps += 1


def test_two_losses_step_two_optimisers_one_after_the_other() -> None:
    method = Duel()
    config = TrainingConfig(steps=1, batch=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    (report,) = train(method, iter([torch.tensor(0.0)]), build_optimizers(method, config), config)
    assert method.seen == pytest.approx([1.0 - 0.1 * 2.0])
    assert method.second.item() == pytest.approx(2.0 - 0.1 * 2 * (2.0 - 0.8))
    assert report.losses == pytest.approx({"generator": 1.0, "discriminator": (2.0 - 0.8) ** 2})
    assert method.steps == 1


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    config = TrainingConfig(steps=100, learning_rate=0.4, warmup=0.1)
    rates = [compute_learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])


def test_gradients_are_clipped_and_their_norm_before_is_reported() -> None:
    method = Duel()
    config = TrainingConfig(steps=1, batch=2, learning_rate=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    (report,) = train(method, iter([torch.tensor(-9.0)]), build_optimizers(method, config), config)
    assert report.gradient_norms["generator"] == pytest.approx(20.0)
    assert method.first.item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(wrong: float) -> None:
    method = Duel()
    config = TrainingConfig(steps=3, batch=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    batches = iter([torch.tensor(0.0), torch.tensor(wrong)])
    with pytest.raises(ChessError, match="the generator loss became .* at step 2"):
        list(train(method, batches, build_optimizers(method, config), config))
    assert method.first.item() == pytest.approx(0.8)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 1}, {"learning_rate": 0.0}, {"warmup": 1.0}])
def test_numbers_that_cannot_train_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="training"):
        check_training_config(TrainingConfig(**({"steps": 5} | wrong)))
