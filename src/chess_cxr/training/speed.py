"""How much arithmetic a step is, and how much of it the machine could do: FLOPs and the measured GEMM peak.

One multiply-add is two FLOPs.  Counted are convolutions and matrix products, forward and backward, of every network a
step passes, the momentum encoder included.  What is element-wise (BatchNorm, ReLU, the optimiser) takes time but is not
counted, so that no step reaches a share of 1.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from chess_cxr.training.loop import Method
from chess_cxr.training.precision import Precision, compute_losses

SIDE = 1536  # of the CPU's matrices: two of them fit a 20 MB cache, and one product takes no more than about 0.1 s
GPU_SIDE = 8192


@dataclass(frozen=True)
class SpeedScale:
    """What a run's speed is held against: the work of one rank's step and the peak of its machine.

    step_gflop: billions of FLOPs.  peak_gflops: billions of FLOPs a second.
    """

    step_gflop: float
    peak_gflops: float

    def describe(self, seconds: float) -> dict[str, float]:
        """Name what a step of that many seconds reached, in GFLOP/s and as a share of the peak, 0 … about 1."""
        reached = self.step_gflop / max(seconds, 1e-9)
        return {"gflop_per_second": reached, "gemm_peak_share": reached / self.peak_gflops}


@dataclass(frozen=True)
class StepCost:
    """What one rank's step asks of its machine, optimiser and momentum update left out.

    traffic_bytes: read and written where every operation reads its inputs from memory and writes its outputs there.
    activation_bytes: kept from the forward to the backward pass, weights and batch left out; largest of them:
    largest_activation_bytes.
    """

    flops: int
    traffic_bytes: int
    activation_bytes: int
    largest_activation_bytes: int


BatchShape = Sequence[int] | Callable[[], Any]  # of a tensor, or what makes an empty batch


def measure_speed_scale(
    method: Method, shape: BatchShape, device: torch.device, dtype: torch.dtype = torch.float32
) -> SpeedScale:
    """Measure what the speed of one rank's step on batches of `shape` is held against; takes about a second."""
    return SpeedScale(count_step_flops(method, shape) / 1e9, measure_gemm_peak(device, dtype=dtype))


def measure_gemm_peak(
    device: torch.device, threads: int | None = None, dtype: torch.dtype = torch.float32, seconds: float = 0.4
) -> float:
    """Measure how many GFLOP/s a square matrix product reaches: the fastest of as many as fit in `seconds`.

    threads: of the CPU, put back afterwards; None for as many as torch uses.  The fastest, because other work on the
    machine can only slow a product down.
    """
    side = GPU_SIDE if device.type == "cuda" else SIDE
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        # their own numbers, so that a run's random numbers stay where they are
        left, right = (torch.full((side, side), 1 / side, dtype=dtype, device=device) for _ in range(2))
        multiply_timed(left, right)  # the first one chooses kernels and wakes threads
        fastest, stop = math.inf, time.perf_counter() + seconds
        while fastest == math.inf or time.perf_counter() < stop:
            fastest = min(fastest, multiply_timed(left, right))
    finally:
        torch.set_num_threads(before)
    return 2 * side**3 / fastest / 1e9


def multiply_timed(left: Tensor, right: Tensor) -> float:
    """Return the seconds of one matrix product, until its result is there."""
    wait_for(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    wait_for(left.device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def count_step_flops(method: Method, shape: BatchShape) -> int:
    """Count the FLOPs of one rank's step on a batch of `shape`, such as [2, B, 1, H, W]: forward and backward.

    Nothing is computed and nothing of the method changes, so that the time (0.3 to 2 s) hangs on the number of layers,
    not on films or pixels.
    """
    # alone: to watch traffic and activations too takes a third longer, and every run begins with this
    with FakeTensorMode(allow_non_fake_inputs=True), forget_values():
        ghost, batch = build_ghost(method), _build_batch(shape)
        with count_flops() as get_flops:
            for _, loss in compute_losses(ghost.losses(batch), "float32", torch.device("cpu")):
                torch.autograd.backward(loss)
    return get_flops()


def count_step_cost(method: Method, shape: BatchShape, precision: Precision = "float32") -> StepCost:
    """Count FLOPs, memory traffic and activations of one rank's step, by a copy whose tensors have no memory.

    The copy goes through its real `losses` and their gradients.  Several losses are stepped one after the other:
    their FLOPs add up, the activations are those of the largest.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), forget_values():
        ghost = build_ghost(method)
        batch = _build_batch(shape)
        kept = _KeptTensors([*ghost.parameters(), *ghost.buffers(), *_list_tensors(batch)])
        with count_flops() as get_flops, _Traffic() as traffic:
            losses = compute_losses(ghost.losses(batch), precision, torch.device("cpu"))
            while True:
                with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
                    pair = next(losses, None)
                if pair is None:
                    break
                torch.autograd.backward(pair[1])
                kept.forget()
    return StepCost(get_flops(), traffic.bytes, kept.most_bytes, kept.largest_bytes)


def _build_batch(shape: BatchShape) -> Any:
    return shape() if callable(shape) else torch.empty(*shape)


def _list_tensors(batch: Any) -> list[Tensor]:
    parts = [batch] if isinstance(batch, Tensor) else vars(batch).values()
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def count_flops() -> Iterator[Callable[[], int]]:
    """Count the FLOPs of what torch does meanwhile; the numbers it computes stay the same."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _count_backward}) as mode:
        yield mode.get_total_flops


def _count_backward(
    gradient: list[int], inputs: list[int], weight: list[int], *rest: Any, out_shape: Any = None
) -> int:
    """Count a convolution's backward: as much as its forward for each of the two gradients that are asked for.

    torch's own formula (2.14) forgets the groups: 2.5 times too much for RegNetX-002.
    """
    *_, transposed, _padding, _groups, wanted = rest
    return conv_flop_count(inputs, weight, gradient, transposed=transposed) * (bool(wanted[0]) + bool(wanted[1]))


def build_ghost(method: Method) -> Any:
    """Copy a method, within a `FakeTensorMode`: shapes and layouts without memory; the original stays as it is."""
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    memo: dict[int, Any] = {}
    for parameter in method.parameters():
        memo[id(parameter)] = nn.Parameter(_empty(parameter), parameter.requires_grad)
    # buffers, and what a step left behind
    for tensor in (it for module in method.modules() for it in tree_iter(vars(module)) if isinstance(it, Tensor)):
        memo.setdefault(id(tensor), _empty(tensor))
    return copy.deepcopy(method, memo)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


@contextmanager
def forget_values() -> Iterator[None]:
    """Let code ask tensors without memory for their values, and be one rank alone."""
    initialized = torch.distributed.is_initialized
    with ExitStack() as stack:
        stack.enter_context(_NoValues())
        stack.callback(setattr, torch.distributed, "is_initialized", initialized)
        # no collective can move what has no memory; the work of one rank is the same without the others
        setattr(torch.distributed, "is_initialized", lambda: False)  # noqa: B010
        yield


class _NoValues(TorchFunctionMode):
    """Answers what only a value can: 0.0 or True, and for integers a large one, as of a queue that is full."""

    ANSWERS: dict[Any, Any] = {
        Tensor.__float__: 0.0,
        Tensor.item: 0.0,
        Tensor.__bool__: True,
        Tensor.__int__: 2**31 - 1,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.ANSWERS and isinstance(args[0], FakeTensor):
            return self.ANSWERS[func]
        if func is Tensor.tolist and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape).tolist()
        return func(*args, **(kwargs or {}))


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that operations read and write, each by itself."""

    # the statistics of a batch are taken before it is normalised: its values pass twice
    TWICE = (torch.ops.aten.native_batch_norm.default, torch.ops.aten.native_batch_norm_backward.default)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view:
            read = args[:2] if func is self.TWICE[1] else args[:1] if func is self.TWICE[0] else ()
            tensors = (it for it in tree_iter((args, kwargs, made, read)) if isinstance(it, Tensor))
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return made


class _KeptTensors:
    """Adds up the memory of what autograd keeps for the backward pass, each storage once."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._bytes: dict[int, int] = {}
        self.most_bytes = self.largest_bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._bytes[storage._cdata] = storage.nbytes()
        return tensor

    def forget(self) -> None:
        """Note that a loss's backward pass is done."""
        self.most_bytes = max(self.most_bytes, sum(self._bytes.values()))
        self.largest_bytes = max(self.largest_bytes, *self._bytes.values(), 0)
        self._bytes.clear()
