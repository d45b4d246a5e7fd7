"""What the encoder is worth while it trains: kNN on labelled films, and signs of collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from chess_cxr.store import Store, decode_stored
from chess_cxr.views import resize_film

NEIGHBOURS = 20
FEWEST_CASES = 10


@dataclass(frozen=True)
class LabelledFilms:
    """Films that no training step uses for its labels: a bank to look up, and queries of the val split.

    film_N1HW: uint8.  label_NL: 1, 0 or NaN.  is_query_N: bool.
    """

    film_N1HW: Tensor
    label_NL: np.ndarray
    is_query_N: np.ndarray
    label_names: tuple[str, ...]


def read_labelled_films(stores: Sequence[Store], size: int, most: int = 1500, seed: int = 0) -> LabelledFilms | None:
    """Read up to `most` labelled films, two thirds train and one third val; None where no label can be probed.

    A label counts where train and val each hold at least `FEWEST_CASES` films with it and without it.
    """
    names = tuple(dict.fromkeys(name for store in stores for name in store.label_names))
    rng = np.random.default_rng(seed)
    films, labels, queries = [], [], []
    for split, share in (("train", 2 * most // 3), ("val", most // 3)):
        rows = [(store, row) for store in stores for row in _find_labelled_rows(store, split)]
        chosen = rng.permutation(len(rows))[:share]
        for store, row in (rows[index] for index in sorted(chosen)):
            films.append(resize_film(decode_stored(store.read_jpegs([row])[0], size), size))
            labels.append([float(store.films[name].iloc[row]) if name in store.label_names else np.nan for name in names])
            queries.append(split == "val")
    if not films or not names:
        return None
    label_NL, is_query_N = np.array(labels), np.array(queries)
    probed = [index for index in range(len(names)) if _can_probe(label_NL[:, index], is_query_N)]
    if not probed:
        return None
    film_N1HW = torch.from_numpy(np.stack(films)[:, None])
    return LabelledFilms(film_N1HW, label_NL[:, probed], is_query_N, tuple(names[index] for index in probed))


def _find_labelled_rows(store: Store, split: str) -> list[int]:
    if not store.label_names:
        return []
    known = store.films[store.label_names].notna().any(axis=1) & (store.films["split"] == split)
    return [int(row) for row in np.flatnonzero(known.to_numpy())]


def _can_probe(label_N: np.ndarray, is_query_N: np.ndarray) -> bool:
    return all((label_N[part] == value).sum() >= FEWEST_CASES for part in (is_query_N, ~is_query_N) for value in (0, 1))


@torch.no_grad()
def embed_films(encoder: nn.Module, film_N1HW: Tensor, mean: float, std: float, batch: int = 128) -> Tensor:
    """Embed uint8 films with the encoder in evaluation mode, float32 [N, D] on the CPU; its mode is put back."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    parts = [encoder((films.to(device).float() / 255 - mean) / std).float().cpu() for films in film_N1HW.split(batch)]
    encoder.train(training)
    return torch.cat(parts)


def compute_knn_aurocs(feature_ND: Tensor, films: LabelledFilms, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Score each query by the share of its nearest labelled neighbours that carry the label; AUROC a label."""
    feature_ND = torch.nn.functional.normalize(feature_ND - feature_ND.mean(0), dim=1)
    aurocs = {}
    for index, name in enumerate(films.label_names):
        label_N = films.label_NL[:, index]
        bank = np.flatnonzero(~films.is_query_N & ~np.isnan(label_N))
        query = np.flatnonzero(films.is_query_N & ~np.isnan(label_N))
        similarity_QM = feature_ND[query] @ feature_ND[bank].T
        near = similarity_QM.topk(min(neighbours, len(bank)), dim=1)
        weight = (near.values / 0.1).exp().numpy()
        score_Q = (weight * label_N[bank][near.indices.numpy()]).sum(1) / weight.sum(1)
        aurocs[name] = float(roc_auc_score(label_N[query], score_Q))
    return aurocs


def compute_effective_rank(feature_ND: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, 1 … min(N, D)."""
    singular = torch.linalg.svdvals(feature_ND.double())
    share = singular / singular.sum() + 1e-7
    return float((-(share * share.log()).sum()).exp())


def probe_encoder(encoder: nn.Module, films: LabelledFilms, mean: float, std: float) -> dict[str, float]:
    """Measure the encoder: kNN AUROC per label and mean (val queries), effective rank, feature spread."""
    feature_ND = embed_films(encoder, films.film_N1HW, mean, std)
    if not bool(torch.isfinite(feature_ND).all()):
        return {"feature_std": float("nan")}
    aurocs = compute_knn_aurocs(feature_ND, films)
    spread = torch.nn.functional.normalize(feature_ND, dim=1).std(0).mean() * feature_ND.shape[1] ** 0.5
    return {
        "knn_auroc": float(np.mean(list(aurocs.values()))),
        **{f"knn_auroc/{name}": value for name, value in aurocs.items()},
        "effective_rank": compute_effective_rank(feature_ND),
        "feature_std": float(spread),
    }
