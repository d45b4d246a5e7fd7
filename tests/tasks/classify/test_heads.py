"""Heads of classifiers: what they take, what they give."""

import pytest
import timm
import torch

from chess_cxr.tasks.classify.heads import AttentivePooling, OrdinalScores, Standardise, extract_map
from chess_cxr.tasks.classify.objective import Classify, HeadShape, compute_probabilities


def test_thresholds_of_an_order_never_cross_and_probabilities_are_none_below_zero() -> None:
    torch.manual_seed(0)
    output = OrdinalScores(5, 4)
    for parameter in output.parameters():
        torch.nn.init.normal_(parameter, std=4)
    score = output(torch.randn(50, 5)).detach()
    assert score.shape == (50, 3) and (score.diff(dim=1) <= 0).all()
    probability = compute_probabilities(score, HeadShape("linear", "ordinal", 5, 4))
    assert (probability >= 0).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(50))


def test_a_film_further_up_the_order_is_more_likely_above_every_class() -> None:
    output = OrdinalScores(1, 3)
    torch.nn.init.ones_(output.score.weight)
    low, high = compute_probabilities(output(torch.tensor([[-1.0], [2.0]])), HeadShape("linear", "ordinal", 1, 3))
    assert low[0] > high[0] and low[2] < high[2]


def test_the_third_class_is_left_out_of_probabilities() -> None:
    score = torch.tensor([[[0.0, 1.0, 9.0]]])
    shape = HeadShape("linear", "multilabel", 3, 1, third_class=True)
    assert compute_probabilities(score, shape).item() == pytest.approx(1 / (1 + 2.718281828**-1), rel=1e-5)


def test_features_are_standardised_by_what_was_learned_and_constant_ones_left_out() -> None:
    feature = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    layer = Standardise(2)
    layer.learn(feature)
    assert torch.equal(layer(feature), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_attention_pools_the_place_that_it_looks_for() -> None:
    torch.manual_seed(0)
    pooling = AttentivePooling(16)
    places = torch.randn(3, 9, 16)
    shuffled = places[:, torch.randperm(9)]
    torch.testing.assert_close(pooling(places), pooling(shuffled))
    moved = places.clone()
    moved[1, 4] = torch.randn(16)
    changed = (pooling(moved) - pooling(places)).abs().amax(1) > 1e-4
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("network", "size", "places"),
    [("test_resnet", 64, 4), ("test_vit", 160, 101), ("regnetx_002", 64, 4), ("swin_tiny_patch4_window7_224", 224, 49)],
)
def test_a_feature_map_becomes_places_whatever_the_network(network: str, size: int, places: int) -> None:
    encoder = timm.create_model(network, in_chans=1, num_classes=0).eval()
    with torch.no_grad():
        found = extract_map(encoder, torch.randn(2, 1, size, size))
        assert found.shape == (2, places, encoder.num_features)
        pooled = encoder.forward_head(encoder.forward_features(torch.zeros(1, 1, size, size)))
    shape = HeadShape("attentive", "multilabel", pooled.shape[1], 2)
    assert Classify(encoder, shape).predict(torch.randn(2, 1, size, size)).shape == (2, 2)


def test_a_head_on_cached_features_says_what_the_whole_network_says() -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("test_resnet", in_chans=1, num_classes=0).eval()
    film = torch.randn(3, 1, 64, 64)
    for name in ("linear", "mlp", "attentive"):
        shape = HeadShape(name, "multiclass", encoder.num_features, 3)
        alone = Classify(None, shape)
        for parameter in alone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        whole = Classify(encoder, shape)
        state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
        whole.load_state_dict(state | dict(alone.state_dict()))
        with torch.no_grad():
            cached = extract_map(encoder, film) if name == "attentive" else encoder(film)
        assert alone.predict(cached) == pytest.approx(whole.predict(film), abs=1e-5)


def test_several_queries_pool_one_by_one_and_stand_side_by_side() -> None:
    torch.manual_seed(0)
    many, places = AttentivePooling(16, queries=3), torch.randn(2, 9, 16)
    pooled = many(places)
    assert pooled.shape == (2, 48)
    for number in range(3):
        one = AttentivePooling(16)
        state = dict(many.state_dict()) | {"query": many.query[:, number : number + 1].detach()}
        one.load_state_dict(state)
        torch.testing.assert_close(pooled[:, 16 * number : 16 * (number + 1)], one(places))
    shape = HeadShape("attentive", "multiclass", 16, 3, queries=3)
    assert Classify(None, shape)(places).shape == (2, 3)
    assert HeadShape(**{"name": "attentive", "task": "multiclass", "features": 16, "labels": 3}).queries == 1
