"""The one loop: schedule, clipping, several losses, and what must stop it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

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

PLAIN = TrainingConfig(steps=5, batch=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0)


class Line(nn.Module):
    """One weight vector fitted by least squares; `poison` makes a step's loss or gradient not finite."""

    def __init__(self, poison_at: int = -1, what: str = "") -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.ones(3))
        self.poison_at, self.what = poison_at, what
        self.steps_seen = self.steps_done = 0
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"line": [self.weight_D]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        loss = (batch @ self.weight_D).square().mean()
        if self.steps_seen == self.poison_at:
            # the square root of 0 is finite, its gradient is not
            loss = loss + ((self.weight_D.sum() * 0).sqrt() if self.what == "gradient" else float(self.what))
        self.steps_seen += 1
        yield "line", loss

    def after_step(self) -> None:
        self.steps_done += 1


class TinyGan(nn.Module):
    """A generator that makes one number and a discriminator that weighs it; notes when what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Parameter(torch.tensor(1.0))
        self.weighs = nn.Parameter(torch.tensor(2.0))
        self.signals: dict[str, float] = {}
        self.seen: list[tuple[str, float, float]] = []

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"generator": [self.made], "discriminator": [self.weighs]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        self.note("generator")
        yield "generator", -self.weighs * self.made
        self.note("discriminator")
        yield "discriminator", self.weighs * self.made.detach() - self.weighs * batch.mean()

    def note(self, name: str) -> None:
        self.seen.append((name, self.made.item(), self.weighs.item()))

    def after_step(self) -> None:
        self.note("after")


def make_batches(count: int = 5) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0)))


def test_the_rate_rises_linearly_then_falls_as_half_a_cosine() -> None:
    config = TrainingConfig(steps=10, learning_rate=2.0, warmup=0.2)
    rates = [compute_learning_rate(config, step) for step in range(10)]
    expected = [1.0, 2.0] + [2 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates == pytest.approx(expected)


def test_without_warmup_the_rate_starts_full_and_ends_near_zero() -> None:
    config = TrainingConfig(steps=1000, learning_rate=0.03)
    assert compute_learning_rate(config, 0) == 0.03
    assert compute_learning_rate(config, 500) == pytest.approx(0.015)
    assert 0 < compute_learning_rate(config, 999) < 1e-6


def test_training_equals_gradient_descent_written_out() -> None:
    method, weight = Line(), torch.ones(3)
    reports = list(train(method, iter(make_batches()), build_optimizers(method, PLAIN), PLAIN))
    for step, (batch, report) in enumerate(zip(make_batches(), reports, strict=True)):
        output = batch @ weight
        gradient = 2 * batch.T @ output / 4
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 5))
        assert report.step == step + 1 and report.learning_rate == pytest.approx(rate)
        assert report.losses == {"line": pytest.approx(float(output.square().mean()), rel=1e-5)}
        assert report.gradient_norms == {"line": pytest.approx(float(gradient.norm()), rel=1e-5)}
        weight = weight - rate * gradient
    torch.testing.assert_close(method.weight_D.detach(), weight)
    assert method.steps_done == 5


def test_a_large_gradient_is_shortened_and_a_small_one_left() -> None:
    for clip, length in ((0.5, 0.5), (1e6, None)):
        method, config = Line(), replace(PLAIN, steps=1, clip_norm=clip)
        (report,) = train(method, iter(make_batches()), build_optimizers(method, config), config)
        moved = float((method.weight_D.detach() - 1).norm()) / 0.1
        assert report.gradient_norms["line"] > 0.5
        assert moved == pytest.approx(length or report.gradient_norms["line"], rel=1e-4)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "the line loss became nan at step 3; try a lower learning rate"),
        ("inf", "the line loss became inf at step 3; try a lower learning rate"),
        ("gradient", "the gradient of the line loss became nan at step 3; try a lower learning rate"),
    ],
)
def test_without_patience_what_is_not_finite_stops_before_it_reaches_the_weights(what: str, message: str) -> None:
    method, untouched = Line(poison_at=2, what=what), Line()
    two = list(
        train(untouched, iter(make_batches()[:2] + [torch.zeros(4, 3)] * 3), build_optimizers(untouched, PLAIN), PLAIN)
    )[:2]
    impatient = replace(PLAIN, max_skipped=1)
    poisoned = train(method, iter(make_batches()), build_optimizers(method, PLAIN), impatient)
    assert [next(poisoned).losses for _ in two] == [report.losses for report in two]
    before = method.weight_D.detach().clone()
    with pytest.raises(ChessError, match=f"^{message}$"):
        next(poisoned)
    assert torch.equal(method.weight_D.detach(), before) and method.steps_done == 2


def test_each_loss_of_a_gan_is_stepped_before_the_next_is_computed() -> None:
    method, config = TinyGan(), replace(PLAIN, steps=2)
    reports = list(train(method, repeat(torch.tensor([3.0])), build_optimizers(method, config), config))
    made, weighs, expected = 1.0, 2.0, []
    for rate in (0.1, 0.05):
        expected.append(("generator", made, weighs))
        made += rate * weighs
        expected.append(("discriminator", made, weighs))
        weighs -= rate * (made - 3)  # its own loss alone: the generator's gradient on it is thrown away
        expected.append(("after", made, weighs))
    assert [name for name, *_ in method.seen] == [name for name, *_ in expected]
    for (_, *ours), (_, *theirs) in zip(method.seen, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert list(reports[0].losses) == ["generator", "discriminator"]


def test_a_run_starts_at_its_first_step() -> None:
    method = Line()
    reports = list(train(method, iter(make_batches()), build_optimizers(method, PLAIN), PLAIN, first_step=3))
    assert [report.step for report in reports] == [4, 5]
    assert reports[0].learning_rate == pytest.approx(compute_learning_rate(PLAIN, 3))


def test_both_optimisers_get_their_numbers() -> None:
    sgd = build_optimizers(TinyGan(), replace(PLAIN, momentum=0.8, weight_decay=0.2))
    assert sgd.keys() == {"generator", "discriminator"}
    assert all(isinstance(optimizer, torch.optim.SGD) for optimizer in sgd.values())
    group = sgd["generator"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.8, 0.2, 0.1)
    adamw = build_optimizers(TinyGan(), replace(PLAIN, optimizer="adamw", weight_decay=0.2))["generator"]
    assert isinstance(adamw, torch.optim.AdamW) and adamw.param_groups[0]["weight_decay"] == 0.2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"batch": 1}, "batch of at least 2"),
        ({"learning_rate": 0.0}, "learning rate above 0"),
        ({"learning_rate": math.nan}, "learning rate above 0"),
        ({"warmup": 1.0}, "warmup share"),
        ({"log_every": 0}, "training.log_every must be at least 1"),
        ({"keep_checkpoints": 0}, "training.keep_checkpoints must be at least 1"),
        ({"loader_threads": 0}, "training.loader_threads must be at least 1"),
        ({"max_skipped": 0}, "training.max_skipped must be at least 1"),
        ({"seed": -1}, "training.seed must be 0 or more"),
        ({"clip_norm": math.nan}, "training.clip_norm must be 0 or more"),
        ({"compile": True, "sync_batch_norm": True}, "training.compile cannot compile layers that talk to other ranks"),
        ({"frozen_steps": -1}, "training.frozen_steps must be 0 or more"),
        ({"precision": "float8"}, "training.precision must be one of float32, bfloat16, float16"),
    ],
)
def test_numbers_that_cannot_train_are_refused(changed: dict[str, Any], message: str) -> None:
    check_training_config(PLAIN)
    with pytest.raises(UsageError, match=message):
        check_training_config(replace(PLAIN, **changed))
