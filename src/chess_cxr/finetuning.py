"""From an encoder and some labels to a classifier with results that can be trusted."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from chess_cxr.api import EncoderLike, StoreLike, embed, get_store, tell_seen
from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import build_multiclass_statistic, build_multilabel_statistic
from chess_cxr.labelled import LabelledRows, select_labelled
from chess_cxr.records import UsageError
from chess_cxr.store import Store, compute_batch
from chess_cxr.tasks.classify import Classify, LabelledBatch, compute_label_loss, draw_labelled_batch
from chess_cxr.training.loop import TrainingConfig, build_optimizers, check_training_config, train
from chess_cxr.views import ViewConfig
from chess_cxr.weights import Encoder, load_encoder

CHECKS = 10
FILMS_AT_ONCE = 64
OnProgress = Callable[[str, int, int], None]


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
    """What a classifier does on the test split: every metric with its interval by patient.

    films: labelled films by split.  notes: what a reader of the numbers has to know beside them.
    """

    metrics: dict[str, Interval]
    labels: tuple[str, ...]
    task: str
    encoder: str
    data_set: str
    films: dict[str, int]
    test_patients: int
    seed: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"] = {
            name: {key: None if math.isnan(number) else number for key, number in asdict(interval).items()}
            for name, interval in self.metrics.items()
        }
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:28s} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in self.metrics.items()]
        basis = f"{self.data_set}, test split: {self.films['test']} films of {self.test_patients} patients"
        trained = f"trained on {self.films['train']} films, val {self.films['val']}"
        return "\n".join([*lines, f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})", *self.notes])


def finetune(
    encoder: EncoderLike,
    store: StoreLike,
    out: Path | str,
    labels: Sequence[str] = (),
    config: FinetuneConfig | None = None,
    on_progress: OnProgress | None = None,
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
    chosen = select_labelled(opened, labels)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not counts[split]:
            raise UsageError(f"{opened.path.name} has no labelled film in its {split} split")
    if config.mode == "full":
        check_training_config(_plan_training(config, counts["train"]))
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    fit = _fit_linear if config.mode == "linear" else _fit_full
    score_ML, tensors, notes = fit(loaded, opened, chosen, config, on_progress or _show_nothing)
    test = chosen.split == "test"
    build = build_multiclass_statistic if chosen.task == "multiclass" else build_multilabel_statistic
    statistic = build(chosen.label[test], score_ML, chosen.names)
    result = ClassifierResult(
        metrics=bootstrap_draws_by_patient(chosen.patient[test], [statistic], seed=config.seed),
        labels=chosen.names,
        task=chosen.task,
        encoder=loaded.name,
        data_set=opened.dataset_name or opened.path.stem,
        films=counts,
        test_patients=len(np.unique(chosen.patient[test])),
        seed=config.seed,
        notes=(*notes, *_tell_seen(loaded, opened, chosen.rows[test])),
    )
    _write_model(out, loaded, tensors, config, result)
    return result


def _show_nothing(_stage: str, _done: int, _total: int) -> None:
    pass


def _tell_seen(encoder: Encoder, store: Store, rows: np.ndarray) -> tuple[str, ...]:
    note = tell_seen(encoder.name, encoder, store.films["uid"].to_numpy()[rows])
    return (note,) if note else ()


def _fit_linear(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> tuple[np.ndarray, dict[str, Tensor], tuple[str, ...]]:
    used = np.flatnonzero(chosen.split != "val")
    split, patient, label = chosen.split[used], chosen.patient[used], chosen.label[used]
    feature_ND = embed(encoder, store, chosen.rows[used], lambda done, total: on_progress("embed", done, total))
    train_N, test_N = split == "train", split == "test"
    probe = fit_linear_probe(
        feature_ND[train_N], label[train_N], patient[train_N], names=chosen.names, seed=config.seed
    )
    # The probe's standardisation goes into the layer, so that the network takes features as they are.
    weight_LD = (probe.coefficient_DC * probe.scale_D[:, None]).T
    bias_L = probe.intercept_C - weight_LD @ probe.mean_D
    head = {"head.weight": torch.tensor(weight_LD).float(), "head.bias": torch.tensor(bias_L).float()}
    encoder_state = {f"encoder.{name}": tensor for name, tensor in encoder.module.state_dict().items()}
    return probe.predict_scores(feature_ND[test_N]), encoder_state | head, probe.notes


def _plan_training(config: FinetuneConfig, train_films: int) -> TrainingConfig:
    return TrainingConfig(
        steps=config.steps,
        batch=min(config.batch, train_films),
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=0.1,
        seed=config.seed,
    )


def _fit_full(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> tuple[np.ndarray, dict[str, Tensor], tuple[str, ...]]:
    encoder = replace(encoder, module=copy.deepcopy(encoder.module))
    plan = _plan_training(config, int((chosen.split == "train").sum()))
    best: tuple[float, int, dict[str, Tensor]] = (math.inf, config.steps, {})
    check_every = max(1, config.steps // CHECKS)
    val = chosen.split == "val"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        task = Classify(encoder.module, encoder.feature_count, len(chosen.names), chosen.task).to(encoder.device)
        task.train()
        for report in train(task, _draw_batches(encoder, store, chosen, plan), build_optimizers(task, plan), plan):
            on_progress("finetune", report.step, config.steps)
            if val.any() and (report.step % check_every == 0 or report.step == config.steps):
                loss = _compute_loss(task, encoder, store, chosen, val)
                if loss < best[0]:
                    best = (loss, report.step, {name: it.clone() for name, it in task.state_dict().items()})
                task.train()
    if best[2]:
        task.load_state_dict(best[2])
    score_ML = _predict(task, encoder, store, chosen.rows[chosen.split == "test"])
    kept = f"smallest loss on {int(val.sum())} val films" if val.any() else "no val film to choose by"
    return score_ML, dict(task.state_dict()), (f"weights of step {best[1]} of {config.steps} ({kept})",)


def _draw_batches(
    encoder: Encoder, store: Store, chosen: LabelledRows, plan: TrainingConfig
) -> Iterator[LabelledBatch]:
    train_rows = np.flatnonzero(chosen.split == "train")
    label_NL = chosen.label_NL
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
    for step in range(plan.steps):
        film_B, position_B = compute_batch(len(train_rows), plan.batch, step, plan.seed)
        places = train_rows[film_B]
        films = store.read_films(chosen.rows[places])
        batch = draw_labelled_batch(films, label_NL[places], position_B.tolist(), plan.seed, views, encoder.contract)
        yield LabelledBatch(batch.film_BCSS.to(encoder.device), batch.label_BL.to(encoder.device))


def _compute_loss(task: Classify, encoder: Encoder, store: Store, chosen: LabelledRows, part: np.ndarray) -> float:
    score_ML = torch.from_numpy(_predict(task, encoder, store, chosen.rows[part])).clamp(1e-7, 1 - 1e-7)
    logit_ML = score_ML.log() if chosen.task == "multiclass" else score_ML.logit()
    return float(compute_label_loss(logit_ML, torch.from_numpy(chosen.label_NL[part]).float(), chosen.task))


def _predict(task: Classify, encoder: Encoder, store: Store, rows: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), FILMS_AT_ONCE):
        films = store.read_films(rows[start : start + FILMS_AT_ONCE])
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
    growing = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        growing.mkdir(parents=True)
        (growing / "model.safetensors").write_bytes(safetensors.torch.save(whole, {"format": "pt"}))
        for name, content in {"result.json": result.as_json(), "config.json": described}.items():
            (growing / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
        growing.rename(out)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
