"""What computes a model: torch, or ONNX Runtime with the model's `model.onnx`, checked on golden films at every load.

Golden films are two small SYNTHETIC films; torch's scores of them are written with the model.
Shapes: G golden films.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import safetensors
import safetensors.numpy

from chess_cxr.arguments import check_device_name
from chess_cxr.encoders.contract import draw_golden_film
from chess_cxr.encoders.onnx_session import ONNX_FILE, OnnxSession, check_outputs, refuse_large_onnx
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, check_described
from chess_cxr.tasks.table import Runtime

if TYPE_CHECKING:
    import torch
    from torch import nn

GOLDEN_FILE = "golden.safetensors"
SIDE = 96
MOST_GOLDEN_BYTES = 1 << 24
# On other devices than the CPU, products may be rounded to TF32.
CPU_TOLERANCE, DEVICE_TOLERANCE = 1e-4, 2e-2

Prepare = Callable[[np.ndarray], np.ndarray]  # from a film, float32 [H, W] in [0, 1], to a network's input [C, H, W]


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
    import torch

    from chess_cxr.encoders.onnx_network import try_export

    film_GHW = draw_golden_films()
    input_GCHW = torch.from_numpy(_prepare_all(film_GHW, prepare))
    with torch.no_grad():
        golden = {"films": film_GHW, "score": network(input_GCHW).float().contiguous().numpy()}
    files: dict[str, bytes] = {GOLDEN_FILE: safetensors.numpy.save(golden)}
    exported, missing = try_export(network, input_GCHW, any_size=any_size)
    return files | ({ONNX_FILE: exported} if exported else {}), missing


def may_have_gpu() -> bool:
    """Whether torch may find a GPU; where there is none for sure, one need not wait for torch to say so."""
    devices = ("nvidia0", "nvidiactl", "kfd", "dxg")
    return sys.platform != "linux" or any((Path("/dev") / name).exists() for name in devices)


def choose_runtime(device: str, runtime: Runtime, available: bool) -> bool:
    """Whether ONNX Runtime computes a model: if told, and with auto where it is available and the device is the CPU.

    Raises UsageError for ONNX Runtime on another device than the CPU, or a device that is none.
    """
    check_device_name(device)
    if runtime == "torch" or (runtime == "auto" and (not available or find_spec("onnxruntime") is None)):
        return False
    on_cpu = device == "cpu" or (device == "auto" and (runtime == "onnx" or not may_have_gpu() or _finds_cpu()))
    if runtime == "onnx" and not on_cpu:
        raise UsageError(f"ONNX Runtime computes on the CPU here, not on {device}; leave the device or the runtime out")
    return on_cpu


def _finds_cpu() -> bool:
    from chess_cxr.device import choose_device

    return choose_device("auto").type == "cpu"


def load_onnx(folder: Path, described: object, prepare: Prepare) -> OnnxSession:
    """Return the ONNX network of a folder, after a check on golden films.

    described: the files that config.json lists.
    Raises ChessError, in one line, for files that are not what they claim to be.
    """
    file = folder / ONNX_FILE
    refuse_large_onnx(file, folder / WEIGHTS_FILE)
    if not check_described(folder, ONNX_FILE, described):
        raise ChessError(f"{folder} has no {ONNX_FILE}: it was trained without the extra onnx, or by version 0.1")
    session = OnnxSession(file.read_bytes(), str(file))
    if check_described(folder, GOLDEN_FILE, described, MOST_GOLDEN_BYTES):
        film_GHW, expected = _read_golden(folder / GOLDEN_FILE)
        check_outputs(session.run(_prepare_all(film_GHW, prepare)), expected, str(file), CPU_TOLERANCE)
    return session


def check_network(folder: Path, described: object, network: nn.Module, prepare: Prepare, device: torch.device) -> None:
    """Raise ChessError, in one line, if a torch network gives other scores of the golden films than its folder says.

    A model of version 0.1 has no golden films, and is not checked.
    """
    import torch

    if not check_described(folder, GOLDEN_FILE, described, MOST_GOLDEN_BYTES):
        return
    film_GHW, expected = _read_golden(folder / GOLDEN_FILE)
    input_GCHW = torch.from_numpy(_prepare_all(film_GHW, prepare)).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        found = network(input_GCHW).float().cpu().numpy()
    tolerance = CPU_TOLERANCE if device.type == "cpu" else DEVICE_TOLERANCE
    check_outputs(found, expected, str(folder / WEIGHTS_FILE), tolerance)


def has_onnx(described: object) -> bool:
    """Whether a model folder has an ONNX file."""
    return isinstance(described, Mapping) and ONNX_FILE in described


def _prepare_all(film_GHW: np.ndarray, prepare: Prepare) -> np.ndarray:
    return np.stack([prepare(film_HW.astype(np.float32) / 255) for film_HW in film_GHW])


def _read_golden(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = safetensors.numpy.load(file.read_bytes())
        film_GHW, score = arrays["films"], arrays["score"]
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError):
        raise ChessError(f"{file} is damaged") from None
    if film_GHW.shape != draw_golden_films().shape or film_GHW.dtype != np.uint8:
        raise ChessError(f"{file} holds no golden films")
    return film_GHW, score
