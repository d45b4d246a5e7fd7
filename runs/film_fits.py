"""The fits of runs/fit_film_classifier.py: polarity and kind, from distorted pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from film_pictures import EARLIER, Picture, distort, widen
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from chess_cxr.ingest.film_classifier import (
    KINDS,
    FilmClassifier,
    compute_kind_features,
    compute_thumbnail,
    shrink_ranks,
)

POLARITY_C = 2e-3  # inverse strength of the ridge penalty
NETWORKS, HIDDEN, EPOCHS, BATCH = 2, 16, 6, 256  # networks whose logits are averaged, and how they are fitted
RATE, DECAY = 2e-3, 0.05
UPRIGHT = slice(512, 768)  # the features that change their sign with the polarity


@dataclass(frozen=True)
class Sample:
    """One distorted picture as the classifiers see it: features as if bone were bright, ranks at 32 x 32."""

    feature_F: np.ndarray
    rank_P: np.ndarray
    picture: Picture


def draw_samples(pictures: Iterable[Picture], draws: int, rng: np.random.Generator) -> list[Sample]:
    """Draw each picture `draws` times, first as it is, then distorted; films are also shown in wider fields."""
    upright_P = np.zeros(32 * 32, np.float32)  # a log odds of 0 leaves the ranks as they are
    samples = []
    for picture in pictures:
        for draw in range(draws):
            pixels = picture.pixels
            if draw:
                pixels = widen(pixels, rng) if picture.kind == 0 and rng.random() < 0.7 else pixels
                pixels = distort(pixels, rng)
            rank_YX = compute_thumbnail(pixels).rank_YX
            feature_F = compute_kind_features(rank_YX, upright_P)
            samples.append(Sample(feature_F, shrink_ranks(rank_YX, 32).ravel(), picture))
    return samples


def balance(names: np.ndarray) -> np.ndarray:
    """Return weights, mean 1, with which every name counts the same."""
    found, at, counts = np.unique(names, return_inverse=True, return_counts=True)
    weights: np.ndarray = len(names) / len(found) / counts[at]
    return weights


@dataclass(frozen=True)
class PolarityFitter:
    """Ranks at 32 x 32 of distorted films, none of them in a wider field, for fits that leave some of them out."""

    rank_BP: np.ndarray
    source_B: np.ndarray
    part_B: np.ndarray

    @classmethod
    def of(cls, films: Sequence[Picture], draws: int, rng: np.random.Generator) -> "PolarityFitter":
        """Distort each film `draws` times."""
        ranks = [compute_thumbnail(distort(film.pixels, rng)).rank_YX for film in films for _ in range(draws)]
        columns = (np.repeat([getattr(film, name) for film in films], draws) for name in ("source", "part"))
        return cls(np.stack([shrink_ranks(rank_YX, 32).ravel() for rank_YX in ranks]), *columns)

    def fit(self, kept_B: np.ndarray) -> np.ndarray:
        """Fit weights [P] that tell a film from its negative; each earlier set counts the same, the later ones as one.

        A film and its negative have the same loss, so every second film is fitted as its negative.
        """
        rank_BP = self.rank_BP[kept_B]
        bright = np.arange(len(rank_BP)) % 2
        model = LogisticRegression(C=2 * POLARITY_C, fit_intercept=False, max_iter=500)
        source_B = self.source_B[kept_B]
        weight_B = balance(np.where(np.isin(source_B, EARLIER), source_B, "later"))
        model.fit(rank_BP * (2 * bright - 1)[:, None], bright, sample_weight=weight_B)
        return model.coef_[0].astype(np.float32)


@dataclass(frozen=True)
class Scores:
    """Log odds of bright bone, probability of a lateral film, of no chest film; [N] each."""

    polarity: np.ndarray
    lateral: np.ndarray
    not_chest: np.ndarray


@dataclass(frozen=True)
class KindFitter:
    """Features of every sample, computed once, for fits that leave some of them out."""

    feature_BF: np.ndarray
    rank_BP: np.ndarray
    kind_B: np.ndarray
    source_B: np.ndarray
    group_B: np.ndarray
    part_B: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "KindFitter":
        """Stack samples."""
        stacked = (np.stack([getattr(s, name) for s in samples]) for name in ("feature_F", "rank_P"))
        pictures = [s.picture for s in samples]
        columns = (np.array([getattr(p, name) for p in pictures]) for name in ("kind", "source", "group", "part"))
        return cls(*stacked, *columns)

    def fit(self, kept_B: np.ndarray, polarity_P: np.ndarray) -> FilmClassifier:
        """Tell frontal films, lateral films and others apart; each kind, and each source in it, counts the same."""
        kind_B, source_B = self.kind_B[kept_B], self.source_B[kept_B]
        feature_BF = self._turn(self.rank_BP @ polarity_P)[kept_B]
        weight_B = np.zeros(len(kind_B), np.float32)
        for kind in range(len(KINDS)):
            of_kind = kind_B == kind
            weight_B[of_kind] = balance(source_B[of_kind]) * len(kind_B) / len(KINDS) / of_kind.sum()
        center_F, scale_F = feature_BF[kind_B == 0].mean(0), feature_BF[kind_B == 0].std(0) + 1e-3
        hidden_HF, hidden_H, kind_NCH, kind_NC = _fit_networks((feature_BF - center_F) / scale_F, kind_B, weight_B)
        hidden_HF = (hidden_HF / scale_F).astype(np.float16)
        return FilmClassifier(
            polarity_P,
            hidden_HF,
            hidden_H - hidden_HF.astype(np.float32) @ center_F,
            np.concatenate(list(kind_NCH), axis=1) / NETWORKS,
            kind_NC.mean(0),
        )

    def choose(self, kept_B: np.ndarray) -> "KindFitter":
        """Keep some of the samples."""
        return KindFitter(*(column[kept_B] for column in vars(self).values()))

    def score(self, classifier: FilmClassifier) -> "Scores":
        """Run both classifiers, as compute_polarity_logit and compute_kinds do, on all samples at once."""
        logit_B = self.rank_BP @ classifier.polarity_P
        hidden_BH = np.maximum(self._turn(logit_B) @ classifier.hidden_HF.astype(np.float32).T + classifier.hidden_H, 0)
        odds_BC = softmax(hidden_BH @ classifier.kind_CH.T + classifier.kind_C, axis=1)
        return Scores(logit_B, odds_BC[:, 1], odds_BC[:, 2])

    def _turn(self, logit_B: np.ndarray) -> np.ndarray:
        turned_BF = self.feature_BF.copy()
        turned_BF[:, UPRIGHT] *= np.where(logit_B >= 0, 1, -1)[:, None]
        return turned_BF


def _fit_networks(scaled_BF: np.ndarray, kind_B: np.ndarray, weight_B: np.ndarray) -> list[np.ndarray]:
    """Fit all networks side by side: they begin differently and see the same pictures."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order: the same weights on every machine of a kind
    features, kinds, weights = torch.from_numpy(scaled_BF), torch.from_numpy(kind_B), torch.from_numpy(weight_B)
    hidden = nn.Linear(features.shape[1], NETWORKS * HIDDEN)
    kind_NCH = nn.Parameter(torch.empty(NETWORKS, len(KINDS), HIDDEN).uniform_(-1, 1) / HIDDEN**0.5)
    kind_NC = nn.Parameter(torch.zeros(NETWORKS, len(KINDS)))
    parameters = [*hidden.parameters(), kind_NCH, kind_NC]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * (len(kinds) // BATCH))
    for _ in range(EPOCHS):
        order = torch.randperm(len(kinds))
        for start in range(0, len(kinds) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            hidden_BNH = hidden(features[chosen]).relu().unflatten(1, (NETWORKS, HIDDEN))
            logit_BCN = torch.einsum("bnh,nch->bcn", hidden_BNH, kind_NCH) + kind_NC.T
            target_BN = kinds[chosen, None].expand(-1, NETWORKS)
            loss_BN = nn.functional.cross_entropy(logit_BCN, target_BN, reduction="none")
            optimiser.zero_grad()
            (loss_BN.sum(1) * weights[chosen]).mean().backward()
            optimiser.step()
            schedule.step()
    return [value.detach().numpy() for value in parameters]
