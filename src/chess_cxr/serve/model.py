"""Models as the PACS node uses them: a DICOM file in, an answer or a change of the film out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from chess_cxr.decode.film import decode_film
from chess_cxr.serve.models import Models
from chess_cxr.serve.work import BonesModel, FindingsModel
from chess_cxr.tasks.answer import FilmAnswer
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

if TYPE_CHECKING:
    from chess_cxr.tasks.bones.model import BoneSuppressor
    from chess_cxr.tasks.classify.answer import ReadFilm


def load_findings_model(folder: Path, device: str = "auto", limits: Limits | None = None) -> FindingsModel:
    """Load a classifier for the node; its answers are those of `predict`."""
    from chess_cxr.tasks.classify.model import load_classifier

    model = load_classifier(folder, device, "auto")
    return build_findings_model(Models({model.name: model}), model.name, limits or Limits())


def build_findings_model(models: Models, name: str, limits: Limits, point: str = "youden") -> FindingsModel:
    """Let the node use a classifier that is loaded."""
    from chess_cxr.tasks.classify.answer import read_in_child

    def answer(path: Path) -> FilmAnswer:
        return models.answer(name, read_in_child(path, limits), point)

    def draw(path: Path) -> np.ndarray | None:
        return draw_heat_map(models, name, read_in_child(path, limits), point)

    return FindingsModel(models.classifiers[name].sha256, answer, draw)


def draw_heat_map(models: Models, name: str, film: ReadFilm, point: str) -> np.ndarray | None:
    """Draw what in a film spoke for its likeliest finding, named in a corner: uint8 RGB [H, W, 3]; None for nothing.

    The likeliest finding is the one whose probability is the largest multiple of its threshold, if it has one.
    """
    from chess_cxr.tasks.classify.saliency_sheet import draw_overlay

    if film.film_HW is None:
        return None
    ratios = [it.probability / (it.threshold or 1) for it in models.answer(name, film, point).findings]
    best = ratios.index(max(ratios))
    map_HW = models.explain(name, film.film_HW)[best]
    if not map_HW.any():
        return None
    drawn_HW3 = draw_overlay(np.rint(255 * film.film_HW).astype(np.uint8), map_HW)
    label = models.classifiers[name].labels[best]
    cv2.putText(
        drawn_HW3, label, (6, len(drawn_HW3) - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA
    )
    return drawn_HW3


def load_bones_model(folder: Path, device: str = "auto", limits: Limits | None = None) -> BonesModel:
    """Load a bone model for the node; its films are those of `predict`."""
    from chess_cxr.tasks.bones.model import load_bone_suppressor

    return build_bones_model(folder.name, load_bone_suppressor(folder, device, "auto"), limits or Limits())


def build_bones_model(name: str, model: BoneSuppressor, limits: Limits) -> BonesModel:
    """Let the node use a bone model that is loaded."""
    from chess_cxr.tasks.bones.model import find_change

    readers = build_ingest_pool(1)

    def find(path: Path) -> np.ndarray:
        film = readers.submit(call_in_child, decode_film, limits, path).result()
        return find_change(model, film.pixels)

    return BonesModel(name, model.sha256, find)
