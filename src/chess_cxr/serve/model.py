"""Models as the PACS node uses them: a DICOM file in, an answer or a change of the film out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chess_cxr.decode.film import decode_film
from chess_cxr.serve.models import Models
from chess_cxr.serve.work import BonesModel, FindingsModel
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

if TYPE_CHECKING:
    from chess_cxr.tasks.bones.model import BoneSuppressor


def load_findings_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> FindingsModel:
    """Load a classifier for the node; its answers are those of `predict`."""
    from chess_cxr.tasks.classify.model import load_classifier

    model = load_classifier(folder, device)
    return build_findings_model(Models({model.name: model}), model.name, limits or Limits())


def build_findings_model(models: Models, name: str, limits: Limits, point: str = "youden") -> FindingsModel:
    """Let the node use a classifier that is loaded."""
    from chess_cxr.tasks.classify.answer import read_in_child

    return FindingsModel(
        models.classifiers[name].sha256, lambda path: models.answer(name, read_in_child(path, limits), point)
    )


def load_bones_model(folder: Path, device: str = "cpu", limits: Limits | None = None) -> BonesModel:
    """Load a bone model for the node; its films are those of `predict`."""
    from chess_cxr.tasks.bones.model import load_bone_suppressor

    return build_bones_model(folder.name, load_bone_suppressor(folder, device), limits or Limits())


def build_bones_model(name: str, model: BoneSuppressor, limits: Limits) -> BonesModel:
    """Let the node use a bone model that is loaded."""
    from chess_cxr.tasks.bones.model import find_change

    readers = build_ingest_pool(1)

    def find(path: Path) -> np.ndarray:
        film = readers.submit(call_in_child, decode_film, limits, path).result()
        return find_change(model, film.pixels)

    return BonesModel(name, model.sha256, find)
