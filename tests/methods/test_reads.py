"""How often a method lets its host wait, counted on a CPU that stands in for a GPU."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from benchmarks.step_traffic import StepTraffic
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from chess_cxr.methods import METHODS
from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.guides import Guide, Guided
from chess_cxr.pretraining.presets import PixelScale
from chess_cxr.pretraining.pretrain import normalise_views
from chess_cxr.training import late
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.speed import forget_values
from tiny_methods import CONFIGS, build_tiny, give

CONFIG = TrainingConfig(
    steps=9, batch=16, learning_rate=0.01, clip_norm=1.0, log_every=3, probe_every=100, checkpoint_every=100
)

PIXELS = PixelScale(0.5, 0.25)


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


class _Copies(TorchDispatchMode):
    """Counts copies between host and GPU that the host waits for, and values that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.awaited = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        target = kwargs.get("device", args[0].device if args and isinstance(args[0], Tensor) else None)
        source = next((arg for arg in args[::-1] if isinstance(arg, Tensor)), None)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and source is not None and target:
            if torch.device(target).type != source.device.type:
                self.all += 1
                self.awaited += [] if kwargs.get("non_blocking", args[2:3] == (True,)) else [str(func)]
        elif func is torch.ops.aten._local_scalar_dense.default:
            self.awaited.append(str(func))
        return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["moco_v2 + local", "lejepa"])
def test_between_two_logged_steps_no_copy_to_or_from_a_gpu_is_waited_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without memory know their device: a mixture of host and GPU fails, and every copy is seen.

    Autograd's engine needs a real GPU, so the backward pass only makes gradients of the right kind.
    """
    config = replace(CONFIG, steps=4, log_every=3, optimizer="adamw")
    with FakeTensorMode(allow_non_fake_inputs=True), forget_values():
        with torch.device("cuda"):
            method: Any = METHODS[CONFIGS[name].name][1](CONFIGS[name], steps=4)
            views = torch.zeros(2, 16, 1, 32, 32, dtype=torch.uint8)
            batch = normalise_views(ViewBatch(views, views[..., :16, :16] if "local" in name else None), PIXELS)

        def make_gradients(_loss: Tensor) -> None:
            for parameter in method.get_parameters()["encoder"]:
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.autograd, "backward", make_gradients)
        optimizers = build_optimizers(method, config)
        reports = train(method, repeat(batch), optimizers, config)
        next(reports)
        with _Copies() as copies:
            assert not next(reports).is_read
        assert copies.awaited == [] and copies.all > 0
        moments = [moment for state in optimizers["encoder"].state.values() for moment in state.values()]
        assert {moment.device.type for moment in moments} == {"cuda"}
