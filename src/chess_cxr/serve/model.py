"""Model folders as the PACS node uses them: a DICOM file in, an answer or a change of the film out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from chess_cxr.decode.film import decode_film
from chess_cxr.encoders.published import compute_sha256
from chess_cxr.files.whole import read_json
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.encoding import EncodeOptions, encode_in_child
from chess_cxr.serve.work import BonesModel, FindingsModel
from chess_cxr.tasks.answer import FilmAnswer, FindingAnswer
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child


def load_findings_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> FindingsModel:
    """Load a classifier for the node; its probabilities are those of `predict`."""
    from chess_cxr.tasks.classify.model import load_classifier

    model, own_limits = load_classifier(folder, device), limits or Limits()
    contract = json.dumps(read_json(folder / "config.json").get("contract"), sort_keys=True)
    weights = compute_sha256(folder / "model.safetensors")
    empty = FilmAnswer(folder.name, weights, hashlib.sha256(contract.encode()).hexdigest())

    def answer(path: Path) -> FilmAnswer:
        film = encode_in_child(path, EncodeOptions(), own_limits)
        if film.reason:
            return replace(empty, reason=film.reason)
        film_HW = decode_stored(film.jpeg).astype(np.float32) / 255
        [probability_L] = model.predict([film_HW]).tolist()
        findings = tuple(map(FindingAnswer, model.labels, probability_L))
        return replace(empty, flags=tuple(sorted(film.flags)), findings=findings)

    return FindingsModel(weights, answer)


def load_bones_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> BonesModel:
    """Load a bone model for the node; its films are those of `predict`."""
    from chess_cxr.tasks.bones.model import FAINTEST, load_bone_suppressor

    model, readers = load_bone_suppressor(folder, device), build_ingest_pool(1)

    def find_change(path: Path) -> np.ndarray:
        film = readers.submit(call_in_child, decode_film, limits or Limits(), path).result()
        bone_HW = model.predict_bone(film.pixels)
        return np.where(bone_HW < FAINTEST, 0, -bone_HW).astype(np.float32)

    return BonesModel(folder.name, model.sha256, find_change)
