"""Load a classifier and compute the probabilities of its labels for films."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch

from chess_cxr.device import choose_device
from chess_cxr.encoders.contract import PixelContract, parse_contract
from chess_cxr.encoders.encoder import build_network
from chess_cxr.files.whole import read_json
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.encoding import EncodeOptions, encode_in_child
from chess_cxr.records import ChessError, UsageError, import_extra
from chess_cxr.tasks.classify.heads import HeadName
from chess_cxr.tasks.classify.losses import Task
from chess_cxr.tasks.classify.objective import Classify, HeadShape
from chess_cxr.tasks.table import Predictions, PredictOptions
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, run_in_order

MOST_LABELS, MOST_FEATURES = 1000, 100_000  # a foreign model must not build a huge network


@dataclass(frozen=True)
class Classifier:
    """A classifier and its pixel contract.  labels: names of its columns."""

    network: Classify
    contract: PixelContract
    labels: tuple[str, ...]
    device: torch.device

    def predict(self, films: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Return probabilities, float32 [N, L], of films of any size, each float [H, W] in [0, 1] with bone bright.

        Probabilities of classes sum to 1; those of findings are independent.  Raises ChessError for an array that is no
        film.
        """
        parts = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(films), batch):
            film_BCSS = torch.stack([self.contract.prepare(film) for film in films[start : start + batch]])
            parts.append(self.network.predict(film_BCSS.to(self.device, memory_format=torch.channels_last)))
        return np.concatenate(parts)


def load_classifier(folder: Path | str, device: str = "cpu") -> Classifier:
    """Load a model folder of `finetune_classifier`.

    Raises UsageError if `folder` is not such a model, ChessError if it is broken or not what it claims to be.
    """
    folder, target = Path(folder), choose_device(device)
    config = read_json(folder / "config.json")
    if config.get("task") != "classify":
        raise UsageError(f"{folder} is no classifier; make one with: chess-cxr finetune classify")
    contract, shape, labels = _parse(config, folder)
    network = Classify(build_network(str(config.get("architecture")), contract.channels), shape)
    try:
        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{folder / 'model.safetensors'} does not hold this model: {first[:200]}") from None
    network.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Classifier(network, contract, labels, target)


def _parse(config: Mapping[str, Any], folder: Path) -> tuple[PixelContract, HeadShape, tuple[str, ...]]:
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
    return parse_contract(config.get("contract")), shape, tuple(labels)


@dataclass(frozen=True)
class Prediction:
    """Probabilities of a film file by label, or the reason why there are none.

    film_HW: the film as the classifier saw it, float32 in [0, 1].
    """

    location: Path | str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    film_HW: np.ndarray | None = field(default=None, repr=False)


def predict_files(
    model: Classifier,
    locations: Iterable[Path | str],
    executor: Executor | None = None,
    limits: Limits | None = None,
    in_flight: int = 64,
) -> Generator[Prediction, None, None]:
    """Yield the predictions for film files, in their order.

    Films are decoded, judged and encoded as by ingest, so that they give the same numbers as from a store.
    executor: from `build_ingest_pool`; its processes read the files within `limits`.
    """
    encode = partial(encode_in_child, options=EncodeOptions(), limits=limits or Limits())

    def read(location: Path | str) -> tuple[Path | str, str, bytes]:
        film = encode(location)
        return location, film.reason, film.jpeg

    for location, reason, jpeg in run_in_order(locations, read, executor, in_flight):
        if reason:
            yield Prediction(location, reason=reason)
            continue
        film_HW = decode_stored(jpeg).astype(np.float32) / 255
        [probability_L] = model.predict([film_HW]).tolist()
        yield Prediction(location, dict(zip(model.labels, probability_L, strict=True)), film_HW=film_HW)


def predict_films(folder: Path, locations: Sequence[Path | str], options: PredictOptions) -> Predictions:
    """Return a classifier's probabilities for film files."""
    if options.out is not None or options.burn_in or options.sheets:
        raise UsageError("--out, --burn-in and --sheets are for bone models; a classifier prints its table")
    if options.saliency:
        import_extra("captum.attr", "saliency", "--saliency")
    model = load_classifier(folder, options.device)

    def list_records() -> Iterator[dict[str, Any]]:
        with build_ingest_pool(options.workers) as pool:
            for found in predict_files(model, locations, pool, options.limits):
                if options.saliency and found.film_HW is not None:
                    _write_saliency(model, found, options.saliency)
                yield {"film": str(found.location), "reason": found.reason, **found.probabilities}

    return Predictions(("film", *model.labels, "reason"), list_records())


def _write_saliency(model: Classifier, found: Prediction, out: Path) -> None:
    """Draw a film with the saliency map of each label."""
    from chess_cxr.derive.film import write_new_file
    from chess_cxr.tasks.classify.saliency import choose_method, compute_saliency
    from chess_cxr.tasks.classify.saliency_sheet import SaliencyRow, draw_saliency_sheet

    film_HW, how = found.film_HW, choose_method(model.network, model.contract)
    assert film_HW is not None
    maps = {
        f"{label} {probability:.2f}": compute_saliency(model.network, model.contract, [film_HW], number, how)[0]
        for number, (label, probability) in enumerate(found.probabilities.items())
    }
    stem = Path(str(found.location)).stem
    sheet = draw_saliency_sheet([SaliencyRow(np.rint(255 * film_HW).astype(np.uint8), maps, None, stem)], how)
    write_new_file(out, stem, "_saliency.png", sheet)


def describe_classifier(model: Classifier) -> str:
    """Describe a model in a few words."""
    return f"classifier of {', '.join(model.labels)}"
