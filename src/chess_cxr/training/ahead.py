"""Prepare batches ahead of the training step, in threads, and send them ahead to a GPU.

Threads scale, as decoding and warping release Python's lock; worker processes could not be forked, as Lance forbids it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import cv2
import torch
from torch import Tensor

Prepared = TypeVar("Prepared")


def prepare_ahead(
    prepare: Callable[[int], Prepared], steps: range, threads: int, device: torch.device
) -> Generator[Prepared, None, None]:
    """Yield `prepare(step)` for each step in order, on a device, while threads prepare the next ones.

    A batch is a tensor, or a dataclass or mapping of them.  A GPU copies the next batch, if it is ready, while it makes
    the step.
    """
    cv2.setNumThreads(1)  # OpenCV must not start threads of its own besides these
    sender = _GpuSender(device) if device.type == "cuda" else None
    work = partial(sender.prepare, prepare) if sender else prepare
    waiting, sent = deque[Future[Prepared]](), deque[Prepared]()

    def take() -> Prepared:
        if sender is None:
            return change_tensors(waiting.popleft().result(), lambda tensor: tensor.to(device))
        batch = sent.popleft() if sent else sender.send(waiting.popleft().result())
        sender.hand_over(batch)
        if waiting and waiting[0].done() and not waiting[0].exception():
            sent.append(sender.send(waiting.popleft().result()))
        return batch

    with ThreadPoolExecutor(threads, thread_name_prefix="views") as executor:
        try:
            for step in steps:
                waiting.append(executor.submit(work, step))
                if len(waiting) + len(sent) > 2 * threads:
                    yield take()
            while waiting or sent:
                yield take()
        finally:
            for future in waiting:
                future.cancel()


def change_tensors(batch: Prepared, change: Callable[[Tensor], Tensor]) -> Prepared:
    """Return a batch with every tensor changed."""
    changed: Any = batch
    if isinstance(batch, Tensor):
        changed = change(batch)
    elif isinstance(batch, Mapping):
        changed = {name: change_tensors(part, change) for name, part in batch.items()}
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = {field.name: change_tensors(getattr(batch, field.name), change) for field in fields(batch)}
        changed = replace(batch, **parts)
    return changed  # type: ignore[no-any-return]


class _GpuSender:
    """Copies batches to a GPU from pinned memory, beside its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = cast(Any, torch.cuda).Stream(device)

    def prepare(self, prepare: Callable[[int], Prepared], step: int) -> Prepared:
        """Prepare a batch in pinned memory, from which the GPU copies without the host."""
        return change_tensors(prepare(step), lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def send(self, batch: Prepared) -> Prepared:
        """Begin to copy a batch."""
        with torch.cuda.stream(self._stream):
            return change_tensors(batch, lambda tensor: tensor.to(self._device, non_blocking=True))

    def hand_over(self, batch: Any) -> None:
        """Let the computations that follow wait for all batches sent so far, and keep the memory of this one."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)
            return tensor

        change_tensors(batch, keep)
