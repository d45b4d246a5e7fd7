"""The cells of heads that learn by steps: they read films, not features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key
from chess_cxr.benchmarking.cells import Computed, load_once, open_once
from chess_cxr.benchmarking.predictions import TaskKind
from chess_cxr.benchmarking.suite import EncoderSource
from chess_cxr.records import ChessError

FIT_CODE = ("tasks.classify.train",)
LAYER_DECAY = 1.0  # untrained weights have to learn in every layer, and all encoders learn alike
QUERIES = {"attentive8": ("attentive", 8)}  # heads of a mode with several queries


@dataclass(frozen=True)
class FitCell:
    """Probabilities, float32 [M, C], of a head that learns by steps, or of a whole network, from one label draw.

    The films are read from their store: such a head needs more than pooled features.  rows, label, target, patient,
    films, val, test: keys of arrays as in `ProbeCell`; target: what labels teach.
    """

    source: EncoderSource
    identity: str
    location: str
    version: int
    content: str
    head: str
    kind: TaskKind
    class_names: tuple[str, ...]
    rows: str
    label: str
    target: str
    patient: str
    films: str
    val: str
    test: str
    seed: int
    device: str = "cpu"
    steps: int = 300
    batch: int = 32
    patience: int = 5

    @property
    def size(self) -> int:
        """One fit, or one table cell."""
        return 1

    @property
    def key(self) -> str:
        """The hash of encoder, films, labels, draw, settings and code."""
        left_out = ("source", "location", "version", "rows", "device")
        described = {name: value for name, value in vars(self).items() if name not in left_out}
        described |= {"device": self.device.partition(":")[0], "code": compute_code_version(*FIT_CODE)}
        described |= {"layer_decay": LAYER_DECAY}
        return compute_key({"cell": "fit"} | described | {"class_names": list(self.class_names)})

    def compute(self, cells: CellFolder) -> Computed:
        """Train on the draw, choose the moment by the val films, and predict the val and the test films."""
        from chess_cxr.benchmarking.variants import Blocks
        from chess_cxr.encoders.encoder import Encoder
        from chess_cxr.tasks.classify.config import FinetuneConfig
        from chess_cxr.tasks.classify.labels import LabelledRows
        from chess_cxr.tasks.classify.train import fit_classifier

        encoder = load_once(self.source, self.identity, self.device)
        if not isinstance(encoder, Encoder):
            raise ChessError(f"{self.source.name} has no network; only linear heads fit it")
        if isinstance(encoder.module, Blocks):
            raise ChessError(f"{self.source.name} gives features of several blocks; only heads on features fit it")
        films, val, test = (cells.read_array(key) for key in (self.films, self.val, self.test))
        places = np.concatenate([films, val, test])
        rows, label, target, patient = (
            cells.read_array(key)[places] for key in (self.rows, self.label, self.target, self.patient)
        )
        splits = zip(("train", "val", "test"), (films, val, test), strict=True)
        split = np.concatenate([np.full(len(part), name, "<U5") for name, part in splits])
        chosen = LabelledRows(
            rows, label, self.class_names, patient, split, self.kind, np.full(len(rows), ""), target, np.zeros(1, int)
        )
        mode, queries = QUERIES.get(self.head, (self.head, 1))
        config = FinetuneConfig(
            mode, self.steps, self.batch, patience=self.patience, seed=self.seed, queries=queries,  # type: ignore[arg-type]
            layer_decay=LAYER_DECAY,
        )  # fmt: skip
        store = open_once(self.location, self.version)
        fitted = fit_classifier(encoder, store, chosen, config, lambda *_: None)
        return {name: it.astype(np.float32) for name, it in fitted.scores.items()}, {"notes": list(fitted.notes)}
