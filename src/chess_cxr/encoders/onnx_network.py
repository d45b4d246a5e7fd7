"""Write torch networks as ONNX files, and check them with ONNX Runtime (extra `onnx`)."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from chess_cxr.encoders.contract import draw_golden_film
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.onnx_session import ONNX_FILE, OnnxSession, check_outputs
from chess_cxr.records import ChessError, UsageError, import_extra

OPSET = 18
MOST_BYTES = (1 << 31) - (1 << 20)  # a larger protocol buffer cannot be read


def tell_missing() -> str:
    """Return why no ONNX file can be written on this machine, "" if one can."""
    try:
        import_extra("onnx", "onnx", "it")
        import_extra("onnxruntime", "onnx", "it")
    except UsageError as error:
        return f"no {ONNX_FILE}: {error}"
    return ""


def export_onnx(
    network: nn.Module,
    input_BCHW: Tensor,
    output: str = "score",
    *,
    any_size: bool = False,
    about: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a network as ONNX: "pixels" [B, C, H, W] -> `output`, for any B, and any H and W with `any_size`.

    about: JSON values for the file's metadata ("chess_cxr").  Leaves the network as it is.
    Raises ChessError if torch cannot express it or ONNX Runtime computes something else.
    """
    onnx = import_extra("onnx", "onnx", "an ONNX file")
    copied = copy.deepcopy(network).to(device="cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    axes = {0: "films", 2: "height", 3: "width"} if any_size else {0: "films"}
    written = io.BytesIO()
    # The exporter by tracing needs onnx alone; the one by torch.export also needs onnxscript, and is 5 times slower.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                copied, (input_BCHW,), cast(Any, written), dynamo=False, opset_version=OPSET,
                input_names=["pixels"], output_names=[output], dynamic_axes={"pixels": axes, output: axes},
            )  # fmt: skip
        except Exception as error:  # every layer of the exporter has its own exceptions
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ChessError(f"torch cannot write this network as ONNX: {first[:200]}") from None
        if written.tell() > MOST_BYTES:
            raise ChessError(f"as ONNX this network takes more than {MOST_BYTES} bytes")
        content = _add_properties(onnx, written.getvalue(), about) if about else written.getvalue()
        made = OnnxSession(content)
        for films in (input_BCHW[:1], torch.cat([input_BCHW, input_BCHW[:1]])):  # other numbers of films than traced
            check_outputs(made.run(films.numpy()), copied(films).numpy(), ONNX_FILE)
    return content


def _add_properties(onnx: Any, content: bytes, about: Mapping[str, Any]) -> bytes:
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {"chess_cxr": json.dumps(about)})
    made: bytes = model.SerializeToString()
    return made


def pack_onnx(encoder: Encoder) -> bytes:
    """Return an encoder as ONNX, "pixels" -> "features", with its pixel contract, network and licence as metadata."""
    contract = encoder.contract
    film_CSS = contract.prepare(draw_golden_film(contract.size))
    about = {"contract": asdict(contract), "architecture": encoder.architecture, "licence": encoder.licence}
    return export_onnx(encoder.module, torch.stack([film_CSS, -film_CSS]), "features", about=about)


def try_export(network: nn.Module, input_BCHW: Tensor, *, any_size: bool = False) -> tuple[bytes, str]:
    """Return a network as ONNX and "", or b"" and the reason in one line: a result is written in either case."""
    if missing := tell_missing():
        return b"", missing
    try:
        return export_onnx(network, input_BCHW, any_size=any_size), ""
    except ChessError as error:
        return b"", f"no {ONNX_FILE}: {error}"
