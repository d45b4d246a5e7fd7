"""Nodules that are added to a film and its target, and what the loss and the scores say of them."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import draw_exposure, render_film
from chess_cxr.tasks.bones.inserted import DIAMETER_MM, LEAST_CONTRAST, draw_added_nodules, draw_phantom_nodule
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.network import BoneNetwork, BoneNetworkShape
from chess_cxr.tasks.bones.objective import (
    SPREAD_WEIGHT,
    PairBatch,
    SuppressBones,
    measure_taken_nodules,
    ramp_nodules,
)
from chess_cxr.tasks.bones.pairs import FilmPair, draw_phantom_pair
from chess_cxr.tasks.bones.score import find_spread_scale, measure_added_nodules, score_added_nodules, score_spread
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair_batch
from chess_cxr.tasks.ct_nodules import place_nodule


@cache
def draw_pair() -> FilmPair:
    return draw_phantom_pair(1, 1, 256, "normal")


def draw(seed: int = 0, count: int = 6) -> list[np.ndarray]:
    pair = draw_pair()
    added = draw_added_nodules(
        pair.film_HW, pair.bone_free_HW, pair.spacing_mm or 0, count, np.random.default_rng(seed), (), pair.lung_HW
    )
    return [nodule.grey_HW for nodule in added]


def test_nodules_have_the_sizes_and_contrasts_that_are_asked_for_and_do_not_touch() -> None:
    pair, sizes, greys = draw_pair(), [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = draw_added_nodules(pair.film_HW, pair.bone_free_HW, pair.spacing_mm or 0, 6, rng, (), pair.lung_HW)
        covered = np.sum([nodule.mask_HW for nodule in found], axis=0)
        assert covered.max() == 1
        for nodule in found:
            area = np.pi * (nodule.diameter_mm / (pair.spacing_mm or 1) / 2) ** 2
            assert nodule.mask_HW.sum() == pytest.approx(area, rel=0.2, abs=2)
            assert nodule.grey_HW.min() >= 0 and (pair.film_HW + nodule.grey_HW).max() <= 1 + 1e-6
            sizes.append(nodule.diameter_mm)
            greys.append(float(nodule.grey_HW[nodule.mask_HW].mean()))
    assert min(sizes) < 6 and max(sizes) > 30 and min(sizes) >= DIAMETER_MM[0] and max(sizes) <= DIAMETER_MM[1]
    assert LEAST_CONTRAST / 4 < min(greys) < 0.006 and 0.06 < max(greys) < 0.2


def test_most_nodules_lie_on_bone_and_a_film_of_air_gets_none() -> None:
    pair = draw_pair()
    bone = pair.film_HW - pair.bone_free_HW
    assert pair.lung_HW is not None
    places = [bone[grey > 0.5 * grey.max()].mean() for seed in range(12) for grey in draw(seed)]
    assert np.mean(places) > 1.1 * bone[pair.lung_HW].mean()
    air = np.zeros((64, 64), np.float32)
    assert draw_added_nodules(air, air, 2.0, 4, np.random.default_rng(0)) == []


def test_an_added_nodule_looks_as_the_phantom_renders_one() -> None:
    """Both are thickness along the ray: profiles of the drawn body and of the rendered difference agree."""
    anatomy, exposure = draw_anatomy(3), replace(draw_exposure(3), noise=False)
    film, healthy = (render_film(anatomy, exposure, it, 256, with_bone_free=True) for it in ("nodule", "normal"))
    assert film.without_bone is not None and healthy.without_bone is not None and film.nodule_centre_px
    rendered = film.without_bone.astype(float) - healthy.without_bone
    body = draw_phantom_nodule(film.diameter_mm or 0, np.random.default_rng(0))
    placed, _ = place_nodule(body, rendered.shape, film.nodule_centre_px, film.diameter_mm or 0, film.spacing_mm)
    near = placed > 0.01
    assert np.corrcoef(placed[near], rendered[near])[0, 1] > 0.8


def test_a_batch_with_nodules_leaves_the_pair_as_it_is_without_them() -> None:
    pair = draw_pair()
    training = [TrainingPair(pair.film_HW, pair.bone_free_HW, pair.spacing_mm or 0)] * 2
    plain = draw_pair_batch(training, [3, 4], 7, PairViews(96))
    batch = draw_pair_batch(training, [3, 4], 7, PairViews(96, nodules=3), progress=0.25)
    assert torch.equal(plain.film_B1HW, batch.film_B1HW) and plain.nodule_BKHW is None
    assert batch.nodule_BKHW is not None and batch.nodule_BKHW.shape == (2, 3, 96, 96)
    assert float(batch.nodule_BKHW.amax()) > LEAST_CONTRAST and float(batch.nodule_share or 0) == 0.25
    again = draw_pair_batch(training[1:], [4], 7, PairViews(96, nodules=3))
    assert again.nodule_BKHW is not None and torch.equal(again.nodule_BKHW[0], batch.nodule_BKHW[1])
    assert [ramp_nodules(at) for at in (0, 0.25, 0.5, 1)] == [0, 0.25, 1, 1]


def test_the_loss_is_the_share_of_the_nodules_that_is_taken_whatever_their_contrast() -> None:
    nodules = torch.from_numpy(np.stack([draw(1)[:2], draw(2)[:2]]))
    nodules[1] *= 0.1
    whole = nodules.sum(1, keepdim=True)
    assert float(measure_taken_nodules(torch.zeros_like(whole), nodules)) == 0
    for share in (1.0, -0.5, 0.25):
        assert float(measure_taken_nodules(share * whole, nodules)) == pytest.approx(abs(share), rel=1e-4)
    around = (whole == 0).float() * 0.01
    expected = 0.01 * float((whole == 0).sum() / whole.sum())
    assert float(measure_taken_nodules(around, nodules)) == pytest.approx(expected, rel=1e-4)
    assert float(measure_taken_nodules(whole, torch.zeros_like(nodules))) == 0


class Half(BoneNetwork):
    """Takes a share of what is brighter than the surroundings for bone: a filter that takes nodules too."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__(BoneNetworkShape("resnet18", spread=True))
        self.share = share

    def forward(self, film_B1HW: torch.Tensor) -> torch.Tensor:
        """Return bone and its spread."""
        bone = self.share * film_B1HW
        return torch.cat([bone, 0.5 * bone], 1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_kept_nodules_are_measured_exactly(share: float) -> None:
    pair, suppressor = draw_pair(), BoneSuppressor(Half(share), 256, 256)
    kept = measure_added_nodules(suppressor, pair)
    assert len(kept) >= 4 and [one.kept for one in kept] == pytest.approx([1 - share] * len(kept), abs=1e-3)
    scores = score_added_nodules(suppressor, pair)
    assert scores["added_nodule_kept"] == pytest.approx(1 - share, abs=1e-3)
    assert scores["added_nodule_dimmed"] == (share > 0.2)


def test_the_objective_sees_pairs_with_and_without_nodules_and_learns_the_spread() -> None:
    pair = draw_pair()
    batch = draw_pair_batch(
        [TrainingPair(pair.film_HW, pair.bone_free_HW, 1.4)] * 2, [0, 1], 0, PairViews(96, nodules=2)
    )
    task = SuppressBones(Half(0.5), None, keep_nodules=2.0)
    [(_, loss)] = list(task.losses(batch))
    assert batch.nodule_BKHW is not None
    added = batch.nodule_BKHW.sum(1, keepdim=True)
    left = (batch.film_B1HW - batch.bone_free_B1HW).abs().mean()
    taken = measure_taken_nodules(0.5 * added, batch.nodule_BKHW)
    assert task.signals["part/nodules"] == pytest.approx(float(2 * taken * left), rel=1e-3)
    film, truth = (torch.cat([it, it + added]) for it in (batch.film_B1HW, batch.bone_free_B1HW))
    error, spread = (0.5 * film - truth).abs(), 0.25 * film
    assert task.signals["part/spread"] == pytest.approx(
        SPREAD_WEIGHT * float((error / spread + spread.log()).mean()), rel=1e-2
    )
    assert float(loss) == pytest.approx(sum(task.signals.values()), rel=1e-4)
    halved = replace(batch, nodule_share=torch.tensor(0.5))
    list(task.losses(halved))
    assert task.signals["part/nodules"] == pytest.approx(float(taken * left), rel=1e-3)
    list(task.losses(PairBatch(batch.film_B1HW, batch.bone_free_B1HW)))
    assert "part/nodules" not in task.signals


def test_the_spread_is_calibrated_scored_and_left_of_the_bone() -> None:
    film = np.linspace(0.1, 0.9, 64 * 64, dtype=np.float32).reshape(64, 64)
    pair = FilmPair("a", film, 0.9 * film, "a", "folder")  # the bone is a tenth of the film, Half finds five
    suppressor = BoneSuppressor(Half(0.5), 64, 64)
    scale = find_spread_scale(suppressor, [pair])
    assert scale == pytest.approx(0.4 / 0.25, rel=1e-3)
    calibrated = replace(suppressor, spread_scale=scale)
    found = score_spread(pair, calibrated.predict_maps(film))
    assert found["spread_of_error"] == pytest.approx(1, rel=1e-3) and found["unsure_error"] > 1.5
    cautious = replace(calibrated, caution=1.0)
    np.testing.assert_allclose(cautious.predict_bone(film), 0.1 * film, atol=1e-4)
    np.testing.assert_allclose(calibrated.predict_bone(film), 0.5 * film, atol=1e-4)
