"""Heads of classifiers: map an encoder's features to scores of labels.

Shapes: B films, D features, T places of a feature map, L labels, K ordered classes, O scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.tasks.classify.shape import HeadName

HIDDEN = 512
DROPOUT = 0.3


def build_head(name: HeadName, features: int, output: nn.Module, queries: int = 1) -> nn.Module:
    """Build a head whose last layer is `output`.

    linear, mlp: [B, D] -> scores.  attentive: [B, T, D] -> scores, see `AttentivePooling`.
    """
    if name == "linear":
        return output
    if name == "mlp":
        body = nn.Sequential(Standardise(features), nn.Linear(features, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT))
        return nn.Sequential(body, output)
    return nn.Sequential(AttentivePooling(features, queries), output)


def count_inputs(name: HeadName, features: int, queries: int = 1) -> int:
    """Return the number of inputs of a head's last layer."""
    return HIDDEN if name == "mlp" else features * (queries if name == "attentive" else 1)


def build_scores(features: int, count: int) -> nn.Linear:
    """Build a linear layer whose first scores are all 0, so that training starts from a guess without bias."""
    layer = nn.Linear(features, count)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Standardise(nn.Module):
    """Standardise by the mean and standard deviation of the training films' features; constant features become 0."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(features))
        self.register_buffer("scale_D", torch.ones(features))

    def learn(self, feature_ND: Tensor) -> None:
        """Take mean and standard deviation from features."""
        spread_D = feature_ND.std(0, unbiased=False)
        self.mean_D.copy_(feature_ND.mean(0))
        self.scale_D.copy_(torch.where(spread_D > 1e-6, 1 / spread_D.clamp_min(1e-6), torch.zeros(())))

    def forward(self, feature_BD: Tensor) -> Tensor:
        """Standardise [B, D]."""
        standard_BD: Tensor = (feature_BD - self.mean_D) * self.scale_D
        return standard_BD


class AttentivePooling(nn.Module):
    """Pool the places of a feature map with learned queries (attentive probe; Bardes et al. 2024, V-JEPA).

    Each query pools for itself, and the results stand side by side.
    """

    def __init__(self, features: int, queries: int = 1) -> None:
        super().__init__()
        heads = next(count for count in (8, 4, 2, 1) if features % count == 0)
        self.norm = nn.LayerNorm(features)
        self.query = nn.Parameter(torch.empty(1, queries, features))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)

    def forward(self, map_BTD: Tensor) -> Tensor:
        """Pool [B, T, D] to [B, queries x D]."""
        normed_BTD = self.norm(map_BTD)
        pooled_BQD: Tensor = self.attention(self.query.expand(map_BTD.shape[0], -1, -1), normed_BTD, normed_BTD)[0]
        return pooled_BQD.flatten(1)


class OrdinalScores(nn.Module):
    """CORAL (Cao, Mirjalili & Raschka 2020): one score and K - 1 thresholds that cannot cross.

    Returns [B, K - 1], the log odds that a film is above each class; for every film they fall from class to class.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        self.first = nn.Parameter(torch.zeros(1))
        self.gap = nn.Parameter(torch.zeros(classes - 2))

    def forward(self, feature_BD: Tensor) -> Tensor:
        """Score [B, D]."""
        threshold_K = torch.cat([self.first, self.first - F.softplus(self.gap).cumsum(0)])
        scores: Tensor = self.score(feature_BD) + threshold_K
        return scores


def extract_map(encoder: nn.Module, film_BCSS: Tensor) -> Tensor:
    """Return a timm encoder's last feature map as a sequence of places, [B, T, D]."""
    features: Tensor = encoder.forward_features(film_BCSS)  # type: ignore[operator]
    if features.ndim == 3:
        return features
    if getattr(encoder, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)
