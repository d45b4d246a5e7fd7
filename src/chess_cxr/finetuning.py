"""From an encoder and some labels to a classifier with results that can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from chess_cxr.api import EncoderLike, LabelledRows, StoreLike, embed, select_labelled
from chess_cxr.evaluation.intervals import Interval, bootstrap_by_patient
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic
from chess_cxr.records import UsageError
from chess_cxr.store import Store, compute_batch, open_store
from chess_cxr.tasks.classify import Classify, LabelledBatch, compute_label_loss, draw_labelled_batch
from chess_cxr.training.checkpoint import write_atomically
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.views import ViewConfig
from chess_cxr.weights import Encoder, load_encoder

CHECKS = 10


@dataclass(frozen=True)
class FinetuneConfig:
    """How a classifier is made.

    mode: "linear", a probe on cached features; "full", all weights trained, kept at the moment with the smallest
    loss on the val split (the last one where there is no val film).
    """

    mode: Literal["linear", "full"] = "linear"
    steps: int = 300
    batch: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class ClassifierResult:
    """What a classifier does on the test split: every metric with its interval by patient."""

    metrics: dict[str, Interval]
    labels: tuple[str, ...]
    task: str
    films: dict[str, int]
    test_patients: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]
        basis = f"test split: {self.films['test']} films of {self.test_patients} patients"
        trained = f"trained on {self.films['train']} films, val {self.films['val']}"
        return "\n".join([*lines, f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})"])


def finetune(
    encoder: EncoderLike,
    store: StoreLike,
    out: Path | str,
    labels: Sequence[str] = (),
    config: FinetuneConfig = FinetuneConfig(),  # noqa: B008 - frozen
    on_step: Callable[[], None] | None = None,
) -> ClassifierResult:
    """Train a classifier on a store's train split, write it to `out` and score it on the test split.

    The folder holds `model.safetensors` (encoder and head), `config.json` and `result.json`.
    Raises `UsageError` where `out` exists or a split that is needed has no labelled film.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    opened = store if isinstance(store, Store) else open_store(store)
    chosen = select_labelled(opened, labels)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not counts[split]:
            raise UsageError(f"{opened.path.name} has no labelled film in its {split} split")
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    fit = _fit_linear if config.mode == "linear" else _fit_full
    score_ML, tensors = fit(loaded, opened, chosen, config, on_step)
    test = chosen.split == "test"
    build = build_multiclass_statistic if chosen.task == "multiclass" else build_multilabel_statistic
    statistic = build(chosen.label[test], score_ML, chosen.names)
    metrics = bootstrap_by_patient(chosen.patient[test], statistic, seed=config.seed)
    patients = len(np.unique(chosen.patient[test]))
    result = ClassifierResult(metrics, chosen.names, chosen.task, counts, patients, config.seed)
    _write_model(out, loaded, tensors, config, result)
    return result


def _fit_linear(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_step: Callable[[], None] | None
) -> tuple[np.ndarray, dict[str, Tensor]]:
    feature_ND = embed(encoder, store, chosen.rows)
    train_N, test = chosen.split == "train", chosen.split == "test"
    probe = fit_linear_probe(
        feature_ND[train_N], chosen.label[train_N], chosen.patient[train_N], names=chosen.names, seed=config.seed
    )
    if on_step:
        on_step()
    weight_LD = (probe.coefficient_DC * probe.scale_D[:, None]).T
    bias_L = probe.intercept_C - weight_LD @ probe.mean_D
    head = {"head.weight": torch.tensor(weight_LD).float(), "head.bias": torch.tensor(bias_L).float()}
    encoder_state = {f"encoder.{name}": tensor for name, tensor in encoder.module.state_dict().items()}
    return probe.predict_scores(feature_ND[test]), encoder_state | head


def _fit_full(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_step: Callable[[], None] | None
) -> tuple[np.ndarray, dict[str, Tensor]]:
    torch.manual_seed(config.seed)
    task = Classify(encoder.module, encoder.feature_count, len(chosen.names), chosen.task).to(encoder.device)
    task.train()
    plan = TrainingConfig(
        config.steps, config.batch, "adamw", config.learning_rate, weight_decay=config.weight_decay, warmup=0.1
    )
    batches = _draw_batches(encoder, store, chosen, config)
    best: tuple[float, dict[str, Tensor]] = (np.inf, {})
    check_every = max(1, config.steps // CHECKS)
    has_val = bool((chosen.split == "val").any())
    for report in train(task, batches, build_optimizers(task, plan), plan):
        if on_step:
            on_step()
        if has_val and (report.step % check_every == 0 or report.step == config.steps):
            loss = _compute_val_loss(task, encoder, store, chosen)
            if loss < best[0]:
                best = (loss, {name: tensor.clone() for name, tensor in task.state_dict().items()})
            task.train()
    if best[1]:
        task.load_state_dict(best[1])
    score_ML = _predict(task, encoder, store, chosen.rows[chosen.split == "test"])
    return score_ML, dict(task.state_dict())


def _draw_batches(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig
) -> Iterator[LabelledBatch]:
    train_rows = np.flatnonzero(chosen.split == "train")
    views = ViewConfig(
        size=encoder.contract.size,
        crop_area=(0.7, 1.0),
        crop_aspect=(0.9, 1.1),
        rotate_deg=7,
        affine_p=0.5,
        contrast=(-0.2, 0.2),
        brightness=(-0.1, 0.1),
        tone_p=0.8,
    )
    for step in range(config.steps):
        film_B, position_B = compute_batch(len(train_rows), min(config.batch, len(train_rows)), step, config.seed)
        places = train_rows[film_B]
        films = store.read_films(chosen.rows[places])
        label_BL = chosen.label_NL[places]
        yield draw_labelled_batch(films, label_BL, position_B.tolist(), config.seed, views, encoder.contract)


def _compute_val_loss(task: Classify, encoder: Encoder, store: Store, chosen: LabelledRows) -> float:
    val = chosen.split == "val"
    score_ML = _predict(task, encoder, store, chosen.rows[val])
    logit_ML = torch.from_numpy(score_ML).clamp(1e-7, 1 - 1e-7)
    logit_ML = logit_ML.log() if chosen.task == "multiclass" else logit_ML.logit()
    return float(compute_label_loss(logit_ML, torch.from_numpy(chosen.label_NL[val]).float(), chosen.task))


def _predict(task: Classify, encoder: Encoder, store: Store, rows: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), 64):
        films = store.read_films(rows[start : start + 64])
        film_BCSS = torch.stack([encoder.contract.prepare(film.astype(np.float32) / 255) for film in films])
        parts.append(task.predict(film_BCSS.to(encoder.device)))
    return np.concatenate(parts)


def _write_model(
    out: Path, encoder: Encoder, tensors: dict[str, Tensor], config: FinetuneConfig, result: ClassifierResult
) -> None:
    described = {
        "task": "classify",
        "kind": result.task,
        "labels": list(result.labels),
        "architecture": encoder.architecture,
        "encoder": encoder.name,
        "contract": asdict(encoder.contract),
        "finetune": asdict(config),
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(out / "model.safetensors", safetensors.torch.save(whole, {"format": "pt"}))
    write_atomically(out / "result.json", json.dumps(result.as_json(), indent=1).encode())
    write_atomically(out / "config.json", json.dumps(described, indent=1).encode())
