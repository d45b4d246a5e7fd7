import math

import pytest
import torch
from torch import nn

from chess_cxr.methods import METHODS
from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.guides import Guide, Guided, compute_guide_loss
from chess_cxr.records import UsageError
from tiny_methods import build_tiny


def guide(pairs: torch.Tensor) -> ViewBatch:
    """Pairs of views and a column of three values, of which every fourth film knows none."""
    value_B = torch.arange(pairs.shape[1]) % 3
    value_B[::4] = -1
    return ViewBatch(pairs, guides={"view": value_B})


def test_an_unknown_value_asks_for_nothing_and_counts_as_a_film() -> None:
    head, feature = nn.Linear(5, 3), torch.randn(4, 5)
    value = torch.tensor([0, -1, 2, -1])
    log_share = head(feature).log_softmax(1)
    expected = -(log_share[0, 0] + log_share[2, 2]) / 4
    assert compute_guide_loss(head, feature, value, "helper").item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_adversary_has_the_same_loss_and_the_encoder_the_opposite_gradient() -> None:
    head, value = nn.Linear(5, 3), torch.tensor([0, 1, 2, 1])
    gradients, of_head = [], []
    for role in ("helper", "adversary"):
        feature = torch.linspace(-1, 1, 20).view(4, 5).requires_grad_(True)
        head.zero_grad()
        compute_guide_loss(head, feature, value, role).backward()
        gradients.append(feature.grad)
        of_head.append(head.weight.grad.clone())
    assert torch.equal(gradients[0], -gradients[1]) and torch.equal(*of_head)


@pytest.mark.parametrize("name", METHODS)
def test_any_method_can_be_guided(name: str, phantom_pairs: torch.Tensor) -> None:
    plain, inner = build_tiny(name), build_tiny(name)
    method = Guided(inner, (Guide("view", weight=0.5),), {"view": 3})
    torch.manual_seed(3)
    ((_, expected),) = plain.losses(phantom_pairs)
    torch.manual_seed(3)
    ((_, loss),) = method.losses(guide(phantom_pairs))
    told = method.signals["guide/view"] * math.log(3)
    assert loss.item() == pytest.approx(expected.item() + 0.5 * told, rel=1e-4)
    with torch.no_grad():
        feature = plain.encoder(phantom_pairs[0])
    expected_loss = compute_guide_loss(method.heads["view"], feature, guide(phantom_pairs).guides["view"], "helper")
    assert told == pytest.approx(expected_loss.item(), rel=1e-3)
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.heads.parameters())
    assert method.encoder is inner.encoder
    assert {id(p) for p in method.heads.parameters()} < {id(p) for p in method.get_parameters()["encoder"]}


@pytest.mark.parametrize("wrong", [{"column": ""}, {"column": "site", "weight": 0.0}])
def test_a_guide_needs_a_column_and_a_weight(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="a column and a weight above 0"):
        Guide(**wrong)  # type: ignore[arg-type]
