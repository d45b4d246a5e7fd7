"""The three kinds of cells of a benchmark: features of films, predictions of a head, resampled metrics.

A cell names everything by keys of the cell folder, so that a worker gets a few hundred bytes and maps the rest.
Networks and stores are imported by the cells that need them: a worker that only fits probes starts in a second.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key
from chess_cxr.benchmarking.predictions import TaskKind
from chess_cxr.benchmarking.suite import EncoderSource
from chess_cxr.benchmarking.tables import build_statistic
from chess_cxr.evaluation.intervals import DrawReplicates, replicate_draws
from chess_cxr.evaluation.linear_probe import LinearProbe, fit_linear_probe, tell_edges
from chess_cxr.evaluation.metrics import Statistic
from chess_cxr.evaluation.neighbours import Neighbours, build_precision_statistic, fit_neighbours, measure_precision
from chess_cxr.evaluation.ranked_scores import mean_known
from chess_cxr.evaluation.residuals import fit_residuals
from chess_cxr.records import ChessError

if TYPE_CHECKING:
    from chess_cxr.encoders.embed import EncoderLike
    from chess_cxr.store import Store

# A multiple of the films that `embed` takes at once: a film's neighbours in a batch do not depend on the chunk.
FILMS_A_CHUNK = 2048
EMBED_CODE = ("encoders.embed",)
PROBE_CODE = {"linear": "evaluation.linear_probe", "knn": "evaluation.neighbours"}
RESIDUAL_CODE = "evaluation.residuals"
REPLICATE_CODE = ("benchmarking.tables", "evaluation.neighbours")
Computed = tuple[Mapping[str, NDArray[np.generic]], dict[str, Any]]


class Cell(Protocol):
    """One piece of work: where its result stands, and how it is computed."""

    @property
    def size(self) -> int:
        """How much it counts for in the progress."""
        ...

    @property
    def key(self) -> str:
        """The hash of all that the result depends on."""
        ...

    @abstractmethod
    def compute(self, cells: CellFolder) -> Computed:
        """Return the arrays and the facts of the cell."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `reason` is "" where it stands in the folder."""

    key: str
    reason: str = ""


def compute_cell(cell: Cell, key: str, cells: CellFolder) -> Outcome:
    """Compute a cell and put it into the folder.  key: as whoever sends the cell has computed it."""
    if cell.key != key:
        raise ChessError("its worker runs another version of chess-cxr")
    if not cells.holds(key):
        started = time.monotonic()
        arrays, facts = cell.compute(cells)
        cells.write(key, arrays, facts | {"seconds": time.monotonic() - started})
    return Outcome(key)


def run_cell(cell: Cell, key: str, cells: CellFolder) -> Outcome:
    """Compute a cell, or say why that failed.

    Never raises an Exception: clusters log a task that raises, with its arguments.
    """
    try:
        return compute_cell(cell, key, cells)
    except ChessError as error:
        return Outcome(key, " ".join(str(error).split()))
    except MemoryError:
        return Outcome(key, "not enough memory")
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return Outcome(key, f"unexpected {type(error).__name__}: {first}")


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class EmbedCell:
    """Features, float32 [n, D], of the films rows[start:stop] of a store; `content` is the hash of these films."""

    source: EncoderSource
    identity: str
    location: str
    version: int
    rows: str
    content: str
    start: int
    stop: int
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Its films."""
        return self.stop - self.start

    @property
    def key(self) -> str:
        """Two stores with the same films give the same cell, and so do two paths of one encoder."""
        described = {"encoder": self.identity, "films": self.content, "start": self.start, "stop": self.stop}
        described |= {"device": self.device.partition(":")[0], "code": compute_code_version(*EMBED_CODE)}
        return compute_key({"cell": "embed"} | described)

    def compute(self, cells: CellFolder) -> Computed:
        """Embed the films.  Raises ChessError where this worker loads another encoder than was asked for."""
        from chess_cxr.encoders.embed import embed

        encoder = load_once(self.source, self.identity, self.device)
        rows = cells.read_array(self.rows)[self.start : self.stop]
        return {"feature": embed(encoder, open_once(self.location, self.version), rows)}, {}


@lru_cache(maxsize=1)
def load_once(source: EncoderSource, identity: str, device: str) -> EncoderLike:
    """Load an encoder unless it was the last one.  Raises ChessError where it is not the one that was asked for."""
    from chess_cxr.benchmarking.encoders import compute_identity, load_source

    encoder = load_source(source, device)
    if compute_identity(encoder) != identity:
        raise ChessError(f"the encoder {source.name} is not the same on every worker, or was changed while it was used")
    return encoder


@lru_cache(maxsize=2)
def open_once(location: str, version: int) -> Store:
    """Open a store unless it was one of the last two."""
    from chess_cxr.store import open_store

    return open_store(location, version)


def read_features(cells: CellFolder, keys: Sequence[str], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """Gather rows of features that lie in chunks of `FILMS_A_CHUNK` films."""
    parts = [cells.read_arrays(key)["feature"] for key in keys]
    gathered = np.empty((len(places), parts[0].shape[1]), np.float32)
    chunk_N = np.asarray(places) // FILMS_A_CHUNK
    for number, part in enumerate(parts):
        mine = np.flatnonzero(chunk_N == number)
        gathered[mine] = part[places[mine] - number * FILMS_A_CHUNK]
    return gathered


# ---------------------------------------------------------------- predictions


@dataclass(frozen=True)
class ProbeCell:
    """Probabilities, float32 [M, C], of a head fitted to one label draw; arrays are named by their keys.

    features: of the embed cells, in order.  label, patient: of the N films.  films: places of the draw; val, test:
    places that are scored.  without: columns [N, A] that are regressed out of the features first.
    Of the head "knn" also `precision`, the retrieval of each test film (`evaluation.neighbours.measure_precision`).
    """

    head: str
    class_names: tuple[str, ...]
    features: tuple[str, ...]
    label: str
    patient: str
    films: str
    val: str
    test: str
    seed: int
    without: str = ""

    @property
    def size(self) -> int:
        """One fit, or one table cell."""
        return 1

    @property
    def key(self) -> str:
        """The hash of features, labels, draw, settings and code."""
        code = [PROBE_CODE[self.head], *([RESIDUAL_CODE] if self.without else [])]
        described = {name: value for name, value in vars(self).items() if name not in ("features", "without")}
        described |= {"without": self.without} if self.without else {}
        return compute_key(
            {"cell": "probe", "features": list(self.features), "code": compute_code_version(*code)}
            | described
            | {"class_names": list(self.class_names)}
        )

    def compute(self, cells: CellFolder) -> Computed:
        """Fit the head to the draw and predict the val and the test films."""
        places = {name: cells.read_array(getattr(self, name)) for name in ("films", "val", "test")}
        label, films = cells.read_array(self.label), places["films"]
        feature = {name: read_features(cells, self.features, those) for name, those in places.items()}
        if self.without:
            feature = self._take_off(cells, feature, places)
        given = feature["films"], label[films], cells.read_array(self.patient)[films]
        probe, facts = fit_head(self.head, *given, self.class_names, self.seed, feature["val"], label[places["val"]])
        scores = {split: score_films(probe, feature[split], len(self.class_names)) for split in ("val", "test")}
        if isinstance(probe, Neighbours):
            scores["precision"] = measure_precision(probe, feature["test"], label[places["test"]])
        return scores, facts

    def _take_off(
        self, cells: CellFolder, feature: dict[str, NDArray[np.float32]], places: Mapping[str, NDArray[np.intp]]
    ) -> dict[str, NDArray[np.float32]]:
        known_NA = cells.read_array(self.without)
        found = fit_residuals(feature["films"], known_NA[places["films"]])
        return {name: found.take_off(part, known_NA[places[name]]).astype(np.float32) for name, part in feature.items()}


def fit_head(
    head: str,
    feature_ND: NDArray[np.float32],
    label: NDArray[np.generic],
    patient_N: NDArray[np.generic],
    names: Sequence[str],
    seed: int,
    val_feature_MD: NDArray[np.float32],
    val_label: NDArray[np.generic],
) -> tuple[LinearProbe | Neighbours, dict[str, Any]]:
    """Fit a head on cached features to labelled films; return it with the facts of its cell."""
    if head == "knn":
        bank = fit_neighbours(
            feature_ND, label, patient_N, names=names, val=(val_feature_MD, val_label) if len(val_label) else None
        )
        return bank, {"notes": list(bank.notes), "count": bank.count}
    probe = fit_linear_probe(feature_ND, label, patient_N, names=names, seed=seed)
    strength = float(np.exp(mean_known(np.log(probe.strength_C), axis=0)))
    notes = [*probe.notes, *tell_edges(probe, names)]
    return probe, {"notes": notes, "strength": None if math.isnan(strength) else strength}


def score_films(probe: LinearProbe | Neighbours, feature_MD: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    """Return the probabilities of films, float32 [M, C]; M may be 0."""
    if not len(feature_MD):
        return np.empty((0, classes), np.float32)
    return probe.predict_scores(feature_MD).astype(np.float32)


# ---------------------------------------------------------------- resampled metrics


@dataclass(frozen=True)
class ReplicateCell:
    """Every metric of some draws of one head, on all test films and on resamples of their patients."""

    kind: TaskKind
    class_names: tuple[str, ...]
    probes: tuple[str, ...]
    label: str
    patient: str
    test: str
    replicates: int
    seed: int

    @property
    def size(self) -> int:
        """One fit, or one table cell."""
        return 1

    @property
    def key(self) -> str:
        """The hash of predictions, labels, settings and code."""
        described: dict[str, Any] = {
            "kind": self.kind,
            "class_names": list(self.class_names),
            "probes": list(self.probes),
        }
        described |= {"label": self.label, "patient": self.patient, "test": self.test, "seed": self.seed}
        described |= {"replicates": self.replicates, "code": compute_code_version(*REPLICATE_CODE)}
        return compute_key({"cell": "replicates"} | described)

    def compute(self, cells: CellFolder) -> Computed:
        """Evaluate the draws: value_KD and value_KDR for the K metrics that the facts name."""
        test = cells.read_array(self.test)
        label, patient = cells.read_array(self.label)[test], cells.read_array(self.patient)[test]
        statistics = [
            _build_statistic(self.kind, label, cells.read_arrays(probe), self.class_names) for probe in self.probes
        ]
        parts = replicate_draws(patient, statistics, self.replicates, self.seed)
        arrays = {
            "value_KD": np.stack([part.value_D for part in parts.values()]),
            "value_KDR": np.stack([part.value_DR for part in parts.values()]),
        }
        return arrays, {"metrics": list(parts)}


def _build_statistic(
    kind: TaskKind, label: NDArray[np.generic], arrays: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> Statistic:
    """Return the statistic of a prediction set: of its probabilities and, where there is one, of its retrieval."""
    scored = build_statistic(kind, label, arrays["test"], names)
    if "precision" not in arrays:
        return scored
    retrieved = build_precision_statistic(arrays["precision"], names)
    return lambda weight_RN: scored(weight_RN) | retrieved(weight_RN)


def read_replicates(cells: CellFolder, key: str) -> dict[str, DrawReplicates]:
    """Read what a `ReplicateCell` computed."""
    arrays = cells.read_arrays(key)
    return {
        metric: DrawReplicates(arrays["value_KD"][place], arrays["value_KDR"][place])
        for place, metric in enumerate(cells.read_facts(key)["metrics"])
    }
