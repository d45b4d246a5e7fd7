"""Mixed precision on the CPU: what is computed in half the bits, what never is, and how float16 finds its scale."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from chess_cxr.records import ChessError
from chess_cxr.training.loop import LoopState, TrainingConfig, build_optimizers, train
from chess_cxr.training.precision import Precision

CONFIG = TrainingConfig(steps=6, batch=8, learning_rate=0.01, momentum=0.9, weight_decay=0.0)
HALVES: tuple[Precision, ...] = ("bfloat16", "float16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Fit(nn.Module):
    """A small convolution fitted to zero; `strength` multiplies the loss.  Notes the kinds of number it met."""

    def __init__(self, strength: float = 1.0, mean: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(1, 4, 3)
        self.signals: dict[str, float] = {}
        self.strength, self.mean, self.seen = strength, mean, []

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"fit": list(self.encoder.parameters())}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        output = self.encoder(batch)
        self.seen.append(output.dtype)
        square = output.float().square() * self.strength
        yield "fit", square.mean() if self.mean else square.sum()

    def after_step(self) -> None:
        assert not torch.is_autocast_enabled("cpu")
        assert {parameter.dtype for parameter in self.encoder.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in self.encoder.parameters()} == {torch.float32}


def make_batches(count: int = 6) -> Iterator[Tensor]:
    return iter(torch.randn(count, 8, 1, 6, 6, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("precision", ["float32", *HALVES])
def test_networks_compute_in_the_precision_asked_for_and_weights_stay_float32(precision: Precision) -> None:
    method, config = Fit(), replace(CONFIG, precision=precision)
    reports = list(train(method, make_batches(), build_optimizers(method, config), config))
    assert method.seen == [DTYPES[precision]] * 6
    assert reports[-1].losses["fit"] < reports[0].losses["fit"]


@pytest.mark.parametrize("precision", HALVES)
def test_half_the_bits_give_nearly_the_same_losses_norms_and_weights(precision: Precision) -> None:
    whole, half = Fit(), Fit()
    expected = list(train(whole, make_batches(), build_optimizers(whole, CONFIG), CONFIG))
    config = replace(CONFIG, precision=precision)
    found = list(train(half, make_batches(), build_optimizers(half, config), config))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.losses["fit"] == pytest.approx(theirs.losses["fit"], rel=0.02)
        assert ours.gradient_norms["fit"] == pytest.approx(theirs.gradient_norms["fit"], rel=0.02)
    torch.testing.assert_close(half.encoder.weight, whole.encoder.weight, atol=2e-3, rtol=2e-2)
    assert not torch.equal(half.encoder.weight, whole.encoder.weight)


def test_float16_steps_over_a_scale_that_is_too_large_and_counts_it_apart() -> None:
    """A gradient of about 10 overflows float16 once it is scaled by 65,536, and no more when by 1,024."""
    method, config = Fit(mean=False, strength=0.1), replace(CONFIG, precision="float16", steps=12, learning_rate=1e-5)
    weight, state = method.encoder.weight.detach().clone(), LoopState(method, config)
    reports = train(method, make_batches(12), build_optimizers(method, config), config, state=state)
    first = next(reports)
    assert first.problem == "the gradient of the fit loss became inf" and torch.equal(method.encoder.weight, weight)
    rest = list(reports)
    overflowed = rest[-1].overflowed_steps
    assert 1 <= overflowed < 12 and rest[-1].skipped_steps == 0
    assert [bool(report.problem) for report in (first, *rest)] == [True] * overflowed + [False] * (12 - overflowed)
    assert float(state.state_dict()["scaling.fit.scale"]) == 65_536 / 2**overflowed
    assert not torch.equal(method.encoder.weight, weight)


def test_float16_without_any_scale_left_is_a_skipped_step_and_in_the_end_an_error() -> None:
    method = Fit(strength=1e6, mean=False)
    config = replace(CONFIG, precision="float16", steps=40, max_skipped=3)
    reports = train(method, make_batches(40), build_optimizers(method, config), config)
    seen = []
    with pytest.raises(ChessError, match="at step 19, after 2 skipped before it"):
        seen.extend((report.overflowed_steps, report.skipped_steps) for report in reports)


def test_float16_goes_on_from_a_saved_scale_to_the_bit() -> None:
    config = replace(CONFIG, precision="float16")

    def run(parts: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        method = Fit(mean=False, strength=0.1)
        optimizers, saved = build_optimizers(method, config), LoopState(method, config).state_dict()
        batches = list(make_batches())
        for first, last in zip((0, *parts), (*parts, 6), strict=True):
            state = LoopState(method, config)
            state.load_state_dict(saved)
            reports = train(method, iter(batches[first:]), optimizers, config, first, state)
            for _ in range(first, last):
                next(reports)
            saved = state.state_dict()
        return method.state_dict(), saved

    weights, saved = run(())
    assert saved["scaling.fit.scale"] < 65_536
    for parts in ((1,), (2, 3), (1, 2, 3, 4, 5)):
        again, saved_again = run(parts)
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
        assert saved_again == saved
