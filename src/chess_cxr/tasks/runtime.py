"""What computes a model: torch, or ONNX Runtime with the model's `model.onnx`, checked on golden films at every load.

Golden films are two small SYNTHETIC films; torch's scores of them are written with the model.
Shapes: G golden films.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from chess_cxr.device import choose_device
from chess_cxr.encoders.contract import draw_golden_film
from chess_cxr.encoders.onnx_network import ONNX_FILE, OnnxNetwork, check_outputs, refuse_large_onnx, try_export
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, check_described
from chess_cxr.tasks.table import Runtime

GOLDEN_FILE = "golden.safetensors"
SIDE = 96
MOST_GOLDEN_BYTES = 1 << 24
# On other devices than the CPU, products may be rounded to TF32.
CPU_TOLERANCE, DEVICE_TOLERANCE = 1e-4, 2e-2

Prepare = Callable[[np.ndarray], Tensor]  # from a film, float32 [H, W] in [0, 1], to a network's input [C, H, W]


def draw_golden_films() -> np.ndarray:
    """Draw the golden films, uint8 [G, H, W]: waves and blobs by a formula, and smooth noise.  SYNTHETIC."""
    waves_HW = draw_golden_film(SIDE)
    noise_HW = np.random.Generator(np.random.Philox(0)).normal(size=waves_HW.shape)
    smooth_HW = cv2.GaussianBlur(noise_HW, (0, 0), 2)
    return np.stack([np.rint(255 * film).astype(np.uint8) for film in (waves_HW, np.clip(0.5 + smooth_HW, 0, 1))])


def build_runtime_files(
    network: nn.Module, prepare: Prepare, *, any_size: bool = False
) -> tuple[dict[str, bytes], str]:
    """Return `golden.safetensors` and, if it can be written, `model.onnx`, else why not in one line.

    network: on the CPU, in evaluation mode.  any_size: whether it takes films of any height and width.
    """
    film_GHW = draw_golden_films()
    input_GCHW = _prepare_all(film_GHW, prepare)
    with torch.no_grad():
        golden = {"films": torch.from_numpy(film_GHW), "score": network(input_GCHW).float().contiguous()}
    files: dict[str, bytes] = {GOLDEN_FILE: safetensors.torch.save(golden)}
    exported, missing = try_export(network, input_GCHW, any_size=any_size)
    return files | ({ONNX_FILE: exported} if exported else {}), missing


def choose_runtime_device(device: str, runtime: Runtime) -> torch.device:
    """Return the device of a model; raises UsageError for ONNX Runtime on another than the CPU."""
    chosen = choose_device("cpu" if runtime == "onnx" and device == "auto" else device)
    if runtime == "onnx" and chosen.type != "cpu":
        raise UsageError(f"ONNX Runtime computes on the CPU here, not on {chosen}; leave the device or the runtime out")
    return chosen


def load_runtime(
    folder: Path, described: object, network: nn.Module, prepare: Prepare, device: torch.device, runtime: Runtime
) -> OnnxNetwork | None:
    """Return the ONNX network of a folder if it is to compute, else None, after a check on golden films.

    described: the files that config.json lists; a model of version 0.1 lists none, and is not checked.
    auto takes ONNX on the CPU, where folder and machine have it.
    Raises ChessError, in one line, for files that are not what they claim to be.
    """
    onnx = _load_onnx(folder, described) if _choose_onnx(described, device, runtime) else None
    if not check_described(folder, GOLDEN_FILE, described, MOST_GOLDEN_BYTES):
        return onnx
    name = str(folder / (ONNX_FILE if onnx else WEIGHTS_FILE))
    film_GHW, expected = _read_golden(folder / GOLDEN_FILE)
    input_GCHW = _prepare_all(film_GHW, prepare).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        found = (onnx or network)(input_GCHW).float().cpu()
    check_outputs(found, expected, name, CPU_TOLERANCE if device.type == "cpu" else DEVICE_TOLERANCE)
    return onnx


def _prepare_all(film_GHW: np.ndarray, prepare: Prepare) -> Tensor:
    return torch.stack([prepare(film_HW.astype(np.float32) / 255) for film_HW in film_GHW])


def _read_golden(file: Path) -> tuple[np.ndarray, Tensor]:
    try:
        tensors = safetensors.torch.load(file.read_bytes())
        film_GHW, score = tensors["films"].numpy(), tensors["score"]
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError):
        raise ChessError(f"{file} is damaged") from None
    if film_GHW.shape != draw_golden_films().shape or film_GHW.dtype != np.uint8:
        raise ChessError(f"{file} holds no golden films")
    return film_GHW, score


def _choose_onnx(described: object, device: torch.device, runtime: Runtime) -> bool:
    if runtime != "auto":
        return runtime == "onnx"
    there = isinstance(described, Mapping) and ONNX_FILE in described
    return there and device.type == "cpu" and find_spec("onnxruntime") is not None


def _load_onnx(folder: Path, described: object) -> OnnxNetwork:
    refuse_large_onnx(folder / ONNX_FILE, folder / WEIGHTS_FILE)
    if not check_described(folder, ONNX_FILE, described):
        raise ChessError(f"{folder} has no {ONNX_FILE}: it was trained without the extra onnx, or by version 0.1")
    return OnnxNetwork((folder / ONNX_FILE).read_bytes(), str(folder / ONNX_FILE))
