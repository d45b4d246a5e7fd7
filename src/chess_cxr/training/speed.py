"""The FLOPs of a training step, and the peak FLOP/s of the machine, measured by matrix products (GEMM).

One multiply-add is two FLOPs.  The count covers convolutions and matrix products, forward and backward, of all networks
in a step, including a momentum encoder.  It leaves out element-wise operations (BatchNorm, ReLU, the optimiser), which
take time: no step reaches the peak.
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

SIDE = 1536  # of matrices on the CPU: two fit a 20 MB cache, and their product takes at most about 0.1 s
GPU_SIDE = 8192
BatchShape = Sequence[int] | Callable[[], Any]  # the shape of a tensor, or a function that builds an empty batch


@dataclass(frozen=True)
class SpeedScale:
    """The work of one rank's step and the peak of its machine, to compare a run's speed with.

    step_gflop: billions of FLOPs.  peak_gflops: billions of FLOPs per second.
    """

    step_gflop: float
    peak_gflops: float

    def describe(self, seconds: float) -> dict[str, float]:
        """Return the speed of a step of this duration, in GFLOP/s and as a share of the peak, 0 … about 1."""
        reached = self.step_gflop / max(seconds, 1e-9)
        return {"gflop_per_second": reached, "gemm_peak_share": reached / self.peak_gflops}


@dataclass(frozen=True)
class StepCost:
    """The cost of one rank's step, without optimiser and momentum update.

    traffic_bytes: memory traffic if every operation reads its inputs from memory and writes its outputs to it.
    activation_bytes: tensors kept from the forward to the backward pass, without weights and batch; the largest of them
    has largest_activation_bytes.
    """

    flops: int
    traffic_bytes: int
    activation_bytes: int
    largest_activation_bytes: int


def measure_speed_scale(
    method: Method, shape: BatchShape, device: torch.device, dtype: torch.dtype = torch.float32
) -> SpeedScale:
    """Measure the work of one rank's step on batches of `shape`, such as [2, B, 1, H, W], and the machine's peak."""
    return SpeedScale(count_step_cost(method, shape).flops / 1e9, measure_gemm_peak(device, dtype=dtype))


def measure_gemm_peak(
    device: torch.device, threads: int | None = None, dtype: torch.dtype = torch.float32, seconds: float = 0.4
) -> float:
    """Measure the GFLOP/s of the fastest square matrix product among as many as fit in `seconds`.

    The fastest, as other work on the machine can only slow a product down.  threads: CPU threads, restored afterwards;
    None for torch's own number.
    """
    side = GPU_SIDE if device.type == "cuda" else SIDE
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        # constants, to leave the run's random generators untouched
        left, right = (torch.full((side, side), 1 / side, dtype=dtype, device=device) for _ in range(2))
        multiply_timed(left, right)  # the first product chooses kernels and starts threads
        fastest, stop = math.inf, time.perf_counter() + seconds
        while fastest == math.inf or time.perf_counter() < stop:
            fastest = min(fastest, multiply_timed(left, right))
    finally:
        torch.set_num_threads(before)
    return 2 * side**3 / fastest / 1e9


def multiply_timed(left: Tensor, right: Tensor) -> float:
    """Return the seconds of one matrix product, until its result is ready."""
    wait_for(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    wait_for(left.device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def count_step_cost(method: Method, shape: BatchShape, precision: Precision = "float32") -> StepCost:
    """Count FLOPs, memory traffic and activations of one rank's step, on a copy whose tensors have no memory.

    The copy runs its real `losses` and their backward passes; the original does not change.  With several losses the
    FLOPs add up and the activations are the largest loss's.  The time (0.4 to 3 s) depends on the number of layers, not
    on films or pixels.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), forget_values():
        ghost = build_ghost(method)
        batch = shape() if callable(shape) else torch.empty(*shape)
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


def _list_tensors(batch: Any) -> list[Tensor]:
    parts = [batch] if isinstance(batch, Tensor) else vars(batch).values()
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def count_flops() -> Iterator[Callable[[], int]]:
    """Count the FLOPs of torch operations in this context, without changing their results."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _count_backward}) as mode:
        yield mode.get_total_flops


def _count_backward(
    gradient: list[int], inputs: list[int], weight: list[int], *rest: Any, out_shape: Any = None
) -> int:
    """Count a convolution's backward pass: the FLOPs of its forward pass for each requested gradient.

    torch's own formula (2.14) ignores groups, and counts 2.5 times too much for RegNetX-002.
    """
    *_, transposed, _padding, _groups, wanted = rest
    return conv_flop_count(inputs, weight, gradient, transposed=transposed) * (bool(wanted[0]) + bool(wanted[1]))


def build_ghost(method: Method) -> Any:
    """Copy a method to tensors without memory, within a `FakeTensorMode`; leaves the original unchanged."""
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    memo: dict[int, Any] = {}
    for parameter in method.parameters():
        memo[id(parameter)] = nn.Parameter(_empty(parameter), parameter.requires_grad)
    # buffers, and tensors left by a step
    for tensor in (it for module in method.modules() for it in tree_iter(vars(module)) if isinstance(it, Tensor)):
        memo.setdefault(id(tensor), _empty(tensor))
    return copy.deepcopy(method, memo)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


@contextmanager
def forget_values() -> Iterator[None]:
    """Answer requests for values of tensors without memory, and hide the other ranks."""
    initialized = torch.distributed.is_initialized
    with ExitStack() as stack:
        stack.enter_context(_NoValues())
        stack.callback(setattr, torch.distributed, "is_initialized", initialized)
        # collectives cannot move tensors without memory; one rank's work is the same without the others
        setattr(torch.distributed, "is_initialized", lambda: False)  # noqa: B010
        yield


class _NoValues(TorchFunctionMode):
    """Stand-in values: 0.0, True, and a large integer, as for the position in a full queue."""

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
    """Adds up the bytes that each operation reads and writes."""

    # batch norm reads its input twice: once for the statistics, once to normalise it
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
    """Adds up the memory that autograd keeps for the backward pass, each storage once."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._bytes: dict[int, int] = {}
        self.most_bytes = self.largest_bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a kept tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._bytes[storage._cdata] = storage.nbytes()
        return tensor

    def forget(self) -> None:
        """Forget the tensors of a loss after its backward pass."""
        self.most_bytes = max(self.most_bytes, sum(self._bytes.values()))
        self.largest_bytes = max(self.largest_bytes, *self._bytes.values(), 0)
        self._bytes.clear()
