"""What the encoder is worth while it trains: kNN on labelled films, and signs of collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from chess_cxr.film_jpeg import decode_stored
from chess_cxr.store import Store, resolve_uncertain
from chess_cxr.views import resize_film

NEIGHBOURS = 20
FEWEST_CASES = 10


@dataclass(frozen=True)
class LabelledFilms:
    """Films that no training step uses for its labels: a bank to look up, and queries of the val split.

    film_N1HW: uint8.  label_NL: 1, 0 or NaN, L may be 0.  is_query_N: bool.
    """

    film_N1HW: Tensor
    label_NL: np.ndarray
    is_query_N: np.ndarray
    label_names: tuple[str, ...]


def read_labelled_films(stores: Sequence[Store], size: int, most: int = 1500, seed: int = 0) -> LabelledFilms | None:
    """Read up to `most` films, two thirds train (or without a split) and one third val; None where there is none.

    Films with labels come first.  A label is probed where train and val each hold at least `FEWEST_CASES` films
    with it and without it; without any such label the films still show collapse.
    """
    names = tuple(dict.fromkeys(name for store in stores for name in store.label_names))
    rng = np.random.default_rng(seed)
    films, labels, queries = [], [], []
    for splits, share in ((("train", ""), 2 * most // 3), (("val",), most // 3)):
        labelled = [(store, row) for store in stores for row in _find_rows(store, splits, labelled=True)]
        rows = labelled or [(store, row) for store in stores for row in _find_rows(store, splits, labelled=False)]
        chosen = rng.permutation(len(rows))[:share]
        for store, row in (rows[index] for index in sorted(chosen)):
            films.append(resize_film(decode_stored(store.read_jpegs([row])[0], size), size))
            known = dict(zip(store.label_names, store.films[store.label_names].iloc[row], strict=True))
            labels.append([float(known.get(name, np.nan)) for name in names])
            queries.append("val" in splits)
    if not films:
        return None
    label_NL, is_query_N = resolve_uncertain(np.array(labels)), np.array(queries)
    probed = [index for index in range(len(names)) if _can_probe(label_NL[:, index], is_query_N)]
    film_N1HW = torch.from_numpy(np.stack(films)[:, None])
    return LabelledFilms(film_N1HW, label_NL[:, probed], is_query_N, tuple(names[index] for index in probed))


def _find_rows(store: Store, splits: Sequence[str], labelled: bool) -> list[int]:
    found = store.films["split"].isin(list(splits))
    if labelled:
        found &= store.films[store.label_names].notna().any(axis=1)
    return [int(row) for row in np.flatnonzero(found.to_numpy())]


def _can_probe(label_N: np.ndarray, is_query_N: np.ndarray) -> bool:
    return all((label_N[part] == value).sum() >= FEWEST_CASES for part in (is_query_N, ~is_query_N) for value in (0, 1))


@torch.no_grad()
def embed_films(encoder: nn.Module, film_N1HW: Tensor, mean: float, std: float, batch: int = 128) -> Tensor:
    """Embed uint8 films with the encoder in evaluation mode, float32 [N, D] on the CPU; its modes are put back."""
    device = next(encoder.parameters()).device
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    batches = torch.split(film_N1HW, batch)
    parts = [encoder((films.to(device).float() / 255 - mean) / std).float().cpu() for films in batches]
    for module in training:  # one by one: part of an encoder may be frozen
        module.training = True
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
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(share * share.log()).sum()).exp())


def probe_encoder(encoder: nn.Module, films: LabelledFilms, mean: float, std: float) -> dict[str, float]:
    """Measure the encoder: kNN AUROC per label and mean (val queries), effective rank, feature spread.

    Without a label that can be probed there is no AUROC.
    """
    feature_ND = embed_films(encoder, films.film_N1HW, mean, std)
    if not bool(torch.isfinite(feature_ND).all()):
        return {"feature_std": float("nan")}
    aurocs = compute_knn_aurocs(feature_ND, films)
    spread = torch.nn.functional.normalize(feature_ND, dim=1).std(0).mean() * feature_ND.shape[1] ** 0.5
    mean_auroc = {"knn_auroc": float(np.mean(list(aurocs.values())))} if aurocs else {}
    return {
        **mean_auroc,
        **{f"knn_auroc/{name}": value for name, value in aurocs.items()},
        "effective_rank": compute_effective_rank(feature_ND),
        "feature_std": float(spread),
    }
