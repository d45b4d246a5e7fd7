"""Fine-tuning an encoder with a linear head."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.tasks.classify.losses import compute_label_loss
from chess_cxr.tasks.classify.objective import Classify, HeadShape, LabelledBatch, draw_labelled_batch
from chess_cxr.views import ViewConfig

NAN = float("nan")


def test_the_multiclass_loss_is_the_mean_over_films_of_known_class() -> None:
    score = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.1, -2.0], [5.0, 5.0, 5.0]])
    label = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [NAN, NAN, NAN]])
    oracle = 0.0
    for row, which in zip(score.tolist()[:2], (0, 2), strict=True):
        oracle -= math.log(math.exp(row[which]) / sum(math.exp(value) for value in row)) / 2
    assert compute_label_loss(score, label, "multiclass").item() == pytest.approx(oracle, rel=1e-5)


def test_the_multilabel_loss_is_the_mean_over_known_entries() -> None:
    score = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
    label = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    known = ((1.0, 1), (0.3, 0), (2.0, 1))
    oracle = sum(-math.log(1 / (1 + math.exp(-s if y else s))) for s, y in known) / 3
    assert compute_label_loss(score, label, "multilabel").item() == pytest.approx(oracle, rel=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_batch_that_knows_no_label_gives_no_loss_and_no_gradient(task: str) -> None:
    score = torch.randn(4, 3, requires_grad=True)
    loss = compute_label_loss(score, torch.full((4, 3), NAN), task)
    loss.backward()
    assert loss.item() == 0
    assert score.grad is not None and not score.grad.any()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_steps_on_one_batch_lower_its_loss(task: str) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    method = Classify(encoder, HeadShape("linear", task, 8, 2))
    label = torch.eye(2)[torch.arange(12) % 2]
    film = torch.randn(12, 1, 8, 8) + label[:, :1, None, None]
    optimizer = torch.optim.SGD(method.get_parameters()["classifier"], lr=0.3)
    losses = []
    for _ in range(20):
        ((name, loss),) = method.losses(LabelledBatch(film, label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert name == "classifier"
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    probability = method.predict(film)
    assert ((probability >= 0) & (probability <= 1)).all()
    if task == "multiclass":
        assert probability.sum(1) == pytest.approx(1, rel=1e-5)


def test_a_labelled_batch_depends_on_seed_and_position_alone() -> None:
    films = [np.random.default_rng(n).integers(0, 256, (40, 32), dtype=np.uint8) for n in range(2)]
    views = ViewConfig(size=16, crop_area=(0.5, 1.0))
    contract = PixelContract(16, (0.5,), (0.25,))
    both = draw_labelled_batch(films, np.eye(2), [4, 9], 0, views, contract)
    alone = draw_labelled_batch(films[1:], np.eye(2)[1:], [9], 0, views, contract)
    assert both.film_BCSS.shape == (2, 1, 16, 16)
    assert torch.equal(both.film_BCSS[1], alone.film_BCSS[0])
    other = draw_labelled_batch(films[1:], np.eye(2)[1:], [9], 1, views, contract)
    assert not torch.equal(other.film_BCSS, alone.film_BCSS)
