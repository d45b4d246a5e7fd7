"""VICReg against slow manual oracles."""

import math
from statistics import fmean, variance

import pytest
import torch

from chess_cxr.methods.vicreg import VICReg, VICRegConfig, compute_covariance_loss, compute_variance_loss
from chess_cxr.records import UsageError
from tiny_methods import build_tiny


def sum_variance(views: torch.Tensor) -> float:
    """Equations 1 and 2: how far each dimension's deviation is below 1."""
    return fmean(max(0.0, 1 - math.sqrt(variance(column) + 1e-4)) for column in views.T.tolist())


def sum_covariance(views: torch.Tensor) -> float:
    """Equations 3 and 4: every pair of different dimensions by itself."""
    columns = views.T.tolist()
    means = [fmean(column) for column in columns]
    total = 0.0
    for i, one in enumerate(columns):
        for j, other in enumerate(columns):
            if i != j:
                products = ((a - means[i]) * (b - means[j]) for a, b in zip(one, other, strict=True))
                total += (sum(products) / (len(views) - 1)) ** 2
    return total / len(columns)


@pytest.mark.parametrize(("films", "width"), [(6, 4), (4, 6), (5, 5)])
def test_the_terms_equal_the_sums_written_out(films: int, width: int) -> None:
    views = torch.randn(films, width, generator=torch.Generator().manual_seed(films)) * 0.8 + 2
    centred = views - views.mean(0)
    assert compute_variance_loss(centred).item() == pytest.approx(sum_variance(views), rel=1e-4)
    assert compute_covariance_loss(centred).item() == pytest.approx(sum_covariance(views), rel=1e-4)


@pytest.mark.parametrize("name", ["vicreg", "vicreg narrow"])
def test_the_loss_of_a_batch_is_the_weighted_sum_of_its_terms(name: str, phantom_pairs: torch.Tensor) -> None:
    method = build_tiny(name)
    ((_, loss),) = method.losses(phantom_pairs)
    with torch.no_grad():
        first, second = (method.head(method.encoder(view)) for view in phantom_pairs)
    squares = [(a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)]
    terms = {
        "invariance": fmean(squares),
        "variance": sum_variance(first) + sum_variance(second),
        "covariance": sum_covariance(first) + sum_covariance(second),
    }
    assert {term: method.signals[term] for term in terms} == pytest.approx(terms, rel=1e-3)
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_a_film_alone_and_weights_below_zero_are_refused(phantom_pairs: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="vicreg: the weights of the terms must be 0 or more"):
        VICReg(VICRegConfig("test_resnet", 8, covariance=-1.0))
    with pytest.raises(UsageError, match="vicreg: a batch needs at least 2 films"):
        list(build_tiny("vicreg").eval().losses(phantom_pairs[:, :1]))


def test_the_published_numbers_are_the_defaults() -> None:
    config = VICRegConfig()
    assert (config.architecture, config.embedding) == ("resnet50", 8192)
    assert (config.invariance, config.variance, config.covariance) == (25, 25, 1)
