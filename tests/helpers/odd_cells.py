"""Cells that are quick, or go wrong; in a file of their own, since every worker that gets one imports it."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chess_cxr.benchmarking.cache import CellFolder, compute_key
from chess_cxr.records import ChessError


@dataclass(frozen=True)
class OddCell:
    """A cell that squares a number, or fails in the way it is told to."""

    number: int
    way: str = ""
    size: int = 1

    @property
    def key(self) -> str:
        return compute_key({"number": self.number})

    def compute(self, cells: CellFolder) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        if self.way == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "refuse":
            raise ChessError("it cannot be\ndone")
        if self.way == "fail":
            raise ValueError("what nobody foresaw")
        return {"square": np.array([self.number**2])}, {}
