"""Pointwise convolutions of one-pixel maps as linear layers: the same numbers and gradients, by another kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chess_cxr.methods.batch import ViewBatch, embed_local
from chess_cxr.methods.pointwise import compute_pointwise_as_linear

CPU = torch.device("cpu")


class ListsConvolutions(TorchDispatchMode):
    """Counts the convolutions that are computed as such."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.convolution
        return func(*args, **(kwargs or {}))


def compute(network: nn.Module, views: Tensor, fast: bool) -> tuple[int, Tensor, list[Tensor]]:
    """Return the number of convolutions, the result and the gradients of views and weights."""
    views = views.clone().requires_grad_()
    network.zero_grad(set_to_none=True)
    with ListsConvolutions() as listed:
        if fast:
            with compute_pointwise_as_linear(CPU):
                out = network(views)
        else:
            out = network(views)
    out.square().sum().backward()
    grads = [views.grad, *(parameter.grad for parameter in network.parameters())]
    return listed.count, out.detach(), [grad.clone() for grad in grads if grad is not None]


@pytest.mark.parametrize(
    ("layer", "side", "is_linear"),
    [
        (nn.Conv2d(6, 8, 1), 1, True),
        (nn.Conv2d(6, 8, 1, bias=False), 1, True),
        (nn.Conv2d(6, 8, 1, stride=2), 1, True),
        (nn.Conv2d(6, 8, 1), 2, False),
        (nn.Conv2d(6, 8, 1, groups=2), 1, False),
        (nn.Conv2d(6, 8, 1, padding=1), 1, False),
        (nn.Conv2d(6, 8, 3, padding=1), 1, False),
    ],
    ids=str,
)
def test_a_convolution_gives_the_same_and_is_a_linear_layer_where_it_can_be(
    layer: nn.Conv2d, side: int, is_linear: bool
) -> None:
    torch.manual_seed(0)
    views = torch.randn(5, 6, side, side)
    plain, fast = compute(layer, views, False), compute(layer, views, True)
    assert (plain[0], fast[0]) == (1, 0 if is_linear else 1)
    tolerance = 1e-5 if is_linear else 0.0
    torch.testing.assert_close(fast[1], plain[1], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(fast[2], plain[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_local_views_are_embedded_so_and_global_ones_are_not() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4, padding=1), nn.Conv2d(4, 4, 1), nn.Flatten())
    batch = ViewBatch(torch.randn(2, 3, 1, 4, 4), torch.randn(6, 3, 1, 4, 4))
    with ListsConvolutions() as listed:
        embedded = embed_local(batch, network)
    assert len(embedded) == 6 and listed.count == 1
    with ListsConvolutions() as listed:
        network(batch.global_GB1SS[0])
    assert listed.count == 2
