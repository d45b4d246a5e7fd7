"""Numbers that are read late: a GPU works while the host goes ahead, and reading a number waits for all its work.

So the loop reads them rarely.  Until then it cannot know whether a step was finite: `update_if` makes an update and
takes it back on the device.  On other devices reading costs nothing, and nothing is late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

LATE = {"cuda"}  # kinds of devices whose numbers are read late


def is_late(device: torch.device) -> bool:
    """Return whether to read this device's numbers late."""
    return device.type in LATE


def read_numbers(numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Read named scalars in one transfer."""
    late = {name: number for name, number in numbers.items() if isinstance(number, Tensor)}
    if not late:
        return {name: float(number) for name, number in numbers.items()}
    device = next((number.device for number in late.values() if number.device.type != "cpu"), torch.device("cpu"))
    kind = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    read = torch.stack([number.detach().to(device, kind, non_blocking=True) for number in late.values()]).tolist()
    found = dict(zip(late, read, strict=True))
    return {name: float(found.get(name, number)) for name, number in numbers.items()}


def update_if(fine: Tensor, update: Callable[[], object], list_tensors: Callable[[], list[Tensor]]) -> None:
    """Call `update`, and unless `fine` is true, restore the tensors that it changed; the host does not wait for `fine`.

    list_tensors: lists what `update` changes in place; tensors that it adds, as an optimiser's first step does, are set
    to 0 instead.
    """
    before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in list_tensors()}
    update()
    with torch.no_grad():
        for tensor, old in before.values():
            torch.where(fine, tensor, old, out=tensor)
        for tensor in list_tensors():
            if id(tensor) not in before:
                tensor.masked_fill_(~fine, 0)


def read_count(module: nn.Module, name: str) -> int:
    """Return the value of an integer buffer; on a GPU that of the host's copy, read once.

    Steps that turn out to be skipped are not counted in the buffer but in the copy, until the loop notices them and
    forgets the copies.
    """
    buffer = getattr(module, name)
    if not is_late(buffer.device):
        return int(buffer)
    copies = module.__dict__.setdefault("_counts_on_host", {})
    if name not in copies:
        copies[name] = int(buffer)
    known: int = copies[name]
    return known


def advance_count(module: nn.Module, name: str, by: int = 1) -> None:
    """Add to an integer buffer and to the host's copy of it."""
    getattr(module, name).add_(by)
    copies = module.__dict__.get("_counts_on_host", {})
    if name in copies:
        copies[name] += by


def forget_counts(network: nn.Module) -> None:
    """Let `read_count` read the buffers again."""
    for module in network.modules():
        module.__dict__.pop("_counts_on_host", None)
