"""DINO: self-distillation, in which a student predicts its teacher's scores of global views (Caron et al. 2021).

The teacher is the student's moving average.  Centring the teacher's scores over the batch, and sharpening them by a low
temperature, prevents collapse.

Shapes: G global and L local views, V of both kinds, B this rank's films, P prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, embed_local, take_views
from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.ranks import gather_ranks
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError
from chess_cxr.training.late import read_count

START_TEMPERATURE = 0.04


@dataclass(frozen=True)
class DINOConfig:
    """Hyperparameters of DINO; the defaults are the paper's, except for fewer prototypes, as there are fewer films.

    embedding: width of the head's bottleneck.  hidden: width of its two hidden layers.  prototypes: number of outputs.
    teacher_momentum: initial momentum of the teacher; it rises to 1 over the run.
    teacher_temperature: rises from 0.04 to this value over the share `teacher_warmup` of the run.
    centre_momentum: momentum of the centre.
    frozen_prototypes: share of the run at its beginning that keeps the prototypes frozen.
    """

    name: Literal["dino"] = field(default="dino", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 256
    hidden: int = 2048
    prototypes: int = 4096
    teacher_momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_warmup: float = 0.3
    centre_momentum: float = 0.9
    frozen_prototypes: float = 0.01


class DINOHead(nn.Module):
    """Three layers to a normalised bottleneck, and normalised prototypes: features [B, F] -> cosines [B, P]."""

    def __init__(self, features: int, config: DINOConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, config.hidden), nn.GELU(),
            nn.Linear(config.hidden, config.hidden), nn.GELU(),
            nn.Linear(config.hidden, config.embedding),
        )  # fmt: skip
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototype_PD = nn.Parameter(torch.randn(config.prototypes, config.embedding))

    def embed(self, feature_BF: Tensor) -> Tensor:
        """Return the normalised bottleneck, float32 [B, D]."""
        return normalise(self.layers(feature_BF))

    def forward(self, feature_BF: Tensor, frozen: bool = False) -> Tensor:
        """Return the cosines to all prototypes; frozen: without gradient to the prototypes."""
        embedded_BD = self.embed(feature_BF)
        prototype_PD = self.prototype_PD.detach() if frozen else self.prototype_PD
        with full_precision(embedded_BD.device):
            return embedded_BD @ F.normalize(prototype_PD, dim=1).T


def compute_dino_loss(
    student_VBP: Tensor, teacher_GBP: Tensor, centre_P: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy of student and teacher over pairs of different views of a film (DINO, algorithm 1).

    student_VBP: scores of all views, the G global ones first.  Returns the mean over pairs and films in nats, scalar.
    """
    with full_precision(student_VBP.device):
        target_GBP = F.softmax((teacher_GBP - centre_P) / teacher_temperature, dim=-1)
        said_VBP = F.log_softmax(student_VBP / student_temperature, dim=-1)
        terms = [
            -(target_BP * said_BP).sum(-1).mean()
            for of, target_BP in enumerate(target_GBP)
            for view, said_BP in enumerate(said_VBP)
            if view != of
        ]
        return torch.stack(terms).mean()


class DINO(EncoderMethod):
    """The student (encoder and head), the teacher and the centre of its scores.

    Signals include two entropies as shares of the largest possible one: teacher_entropy of single films, small if the
    teacher is certain; and used_entropy of the mean over films, near 1 if all prototypes are used and 0 if all films
    look the same.
    """

    centre_P: Tensor

    def __init__(self, config: DINOConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        if not (config.student_temperature > 0 and config.teacher_temperature > 0):
            raise UsageError("dino: temperatures must be above 0")
        if config.prototypes < 2 or not 0 <= config.centre_momentum < 1:
            raise UsageError("dino: prototypes must be 2 or more and centre_momentum 0 or more, below 1")
        if not (0 <= config.teacher_warmup <= 1 and 0 <= config.frozen_prototypes <= 1):
            raise UsageError("dino: teacher_warmup and frozen_prototypes must be shares of the run, from 0 to 1")
        super().__init__(config.architecture, encoder)
        self.config, self.steps = config, steps
        self.head = DINOHead(self.features, config)
        self.teacher_encoder, self.teacher_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.register_buffer("centre_P", torch.zeros(config.prototypes))
        self.momentum = MomentumSchedule(config.teacher_momentum, 1.0, steps)
        self._teacher_GBP: Tensor | None = None

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch of views."""
        views = take_views(batch)
        with torch.no_grad():
            features_GBF = [self.teacher_encoder(view) for view in views.global_GB1SS]
            teacher_GBP = torch.stack([self.teacher_head(feature) for feature in features_GBF])
            teacher_BD = self.teacher_head.embed(features_GBF[1])
        step = read_count(self.momentum, "step")
        frozen, temperature = step < self.config.frozen_prototypes * self.steps, self._compute_temperature(step)
        student_GBF = [self.encoder(view) for view in views.global_GB1SS]
        local_LBP = embed_local(views, lambda view: self.head(self.encoder(view), frozen))
        student_VBP = torch.stack([*(self.head(feature, frozen) for feature in student_GBF), *local_LBP])
        self._teacher_GBP = teacher_GBP
        self.measured = measure_pairs(self.head.embed(student_GBF[0]).detach(), teacher_BD)
        self.measured |= self._measure_entropy(teacher_GBP, temperature)
        student_temperature = self.config.student_temperature
        loss = compute_dino_loss(student_VBP, teacher_GBP, self.centre_P, student_temperature, temperature)
        yield "encoder", loss

    def _compute_temperature(self, step: int) -> float:
        warmup = self.config.teacher_warmup * self.steps
        if not warmup or self.config.teacher_temperature <= START_TEMPERATURE:
            return self.config.teacher_temperature
        share = min(step / warmup, 1.0)
        return START_TEMPERATURE + share * (self.config.teacher_temperature - START_TEMPERATURE)

    @torch.no_grad()
    def _measure_entropy(self, teacher_GBP: Tensor, temperature: float) -> dict[str, Tensor]:
        target_NP = F.softmax((teacher_GBP.flatten(0, 1) - self.centre_P) / temperature, dim=-1)
        largest = torch.log(torch.tensor(float(target_NP.shape[1])))

        def compute_entropy(share: Tensor) -> Tensor:
            return -(share * share.clamp_min(1e-12).log()).sum(-1)

        return {
            "teacher_entropy": compute_entropy(target_NP).mean() / largest,
            "used_entropy": compute_entropy(target_NP.mean(0)) / largest,
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student, and the centre towards the teacher's scores of all ranks' films."""
        follow((self.teacher_encoder, self.teacher_head), (self.encoder, self.head), self.momentum.advance())
        if self._teacher_GBP is not None:
            mean_P = gather_ranks(self._teacher_GBP.flatten(0, 1).mean(0, keepdim=True)).mean(0)
            self.centre_P.lerp_(mean_P, 1 - self.config.centre_momentum)
            self._teacher_GBP = None
