"""Write an encoder's network as an ONNX file, checked with ONNX Runtime."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from chess_cxr.encoders.contract import draw_golden_film
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.folder import CPU_TOLERANCE
from chess_cxr.encoders.load import load_encoder
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import ChessError, UsageError, import_extra

OPSET = 18


def write_onnx(encoder: Encoder | Path | str, out: Path | str) -> Path:
    """Write an encoder as an ONNX file, whole or not at all; return its path.

    encoder: any name that `load_encoder` takes, or an encoder on the CPU.
    The input "pixels", float32 [films, channels, size, size], is what the pixel contract makes of films; the output
    "features" is float32 [films, features].  The file's metadata hold the contract as JSON ("chess_cxr").
    Raises ChessError if ONNX Runtime embeds the fixed test film otherwise than the encoder does.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    onnx = import_extra("onnx", "onnx", "an ONNX file")
    runtime = import_extra("onnxruntime", "onnx", "an ONNX file")
    import_extra("onnxscript", "onnx", "an ONNX file")  # torch's exporter needs it
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    contract, module = loaded.contract, loaded.module.to(memory_format=torch.contiguous_format).eval()
    pixels_BCSS = torch.zeros(2, contract.channels, contract.size, contract.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.onnx.export(
            module, (pixels_BCSS,), input_names=["pixels"], output_names=["features"], opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("films")},), dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    about = {"contract": asdict(contract), "architecture": loaded.architecture, "licence": loaded.licence}
    onnx.helper.set_model_props(model, {"chess_cxr": json.dumps(about)})
    content: bytes = model.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    film_HW = draw_golden_film(contract.size)
    [golden_D] = loaded.embed([film_HW])
    [[found_D]] = session.run(None, {"pixels": contract.prepare(film_HW)[None].numpy()})
    miss = float(np.linalg.norm(found_D - golden_D) / max(float(np.linalg.norm(golden_D)), 1e-12))
    if not miss <= CPU_TOLERANCE:
        raise ChessError(f"ONNX Runtime embeds the test film of {loaded.name} otherwise, by {miss:.2g} of its length")
    write_atomically(out, content)
    return out
