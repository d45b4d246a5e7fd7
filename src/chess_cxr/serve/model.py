"""Model folders as the PACS node uses them: a DICOM file in, an answer or a change of the film out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chess_cxr.decode.film import decode_film
from chess_cxr.serve.work import BonesModel, FindingsModel
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child


def load_findings_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> FindingsModel:
    """Load a classifier for the node; its answers are those of `predict`."""
    from chess_cxr.tasks.classify.answer import answer_film, read_in_child
    from chess_cxr.tasks.classify.model import load_classifier

    model = load_classifier(folder, device)
    return FindingsModel(model.sha256, lambda path: answer_film(model, read_in_child(path, limits or Limits())))


def load_bones_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> BonesModel:
    """Load a bone model for the node; its films are those of `predict`."""
    from chess_cxr.tasks.bones.model import FAINTEST, load_bone_suppressor

    model, readers = load_bone_suppressor(folder, device), build_ingest_pool(1)

    def find_change(path: Path) -> np.ndarray:
        film = readers.submit(call_in_child, decode_film, limits or Limits(), path).result()
        bone_HW = model.predict_bone(film.pixels)
        return np.where(bone_HW < FAINTEST, 0, -bone_HW).astype(np.float32)

    return BonesModel(folder.name, model.sha256, find_change)
