"""Write an encoder's network as an ONNX file, checked with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.encoders.onnx_network import pack_onnx
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import UsageError


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
    write_atomically(out, pack_onnx(encoder if isinstance(encoder, Encoder) else load_encoder(encoder)))
    return out
