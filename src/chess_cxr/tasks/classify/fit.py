"""What all modes of training a classifier share, and the mode without steps: logistic regression on features.

Shapes: M films of a split, N films, D features, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from chess_cxr.encoders.embed import embed
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.records import UNCERTAIN, OnProgress, UsageError
from chess_cxr.store import Store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.films import FILMS_AT_ONCE
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.losses import compute_label_loss
from chess_cxr.tasks.classify.objective import Classify, compute_probabilities
from chess_cxr.tasks.classify.shape import MOST_QUERIES, HeadName, HeadShape
from chess_cxr.training.loop import TrainingConfig, check_training_config

CHECKS = 20  # how often held-out films are scored during training
FOLDS = 5  # of the training patients; one is held out if there is no val film
FEWEST_PATIENTS = 10
RATES = {"mlp": 1e-3, "attentive": 1e-3, "full": 3e-4}
TakeInput = Callable[[np.ndarray], Tensor]  # from places of the chosen rows to inputs of the classifier


@dataclass(frozen=True)
class Fitted:
    """A trained classifier: its shape, its tensors, and its scores of val and test films.

    scores: by split, probabilities [M, L].  notes: what a reader of the results should know.
    """

    shape: HeadShape
    tensors: Mapping[str, Tensor]
    scores: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = field(default=())


def check_finetuning(config: FinetuneConfig, chosen: LabelledRows) -> None:
    """Raise `UsageError` if a classifier cannot be trained on these labels in this way."""
    if config.seed < 0:
        raise UsageError("seed must be 0 or more")
    if config.mode != "linear":
        if config.patience < 0 or not 0 < config.layer_decay <= 1:
            raise UsageError("fine-tuning needs a patience of 0 or more and a layer_decay above 0, up to 1")
        if not 1 <= config.queries <= MOST_QUERIES:
            raise UsageError(f"an attentive head needs 1 to {MOST_QUERIES} queries")
        check_training_config(plan_training(config, int((chosen.split == "train").sum())))
        return
    if config.imbalance != "none" or chosen.task == "ordinal":
        asked = "--imbalance" if config.imbalance != "none" else "ordinal task"
        raise UsageError(f"the linear probe has no {asked}; choose --mode mlp, attentive or full")
    target_NL = chosen.target_NL[chosen.split == "train"]
    if not np.isin(target_NL[~np.isnan(target_NL)], (0, 1)).all():
        raise UsageError("the linear probe takes labels of 0 and 1 only; choose --mode mlp, attentive or full")


def plan_training(config: FinetuneConfig, films: int) -> TrainingConfig:
    """Return the optimisation of a classifier that is trained by steps."""
    return TrainingConfig(
        steps=config.steps,
        batch=max(2, min(config.batch, films)),
        optimizer="adamw",
        learning_rate=RATES.get(config.mode, 1e-3) if config.learning_rate is None else config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=0.1,
        precision=config.precision,
        sync_batch_norm=True,
        seed=config.seed,
        loader_threads=config.threads,
        log_every=max(1, min(20, config.steps)),
        probe_every=max(1, config.steps // CHECKS),
        checkpoint_every=config.checkpoint_every,
    )


def fit_linear(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    """Fit a logistic regression to features of the train split."""
    feature_ND = embed(encoder, store, chosen.rows, lambda done, total: on_progress("embed", done, total))
    train_N = chosen.split == "train"
    probe = fit_linear_probe(
        feature_ND[train_N], chosen.taught[train_N], chosen.patient[train_N], names=chosen.names, seed=config.seed
    )
    weight_LD, bias_L = probe.fold_scaling()  # so that the network takes raw features
    head = {"head.weight": torch.tensor(weight_LD).float(), "head.bias": torch.tensor(bias_L).float()}
    shape = HeadShape("linear", chosen.task, encoder.feature_count, len(chosen.names))
    scores = score_splits(chosen, lambda places: probe.predict_scores(feature_ND[places]))
    return Fitted(shape, name_encoder(encoder.module) | head, scores, probe.notes)


def score_splits(chosen: LabelledRows, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Score the val and the test films; score: takes places of the chosen rows."""
    places = {split: np.flatnonzero(chosen.split == split) for split in ("val", "test")}
    nothing = np.empty((0, len(chosen.names)))
    return {split: score(those) if len(those) else nothing for split, those in places.items()}


def name_encoder(module: nn.Module) -> dict[str, Tensor]:
    """Return an encoder's tensors under their names in a classifier."""
    return {f"encoder.{name}": tensor for name, tensor in module.state_dict().items()}


def build_shape(encoder: Encoder, chosen: LabelledRows, config: FinetuneConfig) -> HeadShape:
    """Return the shape of the configured head."""
    name: HeadName = config.mode if config.mode in ("mlp", "attentive") else "linear"
    third = chosen.task == "multilabel" and bool((chosen.target_NL == UNCERTAIN).any())
    queries = config.queries if name == "attentive" else 1
    return HeadShape(name, chosen.task, encoder.feature_count, len(chosen.names), third, queries)


@dataclass(frozen=True)
class Parts:
    """Indices of the training films, and of the held-out films used for early stopping.

    name: description of the held-out films, "" for none.
    """

    train: np.ndarray
    held_out: np.ndarray
    name: str


def divide(chosen: LabelledRows, seed: int) -> Parts:
    """Hold out the val films or, if there are none, a fifth of 10 or more training patients."""
    train, val = (np.flatnonzero(chosen.split == split) for split in ("train", "val"))
    if len(val):
        return Parts(train, val, f"{len(val)} val films")
    if len(np.unique(chosen.patient[train])) < FEWEST_PATIENTS:
        return Parts(train, val, "")
    fold_N = assign_folds(chosen.patient[train], chosen.label[train], FOLDS, seed)
    held_out = train[fold_N == 0]
    return Parts(train[fold_N != 0], held_out, f"{len(held_out)} training films held out, as there is no val film")


def group_by_layer(task: Classify, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return an optimiser's groups: each stage of the encoder learns at `layer_decay` of the one above, the head fully.

    Parameters of one dimension (norms, biases) have no weight decay, as in timm, which also defines the stages.
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


@torch.no_grad()
def compute_loss(task: Classify, chosen: LabelledRows, places: np.ndarray, take: TakeInput) -> float:
    """Return the loss on the known labels of some films; uncertain labels do not count."""
    task.eval()
    losses = []
    for part in np.array_split(places, -(-len(places) // FILMS_AT_ONCE)):
        score = task(take(part))
        label = chosen.label_NL[part]
        loss = compute_label_loss(score, torch.from_numpy(label).float().to(score.device), chosen.task, task.balance)
        losses.append((float(loss), int((~np.isnan(label)).sum())))
    return sum(loss * known for loss, known in losses) / max(1, sum(known for _, known in losses))


@torch.no_grad()
def score_films(task: Classify, places: np.ndarray, take: TakeInput) -> np.ndarray:
    """Return the probabilities of some films, [M, L]."""
    task.eval()
    parts = np.array_split(places, -(-len(places) // FILMS_AT_ONCE))
    return np.concatenate([compute_probabilities(task(take(part)), task.shape).cpu().numpy() for part in parts])


def tell_rare(chosen: LabelledRows, train_N: np.ndarray) -> tuple[str, ...]:
    """Name the labels that no training film has."""
    target_NL = chosen.target_NL[train_N]
    missing = [name for name, target_N in zip(chosen.names, target_NL.T, strict=True) if not (target_N > 0).any()]
    return (f"no training film has {', '.join(missing)}: its scores mean nothing",) if missing else ()
