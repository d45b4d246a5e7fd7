"""What an encoder is worth while it trains, against slow oracles."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from chess_cxr.methods.moco import MoCo
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.pretraining.collapse import CollapseAlarm, CollapseLimits, find_collapse
from chess_cxr.pretraining.films import build_film_pool, read_view_batches
from chess_cxr.pretraining.probe import (
    LabelledFilms,
    compute_effective_rank,
    compute_knn_aurocs,
    compute_linear_aurocs,
    embed_films,
    probe_encoder,
    read_labelled_films,
)
from chess_cxr.store import open_store
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from children import TINY


def make_films(label: np.ndarray, is_query: np.ndarray, names: tuple[str, ...] = ("finding",)) -> LabelledFilms:
    films = torch.zeros(len(label), 1, 2, 2, dtype=torch.uint8)
    return LabelledFilms(films, label, is_query, names, np.array([f"p{n // 2}" for n in range(len(label))]))


def count_ordered_pairs(scores: list[float], truths: list[float]) -> float:
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, yes in zip(scores, truths, strict=True)
        if yes
        for n, other in zip(scores, truths, strict=True)
        if not other
    ]
    return sum(wins) / len(wins)


def test_knn_auroc_equals_the_count_of_ordered_pairs() -> None:
    generator = np.random.default_rng(2)
    label = generator.integers(0, 2, (60, 1)).astype(float)
    label[::11] = np.nan
    is_query = np.arange(60) % 3 == 0
    feature = torch.from_numpy(generator.normal(size=(60, 4)) + np.nan_to_num(label)).float()
    films = make_films(label, is_query)
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
    found = compute_knn_aurocs(feature, films, neighbours=5)
    assert found["auroc/finding"] == pytest.approx(count_ordered_pairs(scores, truths), abs=1e-6)
    assert found["auroc"] == found["auroc/finding"]


def test_the_linear_probe_is_a_logistic_regression_on_the_bank_alone() -> None:
    generator = np.random.default_rng(3)
    label = generator.integers(0, 2, (400, 2)).astype(float)
    label[::9, 1] = np.nan
    feature = generator.normal(size=(400, 6)).astype(np.float32)
    feature[:, 0] += 1.5 * label[:, 0]
    feature[:, 1] += 0.4 * np.nan_to_num(label[:, 1])
    is_query = np.arange(400) % 4 == 0
    found = compute_linear_aurocs(torch.from_numpy(feature), make_films(label, is_query, ("clear", "faint")))
    for column, name in enumerate(("clear", "faint")):
        known = ~np.isnan(label[:, column])
        bank, query = known & ~is_query, known & is_query
        oracle = LogisticRegression(C=1.0, max_iter=1000).fit(feature[bank], label[bank, column])
        expected = roc_auc_score(label[query, column], oracle.decision_function(feature[query]))
        assert found[f"auroc/{name}"] == pytest.approx(expected, abs=0.02)
    assert found["auroc"] == pytest.approx((found["auroc/clear"] + found["auroc/faint"]) / 2)
    # what a query is labelled changes its score in the end, never what the probe learns
    swapped = label.copy()
    swapped[is_query, 0] = 1 - swapped[is_query, 0]
    other = compute_linear_aurocs(torch.from_numpy(feature), make_films(swapped, is_query, ("clear", "faint")))
    assert other["auroc/clear"] == pytest.approx(1 - found["auroc/clear"])


def test_effective_rank_runs_from_one_to_the_number_of_dimensions() -> None:
    line = torch.outer(torch.arange(1.0, 30), torch.ones(6))
    assert compute_effective_rank(line) == pytest.approx(1, abs=1e-3)
    ball = torch.cat([torch.eye(6)] * 5)
    assert compute_effective_rank(ball) == pytest.approx(6, rel=1e-3)
    assert compute_effective_rank(torch.zeros(30, 6)) == pytest.approx(1, abs=1e-3)


def test_the_bank_is_train_the_queries_are_val_and_test_is_never_read(small_store: Path) -> None:
    store = open_store(small_store)
    films = read_labelled_films([store], size=24, views=TINY.views)
    assert films is not None
    known = store.films[store.label_names].notna().any(axis=1)
    assert films.is_query_N.sum() == (known & (store.films["split"] == "val")).sum()
    assert (~films.is_query_N).sum() == (known & (store.films["split"] == "train")).sum()
    of_split = {split: set(store.films["patient"][store.films["split"] == split]) for split in ("train", "val")}
    assert set(films.patient_N[films.is_query_N]) == of_split["val"]
    assert set(films.patient_N[~films.is_query_N]) <= of_split["train"]
    assert films.view_2P1HW.shape == (2, films.is_query_N.sum(), 1, 24, 24)


def test_the_same_views_are_drawn_again_and_the_two_of_a_film_differ(small_store: Path) -> None:
    first, again = (read_labelled_films([open_store(small_store)], 24, views=TINY.views) for _ in range(2))
    assert first is not None and again is not None
    assert torch.equal(first.view_2P1HW, again.view_2P1HW)
    assert not torch.equal(first.view_2P1HW[0], first.view_2P1HW[1])
    none = read_labelled_films([open_store(small_store)], 24)
    assert none is not None and none.view_2P1HW.shape[1] == 0


def test_embedding_changes_neither_modes_nor_running_statistics() -> None:
    network = build_network()
    network[0].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    film = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = embed_films(network, film, 0.5, 0.25)
    torch.testing.assert_close(whole, embed_films(network, film, 0.5, 0.25, batch=3))
    assert network.training and network[1].training and not network[0].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def build_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_probe_changes_nothing_of_the_training_and_names_all_it_measures(small_store: Path) -> None:
    films = read_labelled_films([open_store(small_store)], 24, views=TINY.views)
    assert films is not None and films.label_names == ()  # val holds 18 films: fewer than 10 with and 10 without
    films = replace(films, label_NL=np.arange(len(films.label_NL))[:, None] % 2 * 1.0, label_names=("odd",))
    network = build_network()
    state = torch.get_rng_state()
    values = probe_encoder(network, films, 0.5, 0.25)
    assert torch.equal(torch.get_rng_state(), state)
    assert values == probe_encoder(network, films, 0.5, 0.25)
    assert set(values) == {
        *("effective_rank", "feature_std", "alignment", "uniformity", "negative_similarity"),
        *("knn_auroc", "knn_auroc/odd", "linear_auroc", "linear_auroc/odd"),
    }


def test_features_that_are_not_finite_are_counted_and_not_measured(small_store: Path) -> None:
    films = read_labelled_films([open_store(small_store)], 24)
    assert films is not None
    network = build_network()
    with torch.no_grad():
        network[1].weight[2] = math.nan
    assert probe_encoder(network, films, 0.5, 0.25) == {"broken_share": 1.0}


COLLAPSED = {"embedding_std": 0.01, "positive_similarity": 0.999}
HEALTHY = {"embedding_std": 0.6, "positive_similarity": 0.8}


def describe_features(feature: torch.Tensor) -> dict[str, float]:
    unit = nn.functional.normalize(feature, dim=1)
    return {
        "probe/effective_rank": compute_effective_rank(feature),
        "probe/feature_std": float(unit.std(0).mean() * feature.shape[1] ** 0.5),
        "probe/uniformity": float(measure_pairs(unit, unit)["uniformity"]),
    }


def test_features_near_one_point_are_collapse_and_spread_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(200, 32, generator=generator)
    point = torch.randn(32, generator=generator)
    few = torch.randn(200, 3, generator=generator) @ torch.randn(3, 32, generator=generator)
    signs = find_collapse(describe_features(point + 0.01 * noise), CollapseLimits())
    assert signs["features"].startswith("effective rank 1.") and "uniformity -0.0" in signs["features"]
    for healthy in (noise, few, point + noise, point + 0.3 * noise):
        assert find_collapse(describe_features(healthy), CollapseLimits()) == {"features": ""}


def test_the_alarm_rings_once_after_three_judgements_in_a_row() -> None:
    alarm = CollapseAlarm(first_step=20)
    said = [
        alarm.judge(step, values)
        for step, values in enumerate(
            [COLLAPSED] * 22 + [HEALTHY, COLLAPSED, {}, COLLAPSED, COLLAPSED] + [COLLAPSED] * 5
        )
    ]
    assert [step for step, line in enumerate(said) if line] == [26] and alarm.is_ringing
    assert said[26] == (
        "collapse: at step 26 the embeddings of all films are alike (embedding_std 0.010); "
        "lower the learning rate or lengthen the warm-up, and begin a new run"
    )


def test_healthy_embeddings_do_not_excuse_features_that_collapse_or_break() -> None:
    features = {"probe/effective_rank": 1.01, "probe/feature_std": 0.001, "probe/uniformity": -0.001}
    for values, sign in ((features, "effective rank 1.0, feature_std 0.001"), ({"probe/broken_share": 0.5}, "50% are")):
        alarm = CollapseAlarm(CollapseLimits(judgements=2))
        assert [alarm.judge(step, line) for step, line in ((1, values), (2, HEALTHY))] == ["", ""]
        assert sign in alarm.judge(3, HEALTHY | values)


def test_different_films_alike_but_views_of_one_film_unlike_is_no_collapse() -> None:
    assert find_collapse({"embedding_std": 0.01, "positive_similarity": 0.2}, CollapseLimits()) == {"embeddings": ""}


def train_under_alarm(store: Path, training: TrainingConfig) -> tuple[list[str], CollapseAlarm]:
    """What the alarm said while a small MoCo really trained on real batches, probed every fifth step."""
    torch.manual_seed(0)
    config = replace(TINY, training=training, method=replace(TINY.method, queue=64))
    method, stores = MoCo(config.method), [open_store(store)]
    films = read_labelled_films(stores, 32, views=config.views)
    assert films is not None
    pool = build_film_pool(stores, ("train",))
    views = read_view_batches(pool, config.views, batch=16, seed=0, first_step=0, steps=training.steps)
    alarm, said = CollapseAlarm(first_step=10), []

    def normalise() -> Iterator[torch.Tensor]:
        for batch in views:
            yield (batch.float() / 255 - 0.5) / 0.25

    for report in train(method, normalise(), build_optimizers(method, training), training):
        values = dict(method.signals)
        if report.step % 5 == 0:
            measured = probe_encoder(copy.deepcopy(method.encoder), films, 0.5, 0.25)
            values |= {f"probe/{name}": value for name, value in measured.items()}
        if line := alarm.judge(report.step, values):
            said.append(line)
    return said, alarm


def test_a_run_with_a_hundred_times_the_learning_rate_collapses_and_is_told_so(small_store: Path) -> None:
    torch.set_num_threads(1)
    healthy = TrainingConfig(steps=40, batch=16, optimizer="sgd", learning_rate=0.03)
    said, alarm = train_under_alarm(small_store, replace(healthy, learning_rate=3.0))
    assert alarm.is_ringing and len(said) == 1 and said[0].startswith("collapse: at step ")
    said, alarm = train_under_alarm(small_store, healthy)
    assert not alarm.is_ringing and said == []
