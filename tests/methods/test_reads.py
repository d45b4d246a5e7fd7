"""How often a method lets its host wait, counted on a CPU that stands in for a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from benchmarks.step_traffic import StepTraffic
from torch import Tensor

from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.guides import Guide, Guided
from chess_cxr.training import late
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from tiny_methods import CONFIGS, build_tiny, give

CONFIG = TrainingConfig(
    steps=9, batch=16, learning_rate=0.01, clip_norm=1.0, log_every=3, probe_every=100, checkpoint_every=100
)


@pytest.mark.parametrize("name", [*(name for name in CONFIGS if "ViT" not in name), "guided"])
def test_a_method_lets_the_host_wait_once_in_as_many_steps_as_are_logged(
    name: str, phantom_pairs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "LATE", {"cpu"})
    method = build_guided() if name == "guided" else build_tiny(name)
    known = {"view": torch.arange(16) % 3}

    def batches() -> Iterator[Tensor | ViewBatch]:
        for step in range(9):
            pairs = phantom_pairs.roll(step, 3)
            yield ViewBatch(pairs, guides=known) if name == "guided" else give(name, pairs)

    reports = train(method, batches(), build_optimizers(method, CONFIG), CONFIG)
    next(reports)  # reads counts for the first time
    reads = []
    for _ in range(8):
        with StepTraffic() as counter:
            next(reports)
        reads.append(counter.reads)
    assert reads == [0, 1, 0, 0, 1, 0, 0, 1]


def build_guided() -> Any:
    return Guided(build_tiny("byol"), (Guide("view"),), {"view": 3})  # type: ignore[arg-type]


def test_without_late_numbers_the_host_reads_every_step(phantom_pairs: Tensor) -> None:
    method, config = build_tiny("byol"), TrainingConfig(steps=3, batch=16, learning_rate=0.01)
    reports = train(method, iter([phantom_pairs] * 3), build_optimizers(method, config), config)
    for _ in range(3):
        with StepTraffic() as counter:
            assert next(reports).is_read
        assert counter.reads > 1
