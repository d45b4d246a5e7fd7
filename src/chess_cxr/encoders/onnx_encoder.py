"""Encoder folders computed by ONNX Runtime, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from chess_cxr.encoders.contract import PixelContract, compute_contract_sha256, draw_golden_film
from chess_cxr.encoders.facts import GOLDEN_FILE, WEIGHTS_FILE, check_sha256, parse_facts, parse_sha256, read_config
from chess_cxr.encoders.film_features import FilmEncoder, shorten_key
from chess_cxr.encoders.onnx_session import ONNX_FILE, TOLERANCE, OnnxSession, refuse_large_onnx
from chess_cxr.records import ChessError


@dataclass(frozen=True)
class OnnxEncoder:
    """An encoder's `model.onnx` and its pixel contract.  folder: where its weights stand."""

    session: OnnxSession
    contract: PixelContract
    name: str
    feature_count: int
    folder: Path

    def embed(self, pixels: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Embed films as `Encoder.embed` does: float32 [N, feature_count]."""
        feature_ND = np.empty((len(pixels), self.feature_count), np.float32)
        for start in range(0, len(pixels), batch):
            input_BCSS = np.stack([self.contract.prepare_array(film) for film in pixels[start : start + batch]])
            feature_BD = self.session.run(input_BCSS)
            if feature_BD.shape != (len(input_BCSS), self.feature_count):
                raise ChessError(f"{self.name} does not give {self.feature_count} features a film as it says")
            feature_ND[start : start + batch] = feature_BD
        return feature_ND

    def open_for_films(self) -> FilmEncoder:
        """Open it for the films of stores, under the key of its torch network."""
        key = shorten_key(self.compute_state_sha256() + compute_contract_sha256(self.contract))

        def prepare(films: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [film.astype(np.float32) / 255 for film in films]

        return FilmEncoder(self.name, key, prepare, self.embed)

    def compute_state_sha256(self) -> str:
        """Return the SHA-256 of the weights that `encoder.compute_state_sha256` gives for the torch network."""
        state = safetensors.numpy.load_file(self.folder / WEIGHTS_FILE)
        return hashlib.sha256(safetensors.numpy.save(state)).hexdigest()


def load_onnx_encoder(folder: Path, threads: int = 0) -> OnnxEncoder:
    """Load an encoder folder's `model.onnx`, with the checks of `load_encoder`: hashes and the golden film.

    The file may come later than the folder, by `weights onnx`; then the golden film alone tells that it fits.
    threads: of one call; 0 for one per core.  Raises ChessError if the folder has none, or if it is damaged.
    """
    config, file = read_config(folder), folder / ONNX_FILE
    contract, _, _ = parse_facts(config, folder)
    sums = parse_sha256(config, folder)
    if ONNX_FILE not in sums and not file.is_file():
        raise ChessError(f"{folder} has no {ONNX_FILE}: export it again with the extra onnx installed")
    refuse_large_onnx(file, folder / WEIGHTS_FILE)
    for name in {ONNX_FILE, GOLDEN_FILE, WEIGHTS_FILE} & set(sums):
        check_sha256(folder, name, sums)
    session = OnnxSession(file.read_bytes(), str(file), threads)
    encoder = OnnxEncoder(session, contract, folder.name, config["chess_cxr"]["feature_count"], folder)
    _check_golden(encoder)
    return encoder


def _check_golden(encoder: OnnxEncoder) -> None:
    file = encoder.folder / GOLDEN_FILE
    try:
        golden_D = safetensors.numpy.load_file(file)["embedding"]
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        raise ChessError(f"{file} is not a readable safetensors file") from None
    [found_D] = encoder.embed([draw_golden_film(encoder.contract.size)])
    same = golden_D.shape == found_D.shape
    length = max(float(np.linalg.norm(golden_D)), 1e-12)
    miss = float(np.linalg.norm(found_D - golden_D)) / length if same else np.inf
    if not miss <= TOLERANCE:
        raise ChessError(
            f"{encoder.folder}: by {ONNX_FILE} the embedding of the test film is off by {miss:.2g} of its length (at "
            f"most {TOLERANCE:g}): it was made of other weights, or this installation computes something else"
        )
