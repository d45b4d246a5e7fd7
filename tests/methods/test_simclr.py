"""SimCLR against slow manual oracles."""

import math

import pytest
import torch

from chess_cxr.methods.full_precision import normalise
from chess_cxr.methods.simclr import SimCLR, SimCLRConfig, compute_nt_xent
from chess_cxr.records import UsageError
from tiny_methods import build_tiny


def sum_nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, view by view, over the 2 B ordered positives."""
    views = [*first.tolist(), *second.tolist()]
    films = len(first)
    total = 0.0
    for anchor, view in enumerate(views):
        terms = []
        for candidate, other in enumerate(views):
            if candidate != anchor:
                similarity = sum(a * b for a, b in zip(view, other, strict=True)) / temperature
                terms.append(math.exp(similarity))
                if candidate == (anchor + films) % (2 * films):
                    positive = similarity
        total -= positive - math.log(sum(terms))
    return total / len(views)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_sum_written_out(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (normalise(torch.randn(5, 7, generator=generator)) for _ in range(2))
    found = compute_nt_xent(first, second, temperature).item()
    assert found == pytest.approx(sum_nt_xent(first, second, temperature), rel=1e-5)


def test_the_loss_of_a_batch_is_that_of_its_embedded_views(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("simclr")
    ((_, loss),) = method.losses(phantom_pairs)
    with torch.no_grad():
        first, second = (normalise(method.head(method.encoder(view))) for view in phantom_pairs)
    assert loss.item() == pytest.approx(sum_nt_xent(first, second, 0.1), rel=1e-4)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="simclr: temperature must be above 0"):
        SimCLR(SimCLRConfig("test_resnet", temperature=0.0))


def test_the_published_numbers_are_the_defaults() -> None:
    assert (SimCLRConfig().architecture, SimCLRConfig().embedding, SimCLRConfig().temperature) == ("resnet50", 128, 0.1)
