"""Run ONNX files with ONNX Runtime (extra `onnx`), without torch: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from chess_cxr.records import ChessError, import_extra

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-4  # largest difference from torch, relative to outputs above 1
SPARE_BYTES = 1 << 24  # of an ONNX file, besides twice its weights


class OnnxSession:
    """An ONNX file in ONNX Runtime, on the CPU: one float32 array in, one out.

    threads: of one call; 0 for one per core.
    Raises ChessError for content that is no such network.
    """

    def __init__(self, content: bytes, name: str = ONNX_FILE, threads: int = 0) -> None:
        runtime = import_extra("onnxruntime", "onnx", f"running {ONNX_FILE}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4  # errors are raised, not printed too
        self._name = name
        with _explain(name):
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        if (len(self._session.get_inputs()), len(self._session.get_outputs())) != (1, 1):
            raise ChessError(f"{name} is no network with one input and one output")
        self._input = self._session.get_inputs()[0].name

    def run(self, input_BCHW: np.ndarray) -> np.ndarray:
        """Run the network; raises ChessError if it cannot take this input."""
        with _explain(self._name):
            [found] = self._session.run(None, {self._input: np.ascontiguousarray(input_BCHW)})
        if not isinstance(found, np.ndarray):
            raise ChessError(f"{self._name} gives no tensor")
        return found


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """Turn whatever ONNX Runtime raises into one line."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{name} cannot be run: {first[:200]}") from None


def refuse_large_onnx(file: Path, weights: Path) -> None:
    """Raise ChessError for an ONNX file much larger than the weights that it should hold: it is not read."""
    if file.exists() and weights.exists() and file.stat().st_size > 2 * weights.stat().st_size + SPARE_BYTES:
        raise ChessError(f"{file} is much larger than the weights beside it: it was not read")


def check_outputs(found: np.ndarray, expected: np.ndarray, name: str, tolerance: float = TOLERANCE) -> None:
    """Raise ChessError if outputs differ by more than the tolerance, relative to outputs above 1."""
    if found.shape != expected.shape:
        raise ChessError(f"{name} gives {list(found.shape)} numbers for the golden films, not {list(expected.shape)}")
    distance = np.abs(found.astype(np.float64) - expected) / np.maximum(np.abs(expected.astype(np.float64)), 1)
    if not distance.max() <= tolerance:  # NaN too
        miss = float(distance.max())
        raise ChessError(f"{name} differs by {miss:.2g} from what was written for the golden films: it is damaged")
