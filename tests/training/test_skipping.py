"""Steps that must leave no trace, and a trunk that must not move while its heads learn."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.loop import LoopState, StepReport, TrainingConfig, build_optimizers, train
from states import copy_state, list_changed

CONFIG = TrainingConfig(steps=8, batch=6, learning_rate=0.1, momentum=0.9, weight_decay=0.1, optimizer="adamw")


class Pair(nn.Module):
    """A trunk with BatchNorm and a head; `spoil` says at which step (from 0) what is not finite."""

    def __init__(self, spoil: dict[int, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.head = nn.Linear(2, 1)
        self.register_buffer("followed", torch.zeros(2, 4))
        self.signals: dict[str, float] = {}
        self.spoil, self.step = spoil or {}, 0

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"pair": [*self.encoder.parameters(), *self.head.parameters()]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        what = self.spoil.get(self.step, "")
        self.step += 1
        loss = self.head(self.encoder(batch + float(what) if what in ("nan", "inf") else batch)).square().mean()
        # the square root of 0 is finite, its gradient is not
        yield "pair", loss + (self.head.weight.sum() * 0).sqrt() if what == "gradient" else loss

    def after_step(self) -> None:
        self.followed.lerp_(self.encoder[2].weight.detach(), 0.5)


class SpoiledCritic(nn.Module):
    """Two losses a step, the second of them NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.signals: dict[str, float] = {}
        self.followed = 0

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"first": [self.first], "second": [self.second]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "first", self.first.square()
        yield "second", self.second * math.nan

    def after_step(self) -> None:
        self.followed += 1


def make_batches(first: int = 0) -> Iterator[Tensor]:
    return iter(torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(1))[first:])


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_leaves_no_trace_and_the_next_is_made(what: str) -> None:
    method = Pair({2: what})
    optimizers = build_optimizers(method, CONFIG)
    reports = train(method, make_batches(), optimizers, CONFIG)
    made = [next(reports), next(reports)]
    before = copy_state(method, optimizers)
    skipped = next(reports)
    assert list_changed(before, copy_state(method, optimizers)) == []
    thing = "gradient of the pair loss" if what == "gradient" else "pair loss"
    assert skipped.step == 3 and skipped.problem == f"the {thing} became nan" and skipped.skipped_steps == 1
    assert all(math.isfinite(number) for number in (*skipped.losses.values(), *skipped.gradient_norms.values()))
    assert {report.problem for report in made} == {""} and {report.skipped_steps for report in made} == {0}
    after = next(reports)
    assert not after.problem and after.skipped_steps == 1
    changed = list_changed(before, copy_state(method, optimizers))
    assert set(changed) == before.keys()  # running statistics, weights, moments, what follows: all of them


def test_a_skipped_step_equals_one_that_nobody_ever_asked_for() -> None:
    method, other = Pair({3: "nan"}), Pair()
    list(train(method, make_batches(), build_optimizers(method, CONFIG), CONFIG))
    optimizers, batches = build_optimizers(other, CONFIG), list(make_batches())
    reports = train(other, iter(batches), optimizers, CONFIG)
    for _ in range(3):
        next(reports)
    list(train(other, iter(batches[4:]), optimizers, CONFIG, first_step=4))
    assert list_changed(method.state_dict(), other.state_dict()) == []


def test_too_many_skipped_steps_in_a_row_end_the_run_with_one_line() -> None:
    patient = replace(CONFIG, max_skipped=3)
    method = Pair({0: "nan", 1: "nan", 3: "nan", 4: "gradient", 5: "nan"})
    reports: list[StepReport] = []
    line = "^the pair loss became nan at step 6, after 2 skipped before it; try a lower learning rate$"
    with pytest.raises(ChessError, match=line):
        reports.extend(train(method, make_batches(), build_optimizers(method, CONFIG), patient))


def test_steps_made_in_between_renew_the_patience() -> None:
    method = Pair({0: "nan", 1: "nan", 3: "nan", 4: "nan", 6: "nan"})
    reports = list(train(method, make_batches(), build_optimizers(method, CONFIG), replace(CONFIG, max_skipped=3)))
    assert [report.skipped_steps for report in reports] == [1, 2, 2, 3, 4, 4, 5, 5]


def test_a_continued_run_remembers_what_it_skipped() -> None:
    patient = replace(CONFIG, max_skipped=3)
    method = Pair({2: "nan", 3: "nan"})
    state = LoopState(method, patient)
    reports = train(method, make_batches(), build_optimizers(method, patient), patient, state=state)
    assert [next(reports).skipped_steps for _ in range(4)] == [0, 0, 1, 2]
    continued, again = Pair({0: "nan"}), LoopState(method, patient)
    again.load_state_dict(state.state_dict())
    with pytest.raises(ChessError, match="at step 5, after 2 skipped before it"):
        next(train(continued, make_batches(4), build_optimizers(continued, patient), patient, 4, again))


def test_of_several_losses_the_ones_stepped_before_stay_stepped() -> None:
    method = SpoiledCritic()
    (report,) = train(method, make_batches(), build_optimizers(method, CONFIG), replace(CONFIG, steps=1))
    assert report.problem == "the second loss became nan" and report.losses.keys() == {"first"}
    assert method.first.item() != 1 and method.second.item() == 1 and method.followed == 0


def test_a_frozen_trunk_stays_to_the_bit_while_the_head_learns_and_moves_afterwards() -> None:
    method, config = Pair(), replace(CONFIG, frozen_steps=3)
    trunk = {name: tensor.clone() for name, tensor in method.encoder.state_dict().items()}
    head = method.head.weight.detach().clone()
    reports = train(method, make_batches(), build_optimizers(method, config), config)
    for _ in range(3):
        next(reports)
        assert list_changed(trunk, method.encoder.state_dict()) == []
        assert all(parameter.requires_grad and parameter.grad is None for parameter in method.encoder.parameters())
        assert not torch.equal(method.head.weight, head)
        head = method.head.weight.detach().clone()
    next(reports)
    assert set(list_changed(trunk, method.encoder.state_dict())) == trunk.keys()


def test_what_a_frozen_trunk_computes_is_what_it_will_compute_when_it_thaws() -> None:
    """It normalises by the batch: in evaluation mode the head would learn on other features than it gets later."""
    frozen, free = Pair(), Pair()
    config = replace(CONFIG, frozen_steps=1)
    first = next(train(frozen, make_batches(), build_optimizers(frozen, config), config))
    second = next(train(free, make_batches(), build_optimizers(free, CONFIG), CONFIG))
    assert first.losses == second.losses
    assert first.gradient_norms["pair"] < second.gradient_norms["pair"]


def test_parameters_that_were_never_to_be_trained_stay_so_after_a_thaw() -> None:
    method, config = Pair(), replace(CONFIG, frozen_steps=2)
    method.encoder[0].requires_grad_(False)
    list(train(method, make_batches(), build_optimizers(method, config), config))
    assert [parameter.requires_grad for parameter in method.encoder.parameters()] == [False] * 2 + [True] * 4


def test_a_method_without_an_encoder_cannot_be_frozen() -> None:
    method = SpoiledCritic()
    with pytest.raises(UsageError, match="training.frozen_steps freezes a method's encoder, and this method has none"):
        next(train(method, make_batches(), build_optimizers(method, CONFIG), replace(CONFIG, frozen_steps=1)))
