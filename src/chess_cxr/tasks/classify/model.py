"""Load a classifier and compute the probabilities of its labels for films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from chess_cxr.encoders.contract import PixelContract, parse_contract
from chess_cxr.encoders.encoder import build_network
from chess_cxr.encoders.onnx_network import OnnxNetwork
from chess_cxr.encoders.published import compute_sha256
from chess_cxr.files.whole import read_json
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.classify.heads import HeadName
from chess_cxr.tasks.classify.losses import Task
from chess_cxr.tasks.classify.objective import Classify, HeadShape, compute_probabilities
from chess_cxr.tasks.classify.operating import Operating, parse_operating
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, check_described
from chess_cxr.tasks.runtime import choose_runtime_device, load_runtime
from chess_cxr.tasks.table import Runtime

MOST_LABELS, MOST_FEATURES = 1000, 100_000  # a foreign model must not build a huge network


@dataclass(frozen=True)
class Classifier:
    """A classifier and its pixel contract.

    labels: names of its columns.  operating: its calibration and thresholds.  name: of its folder.
    sha256: of its weights.  onnx: what computes the scores, if it is not the network itself.
    """

    network: Classify
    contract: PixelContract
    labels: tuple[str, ...]
    device: torch.device
    operating: Operating
    name: str = ""
    sha256: str = ""
    onnx: OnnxNetwork | None = None

    def predict(self, films: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Return probabilities, float32 [N, L], of films of any size, each float [H, W] in [0, 1] with bone bright.

        They are calibrated if the model is.  Probabilities of classes sum to 1; those of findings are independent.
        Raises ChessError for an array that is no film.
        """
        parts = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(films), batch):
            film_BCSS = torch.stack([self.contract.prepare(film) for film in films[start : start + batch]])
            score = self.compute_scores(film_BCSS)
            parts.append(compute_probabilities(score, self.network.shape).float().cpu().numpy())
        return self.operating.calibrate(np.concatenate(parts))

    @torch.no_grad()
    def compute_scores(self, film_BCSS: Tensor) -> Tensor:
        """Return the scores of prepared films, before softmax or sigmoid."""
        network = self.onnx or self.network.eval()
        score: Tensor = network(film_BCSS.to(self.device, memory_format=torch.channels_last))
        return score


def load_classifier(folder: Path | str, device: str = "cpu", runtime: Runtime = "torch") -> Classifier:
    """Load a model folder of `finetune_classifier`, and check its scores of the golden films.

    runtime: what computes scores: torch; onnx, on the CPU, for which the folder needs `model.onnx`; or auto, which
    takes onnx on the CPU where the folder and this machine have it.  A model of version 0.1 has no golden films.
    Raises UsageError if `folder` is not such a model, ChessError if it is broken or not what it claims to be.
    """
    folder, target = Path(folder), choose_runtime_device(device, runtime)
    config = read_json(folder / "config.json")
    if config.get("task") != "classify":
        raise UsageError(f"{folder} is no classifier; make one with: chess-cxr finetune classify")
    contract, shape, labels, operating = _parse(config, folder)
    network = Classify(build_network(str(config.get("architecture")), contract.channels), shape)
    try:
        network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{folder / WEIGHTS_FILE} does not hold this model: {first[:200]}") from None
    network.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    described = config.get("files")
    sha256 = check_described(folder, WEIGHTS_FILE, described)
    onnx = load_runtime(folder, described, network, contract.prepare, target, runtime)
    sha256 = sha256 or compute_sha256(folder / WEIGHTS_FILE)
    return Classifier(network, contract, labels, target, operating, folder.resolve().name, sha256, onnx)


def _parse(config: Mapping[str, Any], folder: Path) -> tuple[PixelContract, HeadShape, tuple[str, ...], Operating]:
    """Read the parts of a model's configuration; raises ChessError that names what is wrong."""
    head, labels = config.get("head"), config.get("labels")
    known = {item.name for item in fields(HeadShape)}
    if not isinstance(head, Mapping) or set(head) != known:
        raise ChessError(f"{folder}: the head of a classifier has {', '.join(sorted(known))}")
    if not (isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)):
        raise ChessError(f"{folder}: a classifier has a list of labels")
    shape = HeadShape(**head)
    right = (
        shape.name in get_args(HeadName)
        and shape.task in get_args(Task)
        and type(shape.features) is int
        and 0 < shape.features <= MOST_FEATURES
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
