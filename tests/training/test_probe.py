"""What an encoder is worth while it trains, against slow oracles."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from chess_cxr.store import open_store
from chess_cxr.training.probe import (
    LabelledFilms,
    compute_effective_rank,
    compute_knn_aurocs,
    embed_films,
    read_labelled_films,
)


def test_knn_auroc_equals_the_count_of_ordered_pairs() -> None:
    generator = np.random.default_rng(2)
    label = generator.integers(0, 2, (60, 1)).astype(float)
    label[::11] = np.nan
    is_query = np.arange(60) % 3 == 0
    feature = torch.from_numpy(generator.normal(size=(60, 4)) + np.nan_to_num(label)).float()
    films = LabelledFilms(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), label, is_query, ("finding",))
    centred = feature.numpy() - feature.numpy().mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    known = ~np.isnan(label[:, 0])
    scores, truths = [], []
    for query in np.flatnonzero(is_query & known):
        near = sorted(np.flatnonzero(~is_query & known), key=lambda bank: -float(centred[query] @ centred[bank]))[:5]
        weights = [math.exp(float(centred[query] @ centred[bank]) / 0.1) for bank in near]
        votes = sum(w * label[b, 0] for w, b in zip(weights, near, strict=True))
        scores.append(votes / sum(weights))
        truths.append(label[query, 0])
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, yes in zip(scores, truths, strict=True)
        if yes
        for n, other in zip(scores, truths, strict=True)
        if not other
    ]
    found = compute_knn_aurocs(feature, films, neighbours=5)
    assert found["finding"] == pytest.approx(sum(wins) / len(wins), abs=1e-6)


def test_effective_rank_runs_from_one_to_the_number_of_dimensions() -> None:
    line = torch.outer(torch.arange(1.0, 30), torch.ones(6))
    assert compute_effective_rank(line) == pytest.approx(1, abs=1e-3)
    ball = torch.cat([torch.eye(6)] * 5)
    assert compute_effective_rank(ball) == pytest.approx(6, rel=1e-3)
    assert compute_effective_rank(torch.zeros(30, 6)) == pytest.approx(1, abs=1e-3)


def test_the_bank_is_train_the_queries_are_val_and_test_is_never_read(small_store: Path) -> None:
    store = open_store(small_store)
    films = read_labelled_films([store], size=24)
    assert films is not None
    known = store.films[store.label_names].notna().any(axis=1)
    assert films.is_query_N.sum() == (known & (store.films["split"] == "val")).sum()
    assert (~films.is_query_N).sum() == (known & (store.films["split"] == "train")).sum()


def test_embedding_changes_neither_modes_nor_running_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    film = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = embed_films(network, film, 0.5, 0.25)
    torch.testing.assert_close(whole, embed_films(network, film, 0.5, 0.25, batch=3))
    assert network.training and network[1].training and not network[0].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
