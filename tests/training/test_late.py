"""Numbers read late, as on a GPU: the same results, without a wait between two logged steps.

A CPU stands in for the GPU: the loop treats its numbers as late, and every read of a number is counted.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.step_traffic import StepTraffic
from torch import Tensor, nn

from chess_cxr.records import ChessError
from chess_cxr.training import late
from chess_cxr.training.loop import LoopState, StepReport, TrainingConfig, build_optimizers, train

CONFIG = TrainingConfig(
    steps=12, batch=6, learning_rate=0.1, weight_decay=0.1, optimizer="adamw",
    log_every=4, probe_every=100, checkpoint_every=100,
)  # fmt: skip


class Pair(nn.Module):
    """A trunk with BatchNorm, a head and a follower, all in tensors; `spoil` says at which step what is not finite."""

    def __init__(self, spoil: dict[int, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.head = nn.Linear(2, 1)
        self.register_buffer("followed", torch.zeros(2, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.measured: dict[str, Tensor] = {}
        self.spoil, self.step, self.schedule = spoil or {}, 0, list[int]()

    @property
    def signals(self) -> dict[str, float]:
        return late.read_numbers(self.measured)

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"pair": [*self.encoder.parameters()], "second": [*self.head.parameters()]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        what = self.spoil.get(self.step, "")
        self.step += 1
        self.schedule.append(late.read_count(self, "count"))
        output = self.encoder(batch + float(what) if what in ("nan", "inf") else batch)
        self.measured = {"mean": output.detach().mean()}
        yield "pair", output.square().mean()
        loss = self.head(output.detach()).square().mean()
        # the square root of 0 is finite, its gradient is not
        yield "second", loss + (self.head.weight.sum() * 0).sqrt() if what == "gradient" else loss

    def after_step(self) -> None:
        self.followed.lerp_(self.encoder[2].weight.detach(), 0.5)
        late.advance_count(self, "count")


def make_batches() -> Iterator[Tensor]:
    return iter(torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(1)))


def run(
    config: TrainingConfig, spoil: dict[int, str], kinds: set[str], patch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], list[StepReport], Pair]:
    """Train with the optimiser of a GPU, and with late numbers on devices of some kinds."""
    method = Pair(spoil)
    patch.setattr(late, "LATE", {"cpu"})
    optimizers = build_optimizers(method, config)
    patch.setattr(late, "LATE", kinds)
    state = LoopState(method, config)
    reports = list(train(method, make_batches(), optimizers, config, state=state))
    tensors = {name: tensor.clone() for name, tensor in method.state_dict().items()} | state.state_dict()
    for name, optimizer in optimizers.items():
        for index, fields in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value.clone() for key, value in fields.items()}
    return tensors, reports, method


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    "spoil", [{}, {0: "nan"}, {2: "nan", 3: "gradient", 7: "inf"}, {5: "gradient", 6: "gradient", 11: "nan"}]
)
def test_late_numbers_give_the_same_weights_moments_statistics_and_counts_to_the_bit(
    spoil: dict[int, str], precision: Any, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, precision=precision, optimizer=optimizer)
    expected, at_once, _ = run(config, spoil, set(), monkeypatch)
    found, reports, _ = run(config, spoil, {"cpu"}, monkeypatch)
    for name in expected.keys() | found.keys():
        assert torch.equal(found[name], expected[name]), name
    assert [report.is_read for report in reports] == [step % 4 == 0 for step in range(1, 13)]
    for ours, theirs in zip(reports[3::4], at_once[3::4], strict=True):
        assert (ours.problem, ours.skipped_steps, ours.newest_skipped) == (
            theirs.problem, theirs.skipped_steps, theirs.newest_skipped,
        )  # fmt: skip
        if not ours.problem:
            assert (ours.losses, ours.gradient_norms, ours.signals) == (
                theirs.losses, theirs.gradient_norms, theirs.signals,
            )  # fmt: skip


def test_too_many_skipped_steps_are_noticed_at_the_next_log_and_nothing_after_them_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(CONFIG, max_skipped=3, optimizer="sgd")
    method, spoil = Pair({4: "nan", 5: "gradient", 6: "nan"}), "the pair loss became nan at step 7, after 2 skipped"
    with pytest.raises(ChessError, match=spoil):
        list(train(method, make_batches(), build_optimizers(method, config), config))
    monkeypatch.setattr(late, "LATE", {"cpu"})
    delayed, reports = Pair({4: "nan", 5: "gradient", 6: "nan"}), list[int]()
    with pytest.raises(ChessError, match=spoil):
        for report in train(delayed, make_batches(), build_optimizers(delayed, config), config):
            reports.append(report.step)
    assert reports == [1, 2, 3, 4, 5, 6, 7] and delayed.step == 8  # the eighth is made, and read
    for name, tensor in method.state_dict().items():
        assert torch.equal(delayed.state_dict()[name], tensor), name


def test_a_schedule_is_put_right_when_skipped_steps_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, method = run(CONFIG, {1: "nan", 2: "nan"}, {"cpu"}, monkeypatch)
    assert method.schedule == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9] and int(method.count) == 10


def test_the_counter_counts() -> None:
    number = torch.ones(3)
    with StepTraffic() as counter:
        float(number.sum())
        number.tolist()
        bool(number[0] > 0)
        number[number > 0]
        number * 2
    assert counter.reads == 4
