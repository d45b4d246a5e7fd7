"""The Inception network of published FIDs, if its weights are already on the machine."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from chess_cxr.encoders.published import read_tensors_only
from chess_cxr.files.whole import compute_sha256
from chess_cxr.records import ChessError, import_extra

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_START = "6726825d"  # the publisher states only this, in the file's name


def find_inception_file() -> Path:
    """Return the path of the weights in torch's cache, without loading them; raises ChessError if they are absent."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        problem = f"inception: no weights at {file} (a release file of toshas/torch-fidelity); none is downloaded"
        raise ChessError(problem)
    return file


def load_inception() -> nn.Module:
    """Load torch-fidelity's port of TensorFlow's FID network: uint8 [B, 3, H, W] -> a tuple of one [B, 2048].

    It resizes to 299 pixels itself, bilinearly and without antialiasing, as for published FIDs.
    """
    file = find_inception_file()
    if not compute_sha256(file).startswith(INCEPTION_SHA256_START):
        raise ChessError(f"{file} is not the published file (sha256 differs): remove it")
    port = import_extra("torch_fidelity.feature_extractor_inceptionv3", "inception", "the judge inception")
    # The library unpickles whatever the file contains: give it a copy that contains only tensors.
    plain = io.BytesIO()
    torch.save(read_tensors_only(file), plain)
    plain.seek(0)
    network: nn.Module = port.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain)
    return network
