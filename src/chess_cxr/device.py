"""Choose the device that a network runs on."""

from __future__ import annotations

import re

import torch

from chess_cxr.records import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for a name: auto, cpu, cuda, cuda:N or mps.

    auto: this process's current GPU, else Apple's, else the CPU.  Raises `UsageError` if the device cannot be used.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"there is no device {name[:40]!r}; name auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used here; --device auto chooses one that can") from error
    return device
