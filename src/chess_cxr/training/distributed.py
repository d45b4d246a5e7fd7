"""The ranks of a run under `torchrun`: join and leave them, and agree on numbers, weights and gradients."""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore

from chess_cxr.records import ChessError, UsageError

LONGEST_WAIT_SECONDS = 300
BUCKET_BYTES = 25 * 2**20  # of gradients: large enough for the bandwidth of links, small enough to be sent early
Result = TypeVar("Result")


def join_ranks(device: str = "auto") -> tuple[int, int]:
    """Join the process group of `torchrun`, if there is one; return (rank, world size).

    device: a name for `choose_device`; each rank uses the GPU of its own local rank.
    """
    world = count_ranks()
    if world > 1 and device.startswith("cuda:"):
        raise UsageError(f"{world} ranks cannot share {device}; with --device cuda each takes a GPU of its own")
    on_gpu = torch.cuda.is_available() and device in ("auto", "cuda")
    if world > 1 and not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # through gloo, numbers on the host are shared without waiting for the GPU
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(backend, store=_open_store(), rank=int(os.environ["RANK"]), world_size=world)
        else:
            dist.init_process_group(backend)
        atexit.register(leave_ranks)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def count_ranks() -> int:
    """Return the number of ranks of the run, also before joining them."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _open_store() -> TCPStore:
    """Open a key-value store that is not shared with an earlier start of the same run.

    torchrun uses one store for all its restarts: a rank may read there the address of its dead predecessor and wait for
    it (pytorch issue 135712).  The restart count differs between nodes, so it cannot tell the starts apart.  Here rank
    0 serves a new store and publishes its port in the old one; the other ranks retry until that port answers.
    """
    host, key = os.environ["MASTER_ADDR"], "chess_cxr/store_port"
    shared = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        shared.set(key, str(served.port))
        return served
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, dist.DistError):
            port = int(shared.get(key))
            socket.create_connection((host, port), timeout=10).close()  # TCPStore's own error messages are pages long
            return TCPStore(host, port, is_master=False)
        time.sleep(0.1)
    raise ChessError(f"rank 0 does not answer at {host}; its own message, or a firewall between the nodes, says why")


@contextmanager
def explain_lost_rank() -> Iterator[None]:
    """Turn the failure of a collective after another rank has gone into an error of one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ChessError(
            "another rank has ended or cannot be reached: its own message says why; the same command continues the run"
        ) from None


def leave_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_ranks() -> None:
    """Wait until every rank has called this."""
    if dist.is_initialized():
        dist.barrier()


def let_first_rank(work: Callable[[], Result]) -> Result:
    """Call `work` on the first rank only, and return its result on every rank; the others wait without a time limit."""
    if not dist.is_initialized():
        return work()
    with explain_lost_rank():
        group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
        assert isinstance(group, dist.ProcessGroup)  # of all ranks
        dist.barrier(group)  # all have joined: none still asks the first rank's store when its work fails
    done = [work() if dist.get_rank() == 0 else None]
    with explain_lost_rank():
        dist.broadcast_object_list(done, 0, group)
    return cast(Result, done[0])


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks, without gradient."""
    if not dist.is_initialized():
        return tensor
    shared = tensor.detach().clone()
    dist.all_reduce(shared)
    return shared / dist.get_world_size()


def agree_on_largest(value: int) -> int:
    """Return the maximum of an integer over the ranks."""
    if not dist.is_initialized():
        return value
    shared = np.array([value])  # on the host: no GPU is asked
    dist.all_reduce(torch.from_numpy(shared), dist.ReduceOp.MAX)
    return int(shared[0])


def copy_from_first_rank(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


@contextmanager
def average_gradients(parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> Iterator[None]:
    """Average the gradients of the backward pass within over the ranks, in buckets that are sent while it still runs.

    A bucket is sent once all its gradients are there and the buckets before it are sent, so all ranks send them in the
    same order.  Parameters without gradient are left out; they must be the same on all ranks.
    """
    if not dist.is_initialized():
        yield
        return
    # a backward pass begins with the last layers
    buckets = _fill_buckets([each for each in parameters if each.requires_grad][::-1], bucket_bytes)
    bucket_of: dict[Tensor, _Bucket] = {parameter: bucket for bucket in buckets for parameter in bucket.parameters}
    waiting = deque(buckets)

    def note(parameter: Tensor) -> None:
        bucket_of[parameter].missing -= 1
        while waiting and not waiting[0].missing:
            waiting.popleft().send()

    hooks: list[Any] = [cast(Any, parameter).register_post_accumulate_grad_hook(note) for parameter in bucket_of]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for bucket in waiting:
        bucket.send()
    for bucket in buckets:
        bucket.receive()


class _Bucket:
    """Parameters whose gradients are averaged in one collective."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.bytes = self.missing = 0
        self._gradients: list[Tensor] = []

    def add(self, parameter: nn.Parameter) -> None:
        self.parameters.append(parameter)
        self.bytes += parameter.numel() * parameter.element_size()
        self.missing += 1

    def send(self) -> None:
        """Begin to sum the gradients over the ranks."""
        self._gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self._gradients:
            self._flat = torch.cat([gradient.flatten() for gradient in self._gradients])
            self._work = dist.all_reduce(self._flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sums and make the means the parameters' gradients."""
        if not self._gradients:
            return
        assert self._work
        self._work.wait()
        self._flat /= dist.get_world_size()
        means = torch.split(self._flat, [gradient.numel() for gradient in self._gradients])
        for gradient, mean in zip(self._gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def _fill_buckets(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[_Bucket]:
    buckets: list[_Bucket] = []
    for parameter in parameters:
        if not buckets or buckets[-1].bytes >= bucket_bytes:
            buckets.append(_Bucket())
        buckets[-1].add(parameter)
    return buckets
