"""MoCo v3 against slow manual oracles."""

import math

import pytest
import torch
from torch import nn

from chess_cxr.methods.full_precision import normalise
from chess_cxr.methods.moco_v3 import MoCoV3, MoCoV3Config, compute_contrast
from chess_cxr.records import UsageError
from tiny_methods import build_tiny


def sum_contrast(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, query by query, scaled by 2 temperature as in algorithm 1."""
    total = 0.0
    for place, query in enumerate(queries.tolist()):
        similar = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys.tolist()]
        total -= similar[place] - math.log(sum(math.exp(one) for one in similar))
    return 2 * temperature * total / len(queries)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_contrast_equals_the_sum_written_out(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries, keys = (normalise(torch.randn(n, 7, generator=generator)) for n in (4, 6))
    found = compute_contrast(queries, keys, temperature).item()
    assert found == pytest.approx(sum_contrast(queries, keys, temperature), rel=1e-5)


@pytest.mark.parametrize(("name", "temperature"), [("moco_v3", 1.0), ("moco_v3 of a ViT", 0.2)])
def test_each_view_is_contrasted_with_the_keys_of_the_other(
    name: str, temperature: float, phantom_pairs: torch.Tensor
) -> None:
    method = build_tiny(name)
    with torch.no_grad():
        for parameter in method.key_head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that the key network is not the query network
    ((_, loss),) = method.losses(phantom_pairs)
    with torch.no_grad():
        queries = [normalise(method.predictor(method.head(method.encoder(view)))) for view in phantom_pairs]
        keys = [normalise(method.key_head(method.key_encoder(view))) for view in phantom_pairs]
    there, back = (sum_contrast(queries[way], keys[1 - way], temperature) for way in (0, 1))
    assert loss.item() == pytest.approx(there + back, rel=1e-4)


@pytest.mark.parametrize(("name", "layers", "ends_normed"), [("moco_v3", 2, False), ("moco_v3 of a ViT", 3, True)])
def test_the_heads_are_those_of_the_paper(name: str, layers: int, ends_normed: bool) -> None:
    """The projector has three layers for a ViT and two for others, whose predictor ends without a norm."""
    method = build_tiny(name)
    assert sum(isinstance(layer, nn.Linear) for layer in method.head) == layers
    assert isinstance(method.head[-1], nn.BatchNorm1d) and not method.head[-1].affine
    assert sum(isinstance(layer, nn.Linear) for layer in method.predictor) == 2
    assert isinstance(method.predictor[-1], nn.BatchNorm1d) == ends_normed


def test_the_patches_of_a_vit_learn_only_when_asked_to() -> None:
    trained = {}
    for freeze in (True, False):
        method = MoCoV3(MoCoV3Config("test_vit", 8, hidden=24, freeze_patches=freeze))
        trained[freeze] = len(method.get_parameters()["encoder"])
    assert trained[False] == trained[True] + 2


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="moco_v3: temperature must be above 0"):
        MoCoV3(MoCoV3Config("test_resnet", temperature=0.0))


def test_the_published_numbers_are_the_defaults() -> None:
    config = MoCoV3Config()
    assert (config.architecture, config.embedding, config.hidden) == ("resnet50", 256, 4096)
    assert (config.key_momentum, config.temperature) == (0.99, 1.0)
