"""How a classifier learns: a probe that is solved, a head on cached features, or the whole network.

Shapes: N films, D features, T places of a feature map, L labels.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from chess_cxr.encoders.embed import embed
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.records import UNCERTAIN, UsageError
from chess_cxr.store import Store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.heads import HeadName, Standardise, extract_map
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.losses import build_balance, compute_label_loss
from chess_cxr.tasks.classify.objective import (
    Classify,
    HeadShape,
    LabelledBatch,
    compute_probabilities,
    draw_labelled_batch,
)
from chess_cxr.training.loop import TrainingConfig, build_optimizers, check_training_config, train
from chess_cxr.training.order import compute_batch
from chess_cxr.views import ViewConfig

FILMS_AT_ONCE = 64
CHECKS = 20  # times that held-out films are looked at
FOLDS = 5  # of the training patients; one is held out where there is no val film
FEWEST_PATIENTS = 10
RATES = {"mlp": 1e-3, "attentive": 1e-3, "full": 3e-4}
VIEWS = ViewConfig(
    crop_area=(0.7, 1.0),
    crop_aspect=(0.9, 1.1),
    rotate_deg=7,
    affine_p=0.5,
    contrast=(-0.2, 0.2),
    brightness=(-0.1, 0.1),
    tone_p=0.8,
)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fitted:
    """A classifier that has learned: its shape, all its tensors, what it says of val and test films, and what to know.

    scores: by split, probabilities [M, L].
    """

    shape: HeadShape
    tensors: Mapping[str, Tensor]
    scores: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = field(default=())


def check_finetuning(config: FinetuneConfig, chosen: LabelledRows) -> None:
    """Raise `UsageError` for what cannot be learned in this way."""
    if config.mode != "linear":
        if config.patience < 0 or not 0 < config.layer_decay <= 1:
            raise UsageError("fine-tuning needs a patience of 0 or more and a layer_decay above 0, up to 1")
        check_training_config(plan_training(config, int((chosen.split == "train").sum())))
        return
    if config.imbalance != "none" or chosen.task == "ordinal":
        asked = "imbalance" if config.imbalance != "none" else "order"
        raise UsageError(f"the linear probe knows no {asked}; choose --mode mlp, attentive or full")
    target_NL = chosen.target_NL[chosen.split == "train"]
    if not np.isin(target_NL[~np.isnan(target_NL)], (0, 1)).all():
        raise UsageError("the linear probe learns labels of 0 and 1 only; choose --mode mlp, attentive or full")


def plan_training(config: FinetuneConfig, films: int) -> TrainingConfig:
    """Return how a classifier that learns by steps is optimised."""
    return TrainingConfig(
        steps=config.steps,
        batch=max(2, min(config.batch, films)),
        optimizer="adamw",
        learning_rate=RATES.get(config.mode, 1e-3) if config.learning_rate is None else config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=0.1,
        seed=config.seed,
    )


def fit_classifier(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    """Make a classifier from the train split and score the val and the test split with it."""
    if config.mode == "linear":
        return _fit_linear(encoder, store, chosen, config, on_progress)
    fit = _fit_full if config.mode == "full" else _fit_head
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return fit(encoder, store, chosen, config, on_progress)


def _fit_linear(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    feature_ND = embed(encoder, store, chosen.rows, lambda done, total: on_progress("embed", done, total))
    train_N = chosen.split == "train"
    probe = fit_linear_probe(
        feature_ND[train_N], chosen.taught[train_N], chosen.patient[train_N], names=chosen.names, seed=config.seed
    )
    # The probe's standardisation goes into the layer, so that the network takes features as they are.
    weight_LD = (probe.coefficient_DC * probe.scale_D[:, None]).T
    bias_L = probe.intercept_C - weight_LD @ probe.mean_D
    head = {"head.weight": torch.tensor(weight_LD).float(), "head.bias": torch.tensor(bias_L).float()}
    shape = HeadShape("linear", chosen.task, encoder.feature_count, len(chosen.names))
    scores = _score_splits(chosen, lambda places: probe.predict_scores(feature_ND[places]))
    return Fitted(shape, _name_encoder(encoder.module) | head, scores, probe.notes)


def _score_splits(chosen: LabelledRows, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Score the val and the test films by their places."""
    places = {split: np.flatnonzero(chosen.split == split) for split in ("val", "test")}
    nothing = np.empty((0, len(chosen.names)))
    return {split: score(those) if len(those) else nothing for split, those in places.items()}


def _name_encoder(module: nn.Module) -> dict[str, Tensor]:
    return {f"encoder.{name}": tensor for name, tensor in module.state_dict().items()}


def _build_shape(encoder: Encoder, chosen: LabelledRows, config: FinetuneConfig) -> HeadShape:
    name: HeadName = config.mode if config.mode in ("mlp", "attentive") else "linear"
    third = chosen.task == "multilabel" and bool((chosen.target_NL == UNCERTAIN).any())
    return HeadShape(name, chosen.task, encoder.feature_count, len(chosen.names), third)


@dataclass(frozen=True)
class _Parts:
    """Places among the chosen rows: films that teach, and films that say when to stop."""

    train: np.ndarray
    held_out: np.ndarray
    name: str


def _divide(chosen: LabelledRows, seed: int) -> _Parts:
    """Hold out the val films; where there is none, a fifth of the training patients if they are not too few."""
    train, val = (np.flatnonzero(chosen.split == split) for split in ("train", "val"))
    if len(val):
        return _Parts(train, val, f"{len(val)} val films")
    if len(np.unique(chosen.patient[train])) < FEWEST_PATIENTS:
        return _Parts(train, val, "")
    fold_N = assign_folds(chosen.patient[train], chosen.label[train], FOLDS, seed)
    held_out = train[fold_N == 0]
    return _Parts(train[fold_N != 0], held_out, f"{len(held_out)} training films held out, as there is no val film")


def _fit_head(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    """Train a head on features that are computed once; feature maps lie in a file, not in memory."""
    parts, shape = _divide(chosen, config.seed), _build_shape(encoder, chosen, config)
    with tempfile.TemporaryDirectory(prefix="chess-cxr-features-") as folder:
        if config.mode == "attentive":
            feature_N = _cache_maps(encoder, store, chosen.rows, Path(folder) / "maps", on_progress)
        else:
            feature_N = embed(encoder, store, chosen.rows, lambda done, total: on_progress("embed", done, total))

        def take(places: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(feature_N[places], np.float32)).to(encoder.device)

        balance = build_balance(torch.from_numpy(chosen.target_NL[parts.train]), chosen.task, config.imbalance)
        task = Classify(None, shape, balance.to(encoder.device)).to(encoder.device)
        for module in task.modules():
            if isinstance(module, Standardise):
                module.learn(take(parts.train))
        plan = plan_training(config, len(parts.train))
        batches = _draw_cached(chosen, parts.train, plan, take)
        notes = _train(task, batches, build_optimizers(task, plan), plan, chosen, parts, config, take, on_progress)
        scores = _score_splits(chosen, lambda places: _score(task, places, take))
    head = dict(task.state_dict())
    return Fitted(shape, _name_encoder(encoder.module) | head, scores, (*notes, *_tell_rare(chosen, parts.train)))


def _cache_maps(encoder: Encoder, store: Store, rows: np.ndarray, path: Path, on_progress: OnProgress) -> np.ndarray:
    """Write every film's last feature map to a file, float16 [N, T, D]."""
    encoder.module.eval()
    maps: np.ndarray | None = None
    for start in range(0, len(rows), FILMS_AT_ONCE):
        film_BCSS = _prepare(encoder, store, rows[start : start + FILMS_AT_ONCE])
        with torch.inference_mode():
            part = extract_map(encoder.module, film_BCSS).half().cpu().numpy()
        if maps is None:
            maps = np.lib.format.open_memmap(path, "w+", np.float16, (len(rows), *part.shape[1:]))
        maps[start : start + len(part)] = part
        on_progress("embed", start + len(part), len(rows))
    assert maps is not None
    return maps


def _prepare(encoder: Encoder, store: Store, rows: np.ndarray) -> Tensor:
    films = store.read_films(rows)
    film_BCSS = torch.stack([encoder.contract.prepare(film.astype(np.float32) / 255) for film in films])
    return film_BCSS.to(encoder.device, memory_format=torch.channels_last)


def _draw_cached(
    chosen: LabelledRows, train_N: np.ndarray, plan: TrainingConfig, take: Callable[[np.ndarray], Tensor]
) -> Iterator[LabelledBatch]:
    for step in range(plan.steps):
        places = train_N[compute_batch(len(train_N), plan.batch, step, plan.seed)[0]]
        feature = take(places)
        yield LabelledBatch(feature, torch.from_numpy(chosen.target_NL[places]).float().to(feature.device))


def _fit_full(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    """Train all weights, lower stages more slowly, on augmented films."""
    encoder = replace(encoder, module=copy.deepcopy(encoder.module))
    parts, shape = _divide(chosen, config.seed), _build_shape(encoder, chosen, config)
    plan = plan_training(config, len(parts.train))
    balance = build_balance(torch.from_numpy(chosen.target_NL[parts.train]), chosen.task, config.imbalance)
    task = Classify(encoder.module, shape, balance.to(encoder.device)).to(encoder.device)
    groups = {"classifier": group_by_layer(task, config)}

    def take(places: np.ndarray) -> Tensor:
        return _prepare(encoder, store, chosen.rows[places])

    batches = _draw_batches(encoder, store, chosen, parts.train, plan)
    notes = _train(task, batches, build_optimizers(task, plan, groups), plan, chosen, parts, config, take, on_progress)
    scores = _score_splits(chosen, lambda places: _score(task, places, take))
    return Fitted(shape, dict(task.state_dict()), scores, (*notes, *_tell_rare(chosen, parts.train)))


def group_by_layer(task: Classify, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return an optimiser's groups: each stage of the encoder learns at `layer_decay` of the one above, the head fully.

    What has one dimension (norms, biases) has no weight decay, as in timm, whose stages these are.
    """
    assert task.encoder is not None
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        task.encoder, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    named = [
        {"params": g["params"], "weight_decay": g["weight_decay"], "rate_scale": g["lr_scale"] * config.layer_decay}
        for g in groups
    ]
    return [*named, {"params": list(task.head.parameters()), "weight_decay": config.weight_decay, "rate_scale": 1.0}]


def _draw_batches(
    encoder: Encoder, store: Store, chosen: LabelledRows, train_N: np.ndarray, plan: TrainingConfig
) -> Iterator[LabelledBatch]:
    views = replace(VIEWS, size=encoder.contract.size)
    for step in range(plan.steps):
        film_B, position_B = compute_batch(len(train_N), plan.batch, step, plan.seed)
        places = train_N[film_B]
        films, target_BL = store.read_films(chosen.rows[places]), chosen.target_NL[places]
        batch = draw_labelled_batch(films, target_BL, position_B.tolist(), plan.seed, views, encoder.contract)
        yield LabelledBatch(batch.film_BCSS.to(encoder.device), batch.label_BL.to(encoder.device))


def _train(
    task: Classify,
    batches: Iterator[LabelledBatch],
    optimizers: Mapping[str, torch.optim.Optimizer],
    plan: TrainingConfig,
    chosen: LabelledRows,
    parts: _Parts,
    config: FinetuneConfig,
    take: Callable[[np.ndarray], Tensor],
    on_progress: OnProgress,
) -> tuple[str, ...]:
    """Train until held-out films stop to gain, leave the best moment's weights in `task`, and say which that was."""
    best_loss, best_step, best_state, worse = math.inf, plan.steps, dict[str, Tensor](), 0
    every = max(1, plan.steps // CHECKS)
    task.train()
    for report in train(task, batches, optimizers, plan):
        on_progress("finetune", report.step, plan.steps)
        if not len(parts.held_out) or (report.step % every and report.step < plan.steps):
            continue
        loss = _compute_loss(task, chosen, parts.held_out, take)
        task.train()
        worse += 1
        if loss < best_loss:
            best_loss, best_step, worse = loss, report.step, 0
            best_state = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        if config.patience and worse >= config.patience:
            break
    if best_state:
        task.load_state_dict(best_state)
    kept = f"smallest loss on {parts.name}" if best_state else "no film to choose by"
    return (f"weights of step {best_step} of {plan.steps} ({kept})",)


@torch.no_grad()
def _compute_loss(
    task: Classify, chosen: LabelledRows, places: np.ndarray, take: Callable[[np.ndarray], Tensor]
) -> float:
    """Return what is minimised, on what is known of some films; uncertain labels do not judge."""
    task.eval()
    losses = []
    for part in np.array_split(places, -(-len(places) // FILMS_AT_ONCE)):
        score = task(take(part))
        label = chosen.label_NL[part]
        loss = compute_label_loss(score, torch.from_numpy(label).float().to(score.device), chosen.task, task.balance)
        losses.append((float(loss), int((~np.isnan(label)).sum())))
    return sum(loss * known for loss, known in losses) / max(1, sum(known for _, known in losses))


@torch.no_grad()
def _score(task: Classify, places: np.ndarray, take: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    task.eval()
    parts = np.array_split(places, -(-len(places) // FILMS_AT_ONCE))
    return np.concatenate([compute_probabilities(task(take(part)), task.shape).cpu().numpy() for part in parts])


def _tell_rare(chosen: LabelledRows, train_N: np.ndarray) -> tuple[str, ...]:
    """Say which labels no training film has."""
    target_NL = chosen.target_NL[train_N]
    missing = [name for name, target_N in zip(chosen.names, target_NL.T, strict=True) if not (target_N > 0).any()]
    return (f"no training film has {', '.join(missing)}: its scores mean nothing",) if missing else ()
