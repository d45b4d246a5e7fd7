"""Losses of classifiers for all kinds of labels, for unknown and uncertain labels, and for imbalanced classes.

Shapes: B films of a batch, N training films, L labels, K ordered classes.  Targets are float: 0 … 1, NaN if unknown,
`UNCERTAIN` if that is a class of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from chess_cxr.records import UNCERTAIN, UsageError
from chess_cxr.tasks.classify.config import Imbalance

Task = Literal["multiclass", "multilabel", "ordinal"]
FOCUS = 2.0  # gamma of the focal loss (Lin et al. 2017)
OVERLAP = 0.999  # beta of the effective number of samples (Cui et al. 2019)


@dataclass(frozen=True)
class Balance:
    """How a loss treats imbalanced classes.

    positive_L, negative_L: weights of films with and without a label; classes use only the first.
    shift_L: added to scores during training.  focal: whether easy films count less.
    """

    positive_L: Tensor
    negative_L: Tensor
    shift_L: Tensor
    focal: bool = False

    def to(self, device: torch.device) -> Balance:
        """Move to a device."""
        return Balance(self.positive_L.to(device), self.negative_L.to(device), self.shift_L.to(device), self.focal)


def build_balance(target_NL: Tensor, task: Task, imbalance: Imbalance) -> Balance:
    """Compute the treatment of imbalanced classes from the training targets.

    inverse: weights of 1 / films.  effective: weights by the effective number of films.  focal: films with sure
    predictions count less.  logit_adjustment: the classes' log prior is added to scores during training (Menon et al.
    2021), so that the scores themselves express evidence alone.  A class without films has no weight.
    Raises UsageError if the task does not support it.
    """
    if task == "ordinal" and imbalance in ("focal", "logit_adjustment"):
        raise UsageError(f"an ordinal task has no imbalance {imbalance}; choose none, inverse or effective")
    known_NL = ~target_NL.isnan() & (target_NL != UNCERTAIN)
    with_L = torch.where(known_NL, target_NL, 0).sum(0).double()
    without_L = torch.where(known_NL, 1 - target_NL, 0).sum(0).double()
    ones_L = torch.ones_like(with_L)
    positive_L, negative_L, shift_L = ones_L, ones_L, torch.zeros_like(with_L)
    if imbalance in ("inverse", "effective"):
        weigh = _weigh_inverse if imbalance == "inverse" else _weigh_effective
        if task == "multilabel":
            weight_2L = weigh(torch.stack([with_L, without_L]))
            positive_L, negative_L = weight_2L
        else:
            positive_L = weigh(with_L)
    elif imbalance == "logit_adjustment":
        total = with_L.sum() if task == "multiclass" else with_L + without_L
        prior_L = ((with_L + 0.5) / (total + 1)).clamp(1e-6, 1 - 1e-6)
        shift_L = prior_L.log() if task == "multiclass" else prior_L.logit()
    return Balance(positive_L.float(), negative_L.float(), shift_L.float(), imbalance == "focal")


def _weigh_inverse(count_CL: Tensor) -> Tensor:
    weight_CL = torch.where(count_CL > 0, 1 / count_CL.clamp_min(1e-9), 0)
    return _scale(weight_CL, count_CL)


def _weigh_effective(count_CL: Tensor) -> Tensor:
    effective_CL = (1 - OVERLAP**count_CL) / (1 - OVERLAP)
    return _scale(torch.where(count_CL > 0, 1 / effective_CL.clamp_min(1e-9), 0), count_CL)


def _scale(weight_CL: Tensor, count_CL: Tensor) -> Tensor:
    """Scale weights so that films have a mean weight of 1 in each column."""
    weighted_L = (weight_CL * count_CL).sum(0)
    return weight_CL * torch.where(weighted_L > 0, count_CL.sum(0) / weighted_L.clamp_min(1e-9), 0)


def compute_label_loss(score: Tensor, target_BL: Tensor, task: Task, balance: Balance | None = None) -> Tensor:
    """Return the mean loss over known labels, in nats, scalar.

    multiclass: cross-entropy of score [B, L], target one-hot, over films whose class is known.  multilabel: binary
    cross-entropy of score [B, L], over known entries; of score [B, L, 3] (absent, present, uncertain), in which an
    entry `UNCERTAIN` teaches the third class.  ordinal: mean binary cross-entropy of score [B, K - 1] over the
    thresholds.
    balance: treatment of imbalanced classes; None weighs all films alike.
    The loss of a batch without known labels is 0, with gradients of 0.
    """
    total, weight = sum_label_losses(score, target_BL, task, balance)
    return total / weight.clamp_min(1e-9)


def sum_label_losses(
    score: Tensor, target_BL: Tensor, task: Task, balance: Balance | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sums of losses and of weights over known labels; `compute_label_loss` is their quotient."""
    if task == "multilabel":
        loss_BL, known_BL = _compute_finding_losses(score, target_BL, balance)
        if not known_BL.any():
            return 0 * torch.where(score.isfinite(), score, 0).sum(), score.new_zeros(())
        return loss_BL[known_BL].sum(), known_BL.sum().to(score.dtype)
    known_B = ~target_BL.isnan().any(1)
    if not known_B.any():
        return 0 * score.sum(), score.new_zeros(())
    class_B = target_BL[known_B].argmax(1)
    compute = _compute_class_losses if task == "multiclass" else _compute_order_losses
    weight_B = torch.ones_like(class_B, dtype=score.dtype) if balance is None else balance.positive_L[class_B]
    loss_B = compute(score[known_B], class_B, balance)
    return (weight_B * loss_B).sum(), weight_B.sum()


def _compute_class_losses(score_BL: Tensor, class_B: Tensor, balance: Balance | None) -> Tensor:
    loss_B = F.cross_entropy(score_BL if balance is None else score_BL + balance.shift_L, class_B, reduction="none")
    return (-torch.expm1(-loss_B)) ** FOCUS * loss_B if balance and balance.focal else loss_B


def _compute_order_losses(score_BK: Tensor, class_B: Tensor, _balance: Balance | None) -> Tensor:
    above_BK = (class_B[:, None] > torch.arange(score_BK.shape[1], device=class_B.device)).to(score_BK.dtype)
    return F.binary_cross_entropy_with_logits(score_BK, above_BK, reduction="none").mean(1)


def _compute_finding_losses(score: Tensor, target_BL: Tensor, balance: Balance | None) -> tuple[Tensor, Tensor]:
    """Return the loss of every entry, and which entries are known."""
    has_third = score.ndim == 3
    uncertain_BL = target_BL == UNCERTAIN
    known_BL = ~target_BL.isnan() if has_third else ~target_BL.isnan() & ~uncertain_BL
    wanted_BL = torch.where(known_BL & ~uncertain_BL, target_BL, 0).to(score.dtype)
    if has_third:
        chance_BL3 = score.log_softmax(2)
        absent_BL, present_BL, third_BL = chance_BL3.unbind(2)
        loss_BL = -(wanted_BL * present_BL + (1 - wanted_BL) * absent_BL)
        loss_BL = torch.where(uncertain_BL, -third_BL, loss_BL)
    else:
        shifted = score if balance is None else score + balance.shift_L
        loss_BL = F.binary_cross_entropy_with_logits(shifted, wanted_BL, reduction="none")
    if balance is None:
        return loss_BL, known_BL
    if balance.focal:
        loss_BL = (-torch.expm1(-loss_BL)).clamp_min(0) ** FOCUS * loss_BL
    weight_BL = wanted_BL * balance.positive_L + (1 - wanted_BL) * balance.negative_L
    return torch.where(uncertain_BL, 1.0, weight_BL) * loss_BL, known_BL
