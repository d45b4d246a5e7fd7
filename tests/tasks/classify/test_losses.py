"""Losses of classifiers against slow oracles, term by term."""

import math

import pytest
import torch

from chess_cxr.records import UNCERTAIN, UsageError
from chess_cxr.tasks.classify.losses import FOCUS, OVERLAP, build_balance, compute_label_loss

NAN = float("nan")
CLASSES = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 1])]  # 4, 2 and no film
FINDINGS = torch.tensor([[1.0, NAN], [0.0, 1.0], [0.0, 0.0], [0.0, UNCERTAIN]])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def weigh(counts: list[float], how: str) -> list[float]:
    """Weights of classes that give the mean film weight 1."""
    raw = []
    for count in counts:
        size = count if how == "inverse" else (1 - OVERLAP**count) / (1 - OVERLAP)
        raw.append(1 / size if count else 0.0)
    scale = sum(counts) / sum(weight * count for weight, count in zip(raw, counts, strict=True))
    return [scale * weight for weight in raw]


@pytest.mark.parametrize("how", ["inverse", "effective"])
def test_weights_of_classes_make_rare_films_count_more(how: str) -> None:
    score = torch.tensor([[1.0, 0.5, -1.0], [0.2, -0.3, 0.4]])
    target = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    balance = build_balance(CLASSES, "multiclass", how)
    weights = weigh([4, 2, 0], how)
    assert weights[1] > weights[0] and weights[2] == 0
    top = bottom = 0.0
    for row, label in ((0, 0), (1, 1)):
        values = score[row].tolist()
        top += weights[label] * -math.log(math.exp(values[label]) / sum(map(math.exp, values)))
        bottom += weights[label]
    assert compute_label_loss(score, target, "multiclass", balance).item() == pytest.approx(top / bottom, rel=1e-5)


@pytest.mark.parametrize("how", ["inverse", "effective"])
def test_weights_of_findings_are_those_of_each_finding(how: str) -> None:
    score, target = torch.tensor([[0.3, -0.7]]), torch.tensor([[1.0, 0.0]])
    balance = build_balance(FINDINGS, "multilabel", how)
    first, second = weigh([1, 3], how), weigh([1, 1], how)
    oracle = (first[0] * -math.log(sigmoid(0.3)) + second[1] * -math.log(1 - sigmoid(-0.7))) / 2
    assert compute_label_loss(score, target, "multilabel", balance).item() == pytest.approx(oracle, rel=1e-5)


def test_the_focal_loss_of_sure_films_is_small() -> None:
    balance = build_balance(FINDINGS, "multilabel", "focal")
    loss = compute_label_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, NAN]]), "multilabel", balance).item()
    chance = sigmoid(3.0)
    assert loss == pytest.approx((1 - chance) ** FOCUS * -math.log(chance), rel=1e-4)
    classes = build_balance(CLASSES, "multiclass", "focal")
    loss = compute_label_loss(torch.tensor([[2.0, 0.0, 0.0]]), CLASSES[:1], "multiclass", classes).item()
    chance = math.exp(2) / (math.exp(2) + 2)
    assert loss == pytest.approx((1 - chance) ** FOCUS * -math.log(chance), rel=1e-4)


def test_logit_adjustment_adds_the_log_prior() -> None:
    balance = build_balance(CLASSES, "multiclass", "logit_adjustment")
    prior = [(count + 0.5) / 7 for count in (4, 2, 0)]
    values = [1.0 + math.log(prior[0]), 0.5 + math.log(prior[1]), -1.0 + math.log(prior[2])]
    oracle = -math.log(math.exp(values[1]) / sum(map(math.exp, values)))
    score, target = torch.tensor([[1.0, 0.5, -1.0]]), CLASSES[4:5]
    assert compute_label_loss(score, target, "multiclass", balance).item() == pytest.approx(oracle, rel=1e-5)
    findings = build_balance(FINDINGS, "multilabel", "logit_adjustment")
    odds = math.log((1.5 / 5) / (1 - 1.5 / 5))
    loss = compute_label_loss(torch.tensor([[0.3, 0.0]]), torch.tensor([[1.0, NAN]]), "multilabel", findings)
    assert loss.item() == pytest.approx(-math.log(sigmoid(0.3 + odds)), rel=1e-5)


def test_smooth_targets_pull_to_both_sides() -> None:
    loss = compute_label_loss(torch.tensor([[0.4]]), torch.tensor([[0.7]]), "multilabel").item()
    assert loss == pytest.approx(-0.7 * math.log(sigmoid(0.4)) - 0.3 * math.log(1 - sigmoid(0.4)), rel=1e-5)


def test_uncertain_is_a_third_class_where_there_is_one_and_unknown_elsewhere() -> None:
    score = torch.tensor([[[0.1, 0.4, -0.2], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]])
    target = torch.tensor([[1.0, UNCERTAIN, NAN]])
    parts = [[math.exp(value) for value in row] for row in score[0].tolist()]
    oracle = (-math.log(parts[0][1] / sum(parts[0])) - math.log(parts[1][2] / sum(parts[1]))) / 2
    assert compute_label_loss(score, target, "multilabel").item() == pytest.approx(oracle, rel=1e-5)
    plain = compute_label_loss(torch.tensor([[0.3, 5.0, 5.0]]), target, "multilabel").item()
    assert plain == pytest.approx(-math.log(sigmoid(0.3)), rel=1e-5)


def test_an_order_is_learned_threshold_by_threshold() -> None:
    score, target = torch.tensor([[1.2, -0.3, -2.0]]), torch.eye(4)[2:3]
    oracle = (-math.log(sigmoid(1.2)) - math.log(sigmoid(-0.3)) - math.log(1 - sigmoid(-2.0))) / 3
    assert compute_label_loss(score, target, "ordinal").item() == pytest.approx(oracle, rel=1e-5)


@pytest.mark.parametrize("how", ["focal", "logit_adjustment"])
def test_an_order_has_no_focus_and_no_prior(how: str) -> None:
    with pytest.raises(UsageError, match=f"no imbalance {how}; choose none, inverse or effective"):
        build_balance(torch.eye(4), "ordinal", how)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3)])
def test_findings_of_which_nothing_is_known_give_no_gradient(shape: tuple[int, ...]) -> None:
    score = torch.randn(shape, requires_grad=True)
    balance = build_balance(torch.full((4, 3), NAN), "multilabel", "inverse")
    compute_label_loss(score, torch.full((4, 3), NAN), "multilabel", balance).backward()
    assert score.grad is not None and not score.grad.any()
