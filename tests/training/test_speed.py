"""FLOPs by hand, and a count that leaves everything as it was."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods import METHODS
from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.speed import (
    SpeedScale,
    count_flops,
    count_step_cost,
    measure_gemm_peak,
    measure_speed_scale,
)

CPU = torch.device("cpu")
SMALL = MoCoConfig(architecture="test_resnet", embedding=16, queue=64, norm_groups=2)


class TwoConvolutions(nn.Module):
    """A network with a momentum copy, small enough to count by hand; its losses ask for values, as real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 7, bias=False),
        )
        self.follower = copy.deepcopy(self.encoder).requires_grad_(False)
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.encoder.parameters())}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        loss = (self.encoder(batch[0]) - self.follower(batch[1])).square().mean()
        self.signals = {"loss": float(loss.detach()), "item": loss.item(), "many": sum(batch[0, :, 0, 0, 0].tolist())}
        yield "encoder", loss

    def after_step(self) -> None:
        pass


def count_by_hand(films: int) -> int:
    """Each output is a sum of products, two FLOPs each; a 10 x 10 film becomes 5 x 5 at the stride of 2."""
    first = 2 * (10 * 10 * 8) * (3 * 3 * 1)
    second = 2 * (5 * 5 * 16) * (3 * 3 * 8 // 4)
    linear = 2 * 7 * (16 * 5 * 5)
    forward = first + second + linear
    # backward: gradients of weights and inputs each cost a forward; nobody asks for the gradient of the film
    return films * (2 * forward + 2 * forward - first)


def test_the_flops_of_a_step_are_those_counted_by_hand() -> None:
    assert count_step_cost(TwoConvolutions(), (2, 6, 1, 10, 10)).flops == count_by_hand(6)


def test_counting_a_real_step_gives_the_same_and_changes_no_number() -> None:
    watched, alone = TwoConvolutions(), TwoConvolutions()
    alone.load_state_dict(watched.state_dict())
    batch = torch.randn(2, 6, 1, 10, 10)
    with count_flops() as get_flops:
        for _, loss in watched.losses(batch):
            torch.autograd.backward(loss)
    assert get_flops() == count_by_hand(6)
    for _, loss in alone.losses(batch):
        torch.autograd.backward(loss)
    for one, other in zip(watched.encoder.parameters(), alone.encoder.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_a_real_step_of_moco_with_groups_has_the_counted_flops() -> None:
    method, batch = MoCo(SMALL), torch.randn(2, 8, 1, 32, 32)
    with count_flops() as get_flops:
        for _, loss in method.losses(batch):
            torch.autograd.backward(loss)
    assert count_step_cost(method, batch.shape).flops == get_flops() > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_counted_and_stays_as_it_was(name: str) -> None:
    config, build = METHODS[name]
    groups = {"norm_groups": 2} if name == "moco_v2" else {}
    method = build(config(architecture="test_resnet", **groups))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    few, many = (count_step_cost(method, (2, films, 1, 32, 32)) for films in (8, 16))
    assert 0 < few.flops < many.flops and 0 < few.activation_bytes < many.activation_bytes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_activations_are_what_autograd_keeps() -> None:
    # the first convolution's output (rectified in place), the second's flattened, the difference
    kept = 6 * 4 * (8 * 10 * 10 + 16 * 5 * 5 + 7)
    assert count_step_cost(TwoConvolutions(), (2, 6, 1, 10, 10)).activation_bytes == kept
    assert count_step_cost(TwoConvolutions(), (2, 6, 1, 10, 10)).largest_activation_bytes == 6 * 4 * 8 * 10 * 10


def test_half_precision_halves_activations_and_traffic_and_no_flops() -> None:
    method = MoCo(SMALL)
    single, half = (count_step_cost(method, (2, 64, 1, 64, 64), kind) for kind in ("float32", "bfloat16"))
    assert half.flops == single.flops
    assert 0.45 < half.activation_bytes / single.activation_bytes < 0.65
    assert 0.45 < half.traffic_bytes / single.traffic_bytes < 0.75


def test_traffic_is_every_input_and_output_once() -> None:
    class Product(TwoConvolutions):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.ones(5, 3))

        def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
            yield "encoder", F.linear(batch, self.weight).sum()

    forward = (4 * 3 + 5 * 3 + 4 * 5) + (4 * 5 + 1)
    # ones_like of the loss (reads and writes 1), then the product of the expanded gradient with the batch
    backward = 2 + (4 * 5 + 4 * 3 + 5 * 3)
    assert count_step_cost(Product(), (4, 3)).traffic_bytes == 4 * (forward + backward)


def test_the_peak_is_that_of_a_product_and_threads_are_put_back() -> None:
    threads = torch.get_num_threads()
    random = torch.get_rng_state()
    peak = measure_gemm_peak(CPU, threads=1, seconds=0.05)
    assert 1 < peak < 5_000
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), random)


def test_what_a_step_reached_is_its_work_by_its_seconds() -> None:
    assert SpeedScale(30.0, 100.0).describe(0.5) == {"gflop_per_second": 60.0, "gemm_peak_share": 0.6}
    scale = measure_speed_scale(TwoConvolutions(), (2, 6, 1, 10, 10), CPU)
    assert scale.step_gflop == count_by_hand(6) / 1e9 and scale.peak_gflops > 1


def test_a_training_goes_the_same_way_whether_it_is_counted_or_not() -> None:
    finals = []
    for counted in (False, True):
        torch.manual_seed(3)
        method = MoCo(SMALL)
        config = TrainingConfig(steps=3, batch=8, learning_rate=0.1)
        batches = torch.randn(3, 2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
        steps = train(method, iter(batches), build_optimizers(method, config), config)
        if counted:
            count_step_cost(method, batches[0].shape)
            with count_flops():
                next(steps)
        list(steps)
        finals.append(method.state_dict())
    assert all(torch.equal(value, finals[1][key]) for key, value in finals[0].items())
