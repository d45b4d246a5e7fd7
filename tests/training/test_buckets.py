"""Gradients averaged over ranks in buckets: the same numbers as all at once, and sent while backward still runs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from chess_cxr.training.distributed import average_gradients, join_ranks
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from children import run_ranks

SMALL = 100  # bytes of a bucket, so that almost every parameter has its own


def build_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 64, 4))
    network.register_parameter("unused", nn.Parameter(torch.zeros(5)))
    network[4].requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def average_at_once(parameters: list[nn.Parameter]) -> None:
    """All gradients in one collective after the backward pass, as version 0.1 did."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average(how: str) -> dict[str, list[float] | None]:
    rank, _ = join_ranks()
    network = build_network()
    films = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    loss, parameters = network(films).square().mean(), list(network.parameters())
    if how == "at once":
        loss.backward()
        average_at_once(parameters)
    else:
        with average_gradients(parameters, int(how)):
            loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: None if gradient is None else gradient.tolist() for name, gradient in gradients.items()}


@pytest.mark.parametrize("bucket_bytes", ["1", "500", "25000000"])
def test_buckets_of_any_size_give_the_means_of_one_collective_to_the_bit(bucket_bytes: str) -> None:
    expected = run_ranks(average, 2, "at once")
    assert run_ranks(average, 2, bucket_bytes) == expected
    assert expected[0] == expected[1]
    without = {name for name, gradient in expected[0].items() if gradient is None}
    assert without == {"unused", "4.weight", "4.bias"} and len(expected[0]) > 20


def trace_backward() -> dict[str, Any]:
    """Trace a backward pass; return when it ended and when its collectives began, in microseconds."""
    join_ranks()
    network = build_network()
    loss = network(torch.randn(4, 3, 8, 8)).square().mean()
    with profile(activities=[ProfilerActivity.CPU]) as traced, average_gradients(list(network.parameters()), SMALL):
        loss.backward()
        left = any(parameter._post_accumulate_grad_hooks for parameter in network.parameters())
    events = list(traced.events())
    sent = [event.time_range.start for event in events if event.name == "c10d::allreduce_"]
    computed = [event.time_range for event in events if event.name.startswith("autograd::engine::evaluate_function")]
    return {
        "sent": sent,
        "begun": min(time.start for time in computed),
        "ended": max(time.end for time in computed),
        "hooks": (left, any(parameter._post_accumulate_grad_hooks for parameter in network.parameters())),
    }


def test_the_trace_of_two_ranks_shows_buckets_sent_while_backward_runs() -> None:
    for trace in run_ranks(trace_backward, 2):
        during = [time for time in trace["sent"] if trace["begun"] < time < trace["ended"]]
        # the unused parameter is the last one, so no bucket waits for it but the first
        assert len(trace["sent"]) > 5
        assert len(during) > len(trace["sent"]) // 2
        assert trace["hooks"] == (True, False)


class Gan(nn.Module):
    """Two losses; the generator's gradient reaches the discriminator too, which must not average or keep it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.made = nn.Linear(3, 3), nn.Linear(3, 3)
        self.judge = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"made": [*self.encoder.parameters(), *self.made.parameters()], "judge": [*self.judge.parameters()]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        made = self.made(self.encoder(batch))
        yield "made", -self.judge(made).mean()
        yield "judge", self.judge(made.detach()).mean() - self.judge(batch).mean() + self.judge(batch).square().mean()

    def after_step(self) -> None:
        pass


def train_gan(precision: Any, world: int) -> dict[str, Any]:
    """Train on this rank's share of the films, with a frozen trunk at first."""
    rank, found = join_ranks()
    assert found == world
    method = Gan()
    config = TrainingConfig(steps=5, batch=8, learning_rate=0.05, frozen_steps=2, clip_norm=0.5, precision=precision)
    films = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(1))
    share = films[:, rank * 8 // world : (rank + 1) * 8 // world]
    reports = list(train(method, iter(share), build_optimizers(method, config), config))
    state = {name: tensor.tolist() for name, tensor in method.state_dict().items()}
    return {"state": state, "norms": [report.gradient_norms for report in reports]}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_two_losses_with_a_frozen_trunk_and_a_loss_scale_end_where_one_rank_ends(precision: str) -> None:
    (alone,), ranks = run_ranks(train_gan, 1, precision, 1), run_ranks(train_gan, 2, precision, 2)
    assert ranks[0] == ranks[1]
    near = {"rel": 1e-4, "abs": 1e-6} if precision == "float32" else {"rel": 2e-2, "abs": 2e-3}
    for name, found in ranks[0]["state"].items():
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(alone["state"][name]), rtol=near["rel"], atol=near["abs"], msg=name
        )
    for ours, theirs in zip(ranks[0]["norms"], alone["norms"], strict=True):
        assert ours == pytest.approx(theirs, **near)
