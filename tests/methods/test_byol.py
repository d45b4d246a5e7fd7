"""BYOL against slow manual oracles."""

import math

import pytest
import torch

from chess_cxr.methods.byol import BYOL, BYOLConfig, compute_prediction_error
from chess_cxr.records import UsageError
from tiny_methods import build_tiny


def sum_errors(predicted: torch.Tensor, target: torch.Tensor) -> float:
    """Equation 2 of the paper, film by film: the squared distance of the two vectors, each scaled to length 1."""
    total = 0.0
    for one, other in zip(predicted.tolist(), target.tolist(), strict=True):
        length, other_length = math.hypot(*one), math.hypot(*other)
        total += sum((a / length - b / other_length) ** 2 for a, b in zip(one, other, strict=True))
    return total / len(predicted)


def test_the_error_equals_the_squared_distance_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted, target = (3 * torch.randn(5, 7, generator=generator) + 1 for _ in range(2))
    found = compute_prediction_error(predicted, target).item()
    assert found == pytest.approx(sum_errors(predicted, target), rel=1e-5)


def test_each_view_predicts_what_the_target_network_says_of_the_other(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("byol")
    with torch.no_grad():
        for parameter in method.target_head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that the target is not the online network
    ((_, loss),) = method.losses(phantom_pairs)
    with torch.no_grad():
        predicted = [method.predictor(method.head(method.encoder(view))) for view in phantom_pairs]
        target = [method.target_head(method.target_encoder(view)) for view in phantom_pairs]
    expected = sum_errors(predicted[0], target[1]) + sum_errors(predicted[1], target[0])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_target_follows_ever_more_slowly_and_stands_still_in_the_end() -> None:
    torch.manual_seed(0)
    method = BYOL(BYOLConfig("test_efficientnet_gn", 8, hidden=24, target_momentum=0.5), steps=2)
    shares = []
    for _ in range(3):
        before = method.target_head[0].weight.clone()
        with torch.no_grad():
            method.head[0].weight.add_(1.0)
        method.after_step()
        moved = (method.target_head[0].weight - before) / (method.head[0].weight - before)
        shares.append(moved.mean().item())
    assert shares == pytest.approx([0.5, 0.25, 0.0], abs=1e-6)


def test_a_momentum_beyond_1_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a momentum runs from 1\.5 to 1\.0; choose numbers from 0 to 1"):
        BYOL(BYOLConfig("test_resnet", target_momentum=1.5))


def test_the_published_numbers_are_the_defaults() -> None:
    config = BYOLConfig()
    assert (config.architecture, config.embedding, config.hidden) == ("resnet50", 256, 4096)
    assert config.target_momentum == 0.996
