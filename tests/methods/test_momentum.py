"""Networks that follow, and their schedule."""

import math

import pytest
import torch
from torch import nn

from chess_cxr.methods.momentum import MomentumSchedule, compute_momentum, copy_frozen, follow


def test_the_momentum_is_the_cosine_of_the_paper() -> None:
    for step in range(11):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * step / 10) + 1) / 2
        assert compute_momentum(0.996, 1.0, step, 10) == pytest.approx(expected)
    assert compute_momentum(0.996, 1.0, 0, 10) == pytest.approx(0.996)
    assert compute_momentum(0.996, 1.0, 25, 10) == 1.0
    assert compute_momentum(0.996, 1.0, 25, 0) == pytest.approx(0.996)


@pytest.mark.parametrize("end", [1.0, 0.9])
def test_a_schedule_counts_steps_and_continues_from_its_state(end: float) -> None:
    whole, begun, resumed = (MomentumSchedule(0.9, end, 7) for _ in range(3))
    expected = [whole.advance() for _ in range(7)]
    found = [begun.advance() for _ in range(3)]
    resumed.load_state_dict(begun.state_dict())
    assert int(begun.step) == 3
    assert found + [resumed.advance() for _ in range(4)] == expected
    assert expected == pytest.approx([compute_momentum(0.9, end, step, 7) for step in range(7)])


def test_every_parameter_follows_and_no_gradient_does() -> None:
    torch.manual_seed(0)
    leaders = (nn.Linear(3, 2), nn.Linear(2, 4, bias=False))
    followers = tuple(copy_frozen(leader) for leader in leaders)
    with torch.no_grad():
        for leader in leaders:
            leader.weight.normal_()
    before = [[p.clone() for p in follower.parameters()] for follower in followers]
    follow(followers, leaders, 0.75)
    for leader, follower, old in zip(leaders, followers, before, strict=True):
        for one, moved, was in zip(leader.parameters(), follower.parameters(), old, strict=True):
            torch.testing.assert_close(moved, 0.75 * was + 0.25 * one)
            assert moved.grad_fn is None and not moved.requires_grad and one.requires_grad
