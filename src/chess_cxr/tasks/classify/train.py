"""From an encoder and some labels to a classifier with results that can be trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch

from chess_cxr.encoders.embed import EncoderLike, tell_seen
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.aggregation import aggregate_studies
from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient, describe_intervals
from chess_cxr.evaluation.metrics import (
    Statistic,
    build_multiclass_statistic,
    build_multilabel_statistic,
    build_ordinal_statistic,
)
from chess_cxr.files.whole import write_whole_folder
from chess_cxr.records import UsageError
from chess_cxr.store import Store, StoreLike, get_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.fit import Fitted, OnProgress, check_finetuning, fit_classifier
from chess_cxr.tasks.classify.labels import LabelledRows, select_labelled


@dataclass(frozen=True)
class ClassifierResult:
    """What a classifier does on the test split: every metric with its interval by patient.

    task: "binary" for a single finding.  films: labelled films by split.  test_units: what was scored, such as "films".
    notes: what a reader of the numbers has to know beside them.
    """

    metrics: dict[str, Interval]
    labels: tuple[str, ...]
    task: str
    encoder: str
    data_set: str
    films: dict[str, int]
    test_patients: int
    seed: int
    test_units: str = "films"
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"] = describe_intervals(self.metrics)
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]
        basis = f"{self.data_set}, test split: {self.test_units} of {self.test_patients} patients"
        trained = f"trained on {self.films['train']} films, val {self.films['val']}"
        return "\n".join([*lines, f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})", *self.notes])


def finetune_classifier(
    encoder: EncoderLike,
    store: StoreLike,
    out: Path | str,
    labels: Sequence[str] = (),
    config: FinetuneConfig | None = None,
    on_progress: OnProgress | None = None,
    device: str = "auto",
) -> ClassifierResult:
    """Train a classifier on a store's train split, write it to `out` and score it on the test split.

    encoder: an `Encoder` (left as it is) or anything `load_encoder` takes.  labels: the store's, all by default.
    on_progress: called with the stage, and how much of it is done, of how much.
    The folder holds `model.safetensors` (encoder and head), `config.json` and `result.json`, all or none of them.
    Raises `UsageError` where `out` exists, a split that is needed has no labelled film, or the configuration cannot
    train.
    """
    out, config = Path(out), config or FinetuneConfig()
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    opened = get_store(store)
    chosen = select_labelled(opened, labels, config.task, config.uncertain, config.seed)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not counts[split]:
            raise UsageError(f"{opened.path.name} has no labelled film in its {split} split")
    check_finetuning(config, chosen)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    fitted = fit_classifier(loaded, opened, chosen, config, on_progress or _show_nothing)
    scored = _join_studies(chosen, fitted.scores["test"], config.aggregate)
    result = ClassifierResult(
        metrics=bootstrap_draws_by_patient(scored.patient, [scored.build_statistic(chosen)], seed=config.seed),
        labels=chosen.names,
        task="binary" if chosen.task == "multilabel" and len(chosen.names) == 1 else chosen.task,
        encoder=loaded.name,
        data_set=opened.dataset_name or opened.path.stem,
        films=counts,
        test_patients=len(np.unique(scored.patient)),
        seed=config.seed,
        test_units=scored.units,
        notes=(*fitted.notes, *_tell_uncertain(chosen), *_tell_seen(loaded, opened, chosen)),
    )
    _write_model(out, loaded, fitted, config, result)
    return result


@dataclass(frozen=True)
class _Scored:
    """What the metrics are computed from: films of the test split, or its studies."""

    score_ML: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    units: str

    def build_statistic(self, chosen: LabelledRows) -> Statistic:
        return _STATISTICS[chosen.task](self.label, self.score_ML, chosen.names, probabilities=True)


_STATISTICS = {
    "multiclass": build_multiclass_statistic,
    "multilabel": build_multilabel_statistic,
    "ordinal": build_ordinal_statistic,
}


def _join_studies(chosen: LabelledRows, score_ML: np.ndarray, how: Literal["none", "max", "mean"]) -> _Scored:
    test = chosen.split == "test"
    label, patient = chosen.label[test], chosen.patient[test]
    if how == "none":
        return _Scored(score_ML, label, patient, f"{len(label)} films")
    joined = aggregate_studies(score_ML, label, chosen.study[test], patient, how)
    units = f"{len(joined.label)} studies ({how} of {len(label)} films)"
    return _Scored(joined.score_SC, joined.label, joined.patient_S, units)


def _tell_uncertain(chosen: LabelledRows) -> tuple[str, ...]:
    if not chosen.uncertain_L.any():
        return ()
    return (f"{int(chosen.uncertain_L.sum())} labels are uncertain; those of the test split are not scored",)


def _show_nothing(_stage: str, _done: int, _total: int) -> None:
    pass


def _tell_seen(encoder: Encoder, store: Store, chosen: LabelledRows) -> tuple[str, ...]:
    note = tell_seen(encoder.name, encoder, store.films["uid"].to_numpy()[chosen.rows[chosen.split == "test"]])
    return (note,) if note else ()


def _write_model(out: Path, encoder: Encoder, fitted: Fitted, config: FinetuneConfig, result: ClassifierResult) -> None:
    described = {
        "task": "classify",
        "head": asdict(fitted.shape),
        "labels": list(result.labels),
        "architecture": encoder.architecture,
        "encoder": encoder.name,
        "contract": asdict(encoder.contract),
        "finetune": asdict(config),
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in fitted.tensors.items()}
    with write_whole_folder(out) as growing:
        (growing / "model.safetensors").write_bytes(safetensors.torch.save(whole, {"format": "pt"}))
        for name, content in {"result.json": result.as_json(), "config.json": described}.items():
            (growing / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
