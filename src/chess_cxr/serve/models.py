"""Models that are served at the same time, by the names of their folders."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chess_cxr.encoders.names import locate_model
from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.tasks.answer import FilmAnswer

if TYPE_CHECKING:
    from chess_cxr.encoders.encoder import Encoder
    from chess_cxr.encoders.onnx_encoder import OnnxEncoder
    from chess_cxr.serve.known import KnownFilms
    from chess_cxr.serve.rest_options import RestOptions
    from chess_cxr.tasks.bones.model import BoneSuppressor
    from chess_cxr.tasks.classify.answer import ReadFilm
    from chess_cxr.tasks.classify.model import Classifier


@dataclass(frozen=True)
class ServedEncoder:
    """An encoder with the hashes of its weights and of its pixel contract, and what computes it."""

    encoder: Encoder | OnnxEncoder
    sha256: str
    contract_sha256: str
    runtime: Literal["torch", "onnx"] = "torch"


@dataclass(frozen=True)
class Models:
    """Classifiers, bone models and encoders by name.

    known: films of a store, embedded by the first encoder.
    lock: Grad-CAM hangs hooks on a network, so nothing else may run through the network meanwhile.
    """

    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    bones: Mapping[str, BoneSuppressor] = field(default_factory=dict)
    encoders: Mapping[str, ServedEncoder] = field(default_factory=dict)
    known: KnownFilms | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, name: str, film: ReadFilm, point: str) -> FilmAnswer:
        """Return a classifier's answer to a film, the one of `chess-cxr predict`."""
        from chess_cxr.tasks.classify.answer import answer_film

        model = self.classifiers[name]
        with nullcontext() if model.onnx else self.lock:
            return answer_film(model, film, point)

    def explain(self, name: str, film_HW: np.ndarray) -> np.ndarray:
        """Return what in a film spoke for each label, float32 [L, H, W] in [0, 1]."""
        from chess_cxr.tasks.classify.saliency import compute_label_maps

        model = self.classifiers[name]
        with self.lock:
            return compute_label_maps(model.network, model.contract, film_HW)

    def describe(self) -> list[dict[str, Any]]:
        """Return each model as JSON values."""
        from chess_cxr.encoders.contract import compute_contract_sha256

        told: list[dict[str, Any]] = []
        for name, model in self.classifiers.items():
            hashes = {"sha256": model.sha256, "contract_sha256": compute_contract_sha256(model.contract)}
            points = {point: dict(zip(model.labels, row, strict=True)) for point, row in
                      model.operating.thresholds.items()}  # fmt: skip
            told.append({"name": name, "task": "classify", **hashes, "labels": list(model.labels),
                         "calibrated": all(model.operating.calibrated), "thresholds": points,
                         "runtime": "onnx" if model.onnx else "torch"})  # fmt: skip
        for name, bone_model in self.bones.items():
            told.append({"name": name, "task": "bones", "sha256": bone_model.sha256, "contract_sha256": "",
                         "runtime": "onnx" if bone_model.onnx else "torch"})  # fmt: skip
        for name, served in self.encoders.items():
            told.append({"name": name, "task": "embed", "sha256": served.sha256,
                         "contract_sha256": served.contract_sha256, "features": served.encoder.feature_count,
                         "runtime": served.runtime})  # fmt: skip
        if self.known is not None:
            told.append({"name": self.known.store.path.name, "task": "neighbours", "films": len(self.known.store)})
        return told


def load_models(names: Sequence[str], options: RestOptions) -> Models:
    """Load models and encoders by folder, by the name of a published one, or by any name that `load_encoder` takes.

    Raises `UsageError` for two of the same name, and whatever loading them raises.
    """
    if not names:
        raise UsageError("no model is given; name one, such as models/findings")
    classifiers: dict[str, Classifier] = {}
    bones: dict[str, BoneSuppressor] = {}
    encoders: dict[str, ServedEncoder] = {}
    for named in names:
        published = locate_model(Path(named))
        location = named if published == Path(named) else str(published)
        name, task = _find_name(location), _find_task(location)
        if name in (*classifiers, *bones, *encoders):
            raise UsageError(f"two models are named {name}")
        if task == "classify":
            from chess_cxr.tasks.classify.model import load_classifier

            classifiers[name] = load_classifier(location, options.device, options.runtime)
        elif task == "bones":
            from chess_cxr.tasks.bones.model import load_bone_suppressor

            bones[name] = load_bone_suppressor(location, options.device, options.runtime)
        elif task:
            raise UsageError(
                f"{location} cannot be served: classifiers, bone models and encoders can; see chess-cxr generate"
            )
        else:
            encoders[name] = _load_encoder(location, options)
    known = None
    if options.store is not None:
        if not encoders:
            raise UsageError("--store needs an encoder among the models, which says what films are alike")
        from chess_cxr.serve.known import embed_known

        known = embed_known(options.store, next(iter(encoders.values())).encoder)
    return Models(classifiers, bones, encoders, known)


def _find_name(location: str) -> str:
    return Path(location).resolve().name if Path(location).exists() else location


def _find_task(location: str) -> str:
    """Return the task of a model folder, "" for an encoder."""
    file = Path(location) / "config.json"
    return str(read_json(file).get("task") or "") if file.is_file() else ""


def _load_encoder(location: str, options: RestOptions) -> ServedEncoder:
    from chess_cxr.encoders.contract import compute_contract_sha256
    from chess_cxr.encoders.names import locate_encoder
    from chess_cxr.encoders.onnx_encoder import load_onnx_encoder
    from chess_cxr.encoders.onnx_session import ONNX_FILE
    from chess_cxr.tasks.runtime import choose_runtime

    folder = Path(locate_encoder(location))
    if choose_runtime(options.device, options.runtime, (folder / ONNX_FILE).is_file()):
        by_onnx = load_onnx_encoder(folder)
        contract_sha256 = compute_contract_sha256(by_onnx.contract)
        return ServedEncoder(by_onnx, by_onnx.compute_state_sha256(), contract_sha256, "onnx")
    from chess_cxr.encoders.encoder import compute_state_sha256
    from chess_cxr.encoders.load import load_encoder

    encoder = load_encoder(location, device=options.device)
    return ServedEncoder(encoder, compute_state_sha256(encoder.module), compute_contract_sha256(encoder.contract))
