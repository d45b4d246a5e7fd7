"""Load a classifier and compute the probabilities of its labels for films.

ONNX Runtime needs no torch: then the network itself is loaded only when it is asked for, for saliency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from chess_cxr.encoders.contract import PixelContract, parse_contract
from chess_cxr.encoders.onnx_session import OnnxSession
from chess_cxr.files.whole import compute_sha256, read_json
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.classify.config import ClassifyTask
from chess_cxr.tasks.classify.operating import Operating, parse_operating
from chess_cxr.tasks.classify.shape import MOST_QUERIES, HeadName, HeadShape, find_probabilities
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, check_described
from chess_cxr.tasks.runtime import check_network, choose_runtime, has_onnx, load_onnx
from chess_cxr.tasks.table import Runtime

if TYPE_CHECKING:
    import torch

    from chess_cxr.tasks.classify.objective import Classify

LATER = {"queries"}  # earlier heads lack it
MOST_LABELS, MOST_FEATURES = 1000, 100_000  # a foreign model must not build a huge network


@dataclass(frozen=True)
class Classifier:
    """A classifier and its pixel contract.

    shape: of its head.  labels: names of its columns.  operating: its calibration and thresholds.  name: of its folder.
    sha256: of its weights.  load_network: returns the network, in evaluation mode on its device.
    onnx: what computes the scores, if it is not the network itself.
    """

    shape: HeadShape
    contract: PixelContract
    labels: tuple[str, ...]
    operating: Operating
    name: str
    sha256: str
    load_network: Callable[[], Classify]
    onnx: OnnxSession | None = None

    @cached_property
    def network(self) -> Classify:
        """The torch network, loaded at first use."""
        return self.load_network()

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def predict(self, films: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Return probabilities, float32 [N, L], of films of any size, each float [H, W] in [0, 1] with bone bright.

        They are calibrated if the model is.  Probabilities of classes sum to 1; those of findings are independent.
        Raises ChessError for an array that is no film.
        """
        parts = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(films), batch):
            film_BCSS = np.stack([self.contract.prepare_array(film) for film in films[start : start + batch]])
            parts.append(self._predict(film_BCSS))
        return self.operating.calibrate(np.concatenate(parts))

    def _predict(self, film_BCSS: np.ndarray) -> np.ndarray:
        if self.onnx is not None:
            return find_probabilities(self.onnx.run(film_BCSS), self.shape)
        import torch

        on_device = torch.from_numpy(film_BCSS).to(self.device, memory_format=torch.channels_last)
        return self.network.predict(on_device)


def load_classifier(folder: Path | str, device: str = "cpu", runtime: Runtime = "torch") -> Classifier:
    """Load a model folder of `finetune_classifier`, and check its scores of the golden films.

    runtime: what computes scores: torch; onnx, on the CPU, for which the folder needs `model.onnx`; or auto, which
    takes onnx on the CPU where the folder and this machine have it.  A model of version 0.1 has no golden films.
    Raises UsageError if `folder` is not such a model, ChessError if it is broken or not what it claims to be.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    described = config.get("files")
    by_onnx = choose_runtime(device, runtime, has_onnx(described))
    if config.get("task") != "classify":
        raise UsageError(f"{folder} is no classifier; make one with: chess-cxr finetune classify")
    contract, shape, labels, operating = _parse(config, folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ChessError(f"{folder}: {WEIGHTS_FILE} is missing; copy the model again")
    sha256 = check_described(folder, WEIGHTS_FILE, described) or compute_sha256(folder / WEIGHTS_FILE)
    load = partial(_load_network, folder, config, "cpu" if by_onnx else device)
    onnx = load_onnx(folder, described, contract.prepare_array) if by_onnx else None
    model = Classifier(shape, contract, labels, operating, folder.resolve().name, sha256, load, onnx)
    if onnx is None:
        check_network(folder, described, model.network, contract.prepare_array, model.device)
    return model


def _load_network(folder: Path, config: Mapping[str, Any], device: str) -> Classify:
    import safetensors
    import safetensors.torch
    import torch

    from chess_cxr.device import choose_device
    from chess_cxr.encoders.encoder import build_network
    from chess_cxr.tasks.classify.objective import Classify

    contract, shape, _, _ = _parse(config, folder)
    target = choose_device(device)
    network = Classify(build_network(str(config.get("architecture")), contract.channels), shape)
    try:
        network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{folder / WEIGHTS_FILE} does not hold this model: {first[:200]}") from None
    network.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return network


def _parse(config: Mapping[str, Any], folder: Path) -> tuple[PixelContract, HeadShape, tuple[str, ...], Operating]:
    """Read the parts of a model's configuration; raises ChessError that names what is wrong."""
    head, labels = config.get("head"), config.get("labels")
    known = {item.name for item in fields(HeadShape)}
    if not isinstance(head, Mapping) or set(head) not in (known, known - LATER):
        raise ChessError(f"{folder}: the head of a classifier has {', '.join(sorted(known))}")
    if not (isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)):
        raise ChessError(f"{folder}: a classifier has a list of labels")
    shape = HeadShape(**head)
    right = (
        shape.name in get_args(HeadName)
        and shape.task in get_args(ClassifyTask)
        and type(shape.features) is int
        and 0 < shape.features <= MOST_FEATURES
        and type(shape.queries) is int
        and 0 < shape.queries <= MOST_QUERIES
        and shape.labels == len(labels) <= MOST_LABELS
        and type(shape.third_class) is bool
        and (shape.task != "ordinal" or len(labels) > 2)
    )
    if not right:
        raise ChessError(f"{folder}: the head of this classifier is not valid")
    kind = "multilabel" if shape.task == "multilabel" else "multiclass"
    try:
        operating = parse_operating(config.get("operating"), labels, kind)  # type: ignore[arg-type]
    except ChessError as error:
        raise ChessError(f"{folder}: {error}") from None
    return parse_contract(config.get("contract")), shape, tuple(labels), operating


def describe_classifier(model: Classifier) -> str:
    """Describe a model in a few words."""
    return f"classifier of {', '.join(model.labels)}"
