"""Probe an encoder during training: kNN and linear probes on labelled films, and measures of collapse.

Shape suffixes: N labelled films, P films with two views, D features, L labels, Q val films.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multilabel
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.methods.signals import FILMS, measure_pairs
from chess_cxr.pretraining.crops import OVERSAMPLING
from chess_cxr.records import resolve_uncertain
from chess_cxr.store import Store
from chess_cxr.views import ViewConfig, draw_view_pairs, resize_film

NEIGHBOURS = 20
FEWEST_CASES = 10
STRENGTHS = (1e-2, 1e-3, 1e-4)  # three instead of ten take a third of the time, for a little less precision


@dataclass(frozen=True)
class LabelledFilms:
    """The films of the probe: a bank to fit probes on, and queries of the val split to score them.

    film_N1HW: uint8.  label_NL: 1, 0 or NaN, L may be 0.  is_query_N: bool.  patient_N: hashed ids.
    view_2P1HW: uint8, two random views of each of P val films (bank films if there are none); P may be 0.
    """

    film_N1HW: Tensor
    label_NL: np.ndarray
    is_query_N: np.ndarray
    label_names: tuple[str, ...]
    patient_N: np.ndarray
    view_2P1HW: Tensor = field(default_factory=lambda: torch.zeros(2, 0, 1, 1, 1, dtype=torch.uint8))


def read_labelled_films(
    stores: Sequence[Store], size: int, most: int = 1500, seed: int = 0, views: ViewConfig | None = None
) -> LabelledFilms | None:
    """Read up to `most` films, two thirds train (or without a split) and one third val; None if there are no films.

    Takes labelled films first.  Keeps the labels of which train and val each hold at least `FEWEST_CASES` positive and
    negative films; even without labels, the films can show a collapse.
    size: side of the films in pixels.  views: how to draw two views of up to `FILMS` films; None for no views.
    """
    names = tuple(dict.fromkeys(name for store in stores for name in store.label_names))
    rng = np.random.default_rng(seed)
    places: list[tuple[Store, int, bool]] = []
    for splits, share in ((("train", ""), 2 * most // 3), (("val",), most // 3)):
        labelled = [(store, row) for store in stores for row in _find_rows(store, splits, labelled=True)]
        rows = labelled or [(store, row) for store in stores for row in _find_rows(store, splits, labelled=False)]
        chosen = rng.permutation(len(rows))[:share]
        places += [(*rows[index], "val" in splits) for index in sorted(chosen)]
    if not places:
        return None
    films = [resize_film(decode_stored(store.read_jpegs([row])[0], size), size) for store, row, _ in places]
    label_NL = resolve_uncertain(np.array([_read_labels(store, row, names) for store, row, _ in places]))
    is_query_N = np.array([is_query for *_, is_query in places])
    probed = [index for index in range(len(names)) if _can_probe(label_NL[:, index], is_query_N)]
    found = LabelledFilms(
        torch.from_numpy(np.stack(films)[:, None]),
        label_NL[:, probed],
        is_query_N,
        tuple(names[index] for index in probed),
        np.array([str(store.films["patient"].iloc[row]) for store, row, _ in places]),
    )
    if views is None:
        return found
    seen = [(store, row) for store, row, is_query in places if is_query or not is_query_N.any()]
    return replace(found, view_2P1HW=_draw_views(seen, replace(views, size=size), rng, seed))


def _find_rows(store: Store, splits: Sequence[str], labelled: bool) -> list[int]:
    found = store.films["split"].isin(list(splits))
    if labelled:
        found &= store.films[store.label_names].notna().any(axis=1)
    return [int(row) for row in np.flatnonzero(found.to_numpy())]


def _read_labels(store: Store, row: int, names: Sequence[str]) -> list[float]:
    known = dict(zip(store.label_names, store.films[store.label_names].iloc[row], strict=True))
    return [float(known.get(name, np.nan)) for name in names]


def _can_probe(label_N: np.ndarray, is_query_N: np.ndarray) -> bool:
    return all((label_N[part] == value).sum() >= FEWEST_CASES for part in (is_query_N, ~is_query_N) for value in (0, 1))


def _draw_views(places: Sequence[tuple[Store, int]], views: ViewConfig, rng: np.random.Generator, seed: int) -> Tensor:
    chosen = sorted(rng.permutation(len(places))[:FILMS])
    jpegs = [places[index][0].read_jpegs([places[index][1]])[0] for index in chosen]
    films = [decode_stored(jpeg, round(OVERSAMPLING * views.size)) for jpeg in jpegs]
    return torch.from_numpy(draw_view_pairs(films, range(len(films)), seed, views))


@torch.no_grad()
def embed_films(encoder: nn.Module, film_N1HW: Tensor, mean: float, std: float, batch: int = 128) -> Tensor:
    """Embed uint8 films in evaluation mode, float32 [N, D] on the CPU; restores the encoder's modes afterwards."""
    device = next(encoder.parameters()).device
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    batches = torch.split(film_N1HW, batch)
    parts = [encoder((films.to(device).float() / 255 - mean) / std).float().cpu() for films in batches]
    for module in training:  # not encoder.train(): parts may be frozen
        module.training = True
    return torch.cat(parts)


def probe_encoder(encoder: nn.Module, films: LabelledFilms, mean: float, std: float) -> dict[str, float]:
    """Measure the encoder on films without augmentation and on pairs of views.

    knn_auroc, linear_auroc, as means and with `/label`: on val films, if there are labels.
    effective_rank: 1 … min(N, D).  feature_std: 0 (all films alike) … 1.
    alignment, uniformity, negative_similarity: on P val films with two views, see `measure_pairs`.
    broken_share: returned alone if some features are not finite: the share of films with such features.
    """
    feature_ND = embed_films(encoder, films.film_N1HW, mean, std)
    finite_N = torch.isfinite(feature_ND).all(1)
    if not bool(finite_N.all()):
        return {"broken_share": 1 - float(finite_N.float().mean())}
    spread = F.normalize(feature_ND, dim=1).std(0).mean() * feature_ND.shape[1] ** 0.5
    values = {"effective_rank": compute_effective_rank(feature_ND), "feature_std": float(spread)}
    if films.label_names:
        values |= {f"knn_{name}": value for name, value in compute_knn_aurocs(feature_ND, films).items()}
        values |= {f"linear_{name}": value for name, value in compute_linear_aurocs(feature_ND, films).items()}
    if films.view_2P1HW.shape[1] > 1:
        measured = measure_pairs(*(embed_films(encoder, view_P1HW, mean, std) for view_P1HW in films.view_2P1HW))
        values |= {name: float(measured[name]) for name in ("alignment", "uniformity", "negative_similarity")}
    return values


def compute_knn_aurocs(feature_ND: Tensor, films: LabelledFilms, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Score each query by the weighted share of positives among its nearest neighbours; "auroc", "auroc/label"."""
    feature_ND = F.normalize(feature_ND - feature_ND.mean(0), dim=1)
    score_QL = np.empty((int(films.is_query_N.sum()), len(films.label_names)))
    for index in range(len(films.label_names)):
        label_N = films.label_NL[:, index]
        bank = np.flatnonzero(~films.is_query_N & ~np.isnan(label_N))
        similarity_QM = feature_ND[films.is_query_N] @ feature_ND[bank].T
        near = similarity_QM.topk(min(neighbours, len(bank)), dim=1)
        weight = (near.values / 0.1).exp().numpy()
        score_QL[:, index] = (weight * label_N[bank][near.indices.numpy()]).sum(1) / weight.sum(1)
    return _compute_aurocs(score_QL, films)


def compute_linear_aurocs(feature_ND: Tensor, films: LabelledFilms) -> dict[str, float]:
    """Score each query by a logistic regression on the bank, one per label; "auroc", "auroc/label".

    Chooses the penalty among `STRENGTHS` by cross-validation by patient within the bank, never by the queries.
    """
    bank, feature = ~films.is_query_N, feature_ND.numpy()
    probe = fit_linear_probe(
        feature[bank], films.label_NL[bank], films.patient_N[bank], names=films.label_names, strengths=STRENGTHS
    )
    return _compute_aurocs(probe.predict_scores(feature[films.is_query_N]), films)


def _compute_aurocs(score_QL: np.ndarray, films: LabelledFilms) -> dict[str, float]:
    metrics = compute_multilabel(films.label_NL[films.is_query_N], score_QL, films.label_names)
    return {name: value for name, value in metrics.items() if name.startswith("auroc")}


def compute_effective_rank(feature_ND: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023): the exponential of the entropy of the normalised singular values."""
    singular = torch.linalg.svdvals(feature_ND.double())
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(share * share.log()).sum()).exp())
