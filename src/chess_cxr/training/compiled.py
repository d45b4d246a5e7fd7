"""Networks compiled by `torch.compile`, under the same names and with the same weights."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

import torch
from torch import nn

from chess_cxr.records import UsageError
from chess_cxr.training.distributed import count_ranks


def compile_networks(method: nn.Module, device: torch.device) -> None:
    """Compile the networks of a method in place; each is compiled when it is called for the first time.

    Networks whose layers talk to other ranks (`over_ranks`) are left as they are.
    Raises `UsageError` if this machine has no compiler for the device.
    """
    check_compiler(device)
    for child in method.children():
        if type(child).forward is nn.Module.forward:  # a list of networks, or a method within a method
            compile_networks(child, device)
        elif count_ranks() == 1 or not any(getattr(layer, "over_ranks", False) for layer in child.modules()):
            child.compile()


def check_compiler(device: torch.device) -> None:
    """Raise `UsageError` if this machine has no compiler for the device."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        raise UsageError(f"training.compile needs the C++ compiler {compiler}; install it or set it to false")
    if device.type == "cuda" and not find_spec("triton"):
        raise UsageError("training.compile needs triton on a GPU; install it or set it to false")
