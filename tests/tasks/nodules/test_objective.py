"""Generating nodules: losses the slow way, what may change in a film, exact resume, and does it learn."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.optim import Optimizer

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.canvas import (
    Mode,
    NoduleBatch,
    blend,
    build_canvas,
    continue_into,
    generate_film,
    lay_ground,
)
from chess_cxr.tasks.nodules.losses import (
    compute_discriminator_hinge,
    compute_feature_matching,
    compute_generator_hinge,
    compute_gradient_penalty,
    compute_kl_divergence,
)
from chess_cxr.tasks.nodules.objective import GenerateConfig, GenerateNodules, check_generate_config
from chess_cxr.tasks.nodules.region import compute_blend, compute_region, find_window
from chess_cxr.tasks.nodules.spade import TINY_WIDTH
from chess_cxr.training.checkpoint import restore_checkpoint, write_checkpoint
from chess_cxr.training.loop import LoopState, TrainingConfig, train
from states import copy_state, list_changed

TINY = GenerateConfig(size=64, width=TINY_WIDTH, latent=8)
TRAINING = TrainingConfig(steps=6, batch=4, learning_rate=1e-3)


def draw_discs(count: int, seed: int, brighter: float = 0.3, size: int = 64) -> tuple[Tensor, Tensor]:
    """SYNTHETIC: a grey slope with noise and one brighter disc; films and masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    films = np.empty((count, 1, size, size), np.float32)
    masks = np.zeros_like(films)
    for film, mask in zip(films[:, 0], masks[:, 0], strict=True):
        across, down = rng.uniform(0.25, 0.75, 2)
        mask[:] = np.hypot(x - across, y - down) <= rng.uniform(0.1, 0.15)
        slope = rng.uniform(0.2, 0.5) + rng.uniform(-0.1, 0.1) * (x - 0.5) + rng.uniform(-0.1, 0.1) * (y - 0.5)
        film[:] = np.clip(slope + brighter * mask + rng.normal(0, 0.02, slope.shape), 0, 1)
    return torch.from_numpy(films), torch.from_numpy(masks)


def draw_batches(batch: int, steps: int, first: int = 0) -> Iterator[NoduleBatch]:
    """Batches of 128 films; batch n is the same wherever one begins."""
    film, mask = draw_discs(128, seed=0)
    for step in range(first, steps):
        rows = torch.randperm(128, generator=torch.Generator().manual_seed(step))[:batch]
        yield NoduleBatch(film[rows], mask[rows])


def build(
    config: GenerateConfig = TINY, seed: int = 0, rate: float = 1e-3
) -> tuple[GenerateNodules, dict[str, Optimizer]]:
    torch.manual_seed(seed)
    task = GenerateNodules(config)
    groups = task.build_parameter_groups()
    return task, {name: torch.optim.Adam(groups[name], lr=rate, betas=(0.0, 0.9)) for name in groups}


# Losses against the slow way ----------------------------------------------------------------------------------------


def draw_layers(seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [[(2, 3, 4, 4), (2, 1, 3, 3)], [(2, 3, 2, 2), (2, 1, 2, 2)]]
    return [[2 * torch.randn(shape, generator=generator) for shape in scale] for scale in shapes]


def test_hinge_losses_equal_a_sum_over_every_patch() -> None:
    made, real = draw_layers(0), draw_layers(1)
    for_generator, for_discriminator = 0.0, 0.0
    for fake, true in zip(made, real, strict=True):
        fakes, trues = fake[-1].flatten().tolist(), true[-1].flatten().tolist()
        for_generator += -sum(fakes) / len(fakes) / 2
        for_discriminator += sum(max(0.0, 1 + score) for score in fakes) / len(fakes) / 2
        for_discriminator += sum(max(0.0, 1 - score) for score in trues) / len(trues) / 2
    assert float(compute_generator_hinge(made)) == pytest.approx(for_generator, rel=1e-5)
    assert float(compute_discriminator_hinge(made, real)) == pytest.approx(for_discriminator, rel=1e-5)


def test_a_discriminator_that_is_sure_and_right_has_no_loss() -> None:
    sure = [[torch.full((2, 1, 3, 3), 1.5)]]
    wrong = [[-layer for layer in layers] for layers in sure]
    assert float(compute_discriminator_hinge(wrong, sure)) == 0
    assert float(compute_discriminator_hinge(sure, wrong)) == 5


def test_feature_matching_compares_all_layers_but_the_scores_and_never_teaches_the_real_side() -> None:
    made, real = draw_layers(0), draw_layers(1)
    for layers in made + real:
        for layer in layers:
            layer.requires_grad_()
    loss = compute_feature_matching(made, real)
    expected = sum(
        sum(abs(a - b) for a, b in zip(one[0].flatten().tolist(), other[0].flatten().tolist(), strict=True))
        / one[0].numel()
        for one, other in zip(made, real, strict=True)
    )
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-5)
    loss.backward()
    assert all(layers[0].grad is None for layers in real) and all(layers[0].grad is not None for layers in made)


def test_the_divergence_equals_a_numerical_integral_over_each_latent() -> None:
    mean, log_variance = torch.tensor([[0.5, -1.0], [0.0, 2.0]]), torch.tensor([[0.3, -0.7], [0.0, 0.1]])
    grid = np.linspace(-15, 15, 300_001)
    nats = 0.0
    for centre, log_width in zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True):
        log_q = -((grid - centre) ** 2) / (2 * math.exp(log_width)) - 0.5 * math.log(2 * math.pi) - log_width / 2
        log_p = -(grid**2) / 2 - 0.5 * math.log(2 * math.pi)
        nats += float(np.trapezoid(np.exp(log_q) * (log_q - log_p), grid))
    assert float(compute_kl_divergence(mean, log_variance)) == pytest.approx(nats / 2, rel=1e-4)
    assert float(compute_kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4))) == 0


def test_the_gradient_penalty_of_a_linear_judge_is_half_the_length_of_its_weights_squared() -> None:
    weight, film = torch.randn(1, 1, 5, 5), torch.rand(3, 1, 5, 5, requires_grad=True)
    score = (film * weight).sum((1, 2, 3)).reshape(3, 1, 1, 1)
    penalty = compute_gradient_penalty(film, [[score]])
    assert float(penalty.detach()) == pytest.approx(float(weight.square().sum()) / 2, rel=1e-5)


# What may change in a film ------------------------------------------------------------------------------------------


def draw_circle(size: int, centre: tuple[float, float], radius: float) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


@pytest.mark.parametrize(("radius", "reach"), [(3.0, 4.0), (10.0, 10.5)])
def test_a_region_reaches_half_the_diameter_or_the_least_margin_beyond_the_nodule(radius: float, reach: float) -> None:
    mask = draw_circle(64, (30, 33), radius)
    region = compute_region(mask)
    inside, (rows, columns) = np.argwhere(mask), np.nonzero(region)
    distances = [float(np.hypot(*(inside - pixel).T).min()) for pixel in zip(rows, columns, strict=True)]
    assert max(distances) == pytest.approx(reach, abs=0.8)
    outside = np.argwhere(~region)
    assert min(float(np.hypot(*(inside - pixel).T).min()) for pixel in outside) > max(distances) - 1e-3
    assert not compute_region(np.zeros((9, 9), bool)).any() and compute_region(np.ones((9, 9), bool)).all()


def test_the_soft_edge_lies_inside_the_region_and_leaves_the_nodule_whole() -> None:
    mask = draw_circle(64, (30, 33), 6)
    region = compute_region(mask)
    share = compute_blend(region)
    assert share.dtype == np.float32 and (share[~region] == 0).all() and (share[region] > 0).all()
    assert (share[mask] == 1).all()
    row = share[30, 33:]  # from the middle outwards
    steps = -np.diff(row)
    assert (steps >= -1e-6).all() and steps.max() < 0.25


def test_at_the_edge_of_the_film_nothing_fades() -> None:
    share = compute_blend(compute_region(draw_circle(64, (0, 32), 6)))
    assert share[0, 32] == 1 and share[0].max() == 1


@pytest.mark.parametrize("height", [64, 200])
def test_outside_the_region_every_pixel_is_the_films_to_the_bit_in_float_8_and_16_bits(height: int) -> None:
    task, _ = build()
    rng = np.random.default_rng(0)
    for kind, top in ((np.uint8, 255), (np.uint16, 4095), (np.uint16, 65535)):
        stored = rng.integers(0, top, (height, 150 if height > 64 else 64), endpoint=True, dtype=kind)
        film = stored.astype(np.float32) / np.float32(top)
        mask = np.zeros(film.shape, bool)
        mask[20:31, 40:49] = True
        made = generate_film(task, film, mask, seed=1)
        region = compute_region(mask)
        assert made.dtype == np.float32 and made.shape == film.shape
        assert np.array_equal(made[~region].view(np.uint32), film[~region].view(np.uint32))
        again = np.rint(made * np.float32(top)).astype(kind)
        assert np.array_equal(again[~region], stored[~region])
        assert (made[mask] != film[mask]).mean() > 0.99


@pytest.mark.real_films
def test_outside_the_region_a_real_film_stays_what_it_was(real_films: Path) -> None:
    task, _ = build()
    path = next(iter(sorted((real_films / "jsrt" / "nodule_masks").iterdir())))
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0
    stored = cv2.imread(str(real_films / "jsrt" / "images" / path.name), cv2.IMREAD_GRAYSCALE)
    film = stored.astype(np.float32) / 255
    made = generate_film(replace_size(task, mask), film, mask, seed=3)
    changed = np.rint(made * 255).astype(np.uint8) != stored
    assert changed.any() and not (changed & ~compute_region(mask)).any()


def replace_size(task: GenerateNodules, mask: npt.NDArray[np.bool_]) -> GenerateNodules:
    """Return a task whose window holds the mask's region."""
    rows, columns = np.nonzero(compute_region(mask > 0))
    size = next(size for size in (64, 128, 256) if max(np.ptp(rows), np.ptp(columns)) < size)
    return task if size == 64 else build(replace(TINY, size=size))[0]


def test_what_the_losses_see_is_blended_too() -> None:
    task, _ = build()
    batch, seen = next(draw_batches(4, 1)), []
    task.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    list(task.losses(batch))
    region = torch.from_numpy(np.stack([compute_region(mask > 0) for mask in batch.mask_B1SS.numpy()[:, 0]]))[:, None]
    made, real, both = seen
    assert torch.equal(made[~region], batch.film_B1SS[~region]) and not torch.equal(made[region], real[region])
    assert torch.equal(both, torch.cat([made, real]))


def draw_region(size: int = 64, radius: float = 14) -> Tensor:
    y, x = np.mgrid[:size, :size]
    return torch.from_numpy((np.hypot(x - 30, y - 37) <= radius).astype(np.float32))[None, None]


def test_a_ground_keeps_the_film_outside_a_region_and_knows_nothing_of_what_is_inside() -> None:
    region, film = draw_region(), torch.rand(1, 1, 64, 64)
    ground = continue_into(region, film)
    assert torch.equal(ground[region == 0], film[region == 0])
    assert torch.equal(continue_into(region, torch.where(region > 0, torch.rand(1, 1, 64, 64), film)), ground)
    assert film.min() <= ground.min() and ground.max() <= film.max()


@pytest.mark.parametrize("radius", [3, 14, 24])
def test_a_ground_goes_on_as_even_grey_and_a_slope_do_around_a_region(radius: float) -> None:
    region = draw_region(radius=radius)
    even = torch.full((1, 1, 64, 64), 0.37)
    assert torch.allclose(continue_into(region, even), even, atol=1e-6)
    slope = torch.linspace(0.2, 0.8, 64).expand(1, 1, 64, 64).contiguous()
    # a slope of 0.6 a film: as near as a tenth of what the region spans
    assert (continue_into(region, slope) - slope).abs().max() < 0.6 * 2 * radius / 64 * 0.15


def test_a_ground_of_which_nothing_is_known_is_mid_grey_and_one_without_a_region_is_the_film() -> None:
    film = torch.rand(2, 1, 64, 64)
    assert torch.equal(continue_into(torch.ones_like(film), film), torch.full_like(film, 0.5))
    assert torch.equal(continue_into(torch.zeros_like(film), film), film)


def test_a_ground_depends_on_its_own_film_only() -> None:
    film, region = torch.rand(3, 1, 64, 64), torch.cat([draw_region(radius=radius) for radius in (5, 9, 20)])
    together = continue_into(region, film)
    for row in range(3):
        assert torch.equal(continue_into(region[row : row + 1], film[row : row + 1]), together[row : row + 1])


def test_a_new_generator_begins_near_the_ground() -> None:
    torch.manual_seed(0)
    task = GenerateNodules(TINY)
    film, mask = draw_discs(4, seed=3)
    made = task.make(NoduleBatch(film, mask), [0, 1, 2, 3])
    canvas = build_canvas(NoduleBatch(film, mask), task.config)
    assert canvas.ground_B1SS is not None and canvas.share_B1SS is not None
    expected = blend(canvas.ground_B1SS, film, canvas)
    assert (made - expected).abs().mean() < 0.02 < (made - film)[mask > 0].abs().mean()


def test_of_what_lies_in_the_region_the_ground_keeps_the_detail_and_not_a_nodule() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    region, slope = draw_region(radius=16), torch.linspace(0.3, 0.5, 64).expand(1, 1, 64, 64).contiguous()
    nodule = 0.2 * torch.exp(-((x - 30) ** 2 + (y - 37) ** 2) / (2 * 5**2))[None, None]
    dots = 0.05 * ((x + y) % 2)[None, None]
    plain = lay_ground(region, slope)
    assert (lay_ground(region, slope + nodule) - plain).abs().max() < 0.02
    kept = (lay_ground(region, slope + dots) - plain)[region > 0]
    assert kept.std() == pytest.approx(float(dots.std()), rel=0.05)
    assert torch.equal(lay_ground(region, slope + dots)[region == 0], (slope + dots)[region == 0])


# Films by seed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["film", "inpaint"])
def test_a_seed_always_makes_the_same_film_in_whatever_company(mode: Mode) -> None:
    task, _ = build(replace(TINY, mode=mode))
    film, mask = draw_discs(3, seed=1)
    random, mode_before = torch.get_rng_state(), task.training
    made = task.make(NoduleBatch(film, mask), [5, 6, 7])
    assert torch.equal(task.make(NoduleBatch(film[1:2], mask[1:2]), [6]), made[1:2])
    assert not torch.equal(task.make(NoduleBatch(film[1:2], mask[1:2]), [7]), made[1:2])
    assert np.array_equal(generate_film(task, film[2, 0].numpy(), mask[2, 0].numpy() > 0, 7), made[2, 0].numpy())
    assert torch.equal(torch.get_rng_state(), random) and task.training == mode_before


def test_films_are_made_by_the_averaged_generator() -> None:
    task, optimizers = build()
    list(train(task, draw_batches(4, 6), optimizers, TRAINING))
    film, mask = draw_discs(1, seed=1)
    made = task.make(NoduleBatch(film, mask), [0])
    task.generator.requires_grad_(False)
    for parameter in task.generator.parameters():
        parameter.zero_()
    assert torch.equal(task.make(NoduleBatch(film, mask), [0]), made)


def test_a_lung_mask_is_part_of_the_layout_where_it_is_asked_for() -> None:
    task, _ = build(replace(TINY, mode="film", lung=True))
    film, mask = draw_discs(1, seed=1)
    with pytest.raises(UsageError, match="built for films with lung masks; give them"):
        task.make(NoduleBatch(film, mask), [0])
    one, other = (task.make(NoduleBatch(film, mask, value * torch.ones_like(film)), [0]) for value in (0.0, 1.0))
    assert not torch.equal(one, other)


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_and_an_empty_one_are_refused_in_one_line_each() -> None:
    film, mask = np.full((80, 90), 0.5, np.float32), np.ones((70, 90), bool)
    with pytest.raises(UsageError, match="^the mask has 90 x 70 pixels, the film 90 x 80$"):
        generate_film(build()[0], film, mask, 0)
    with pytest.raises(UsageError, match="^the mask is empty: mark the place of the nodule$"):
        generate_film(build()[0], film, np.zeros((80, 90), bool), 0)


def test_films_and_nodules_that_do_not_fit_are_refused_in_one_line_each() -> None:
    task, _ = build()
    mask = np.zeros((100, 100), bool)
    mask[20:70, 20:70] = True
    with pytest.raises(UsageError, match="are 95 px wide and the generator makes 64; ask for a smaller one"):
        generate_film(task, np.zeros((100, 100), np.float32), mask, 0)
    with pytest.raises(UsageError, match="^the film is 60 x 50; the generator needs 64 x 64 at least$"):
        find_window(mask[:50, :60], 64)
    mask = draw_circle(100, (40, 40), 5)
    for wrong in (np.full((100, 100), 200, np.float32), np.full((100, 100), np.nan, np.float32)):
        with pytest.raises(UsageError, match="grey levels from 0 to 1; decode it first$"):
            generate_film(task, wrong, mask, 0)
    with pytest.raises(UsageError, match="makes whole films of 64 x 64 px"):
        generate_film(build(replace(TINY, mode="film"))[0], np.zeros((100, 100), np.float32), mask, 0)
    film, small = draw_discs(2, seed=0)
    with pytest.raises(UsageError, match="takes films and masks of 64 x 64 px, all alike"):
        next(iter(task.losses(NoduleBatch(film, small[:1]))))
    with pytest.raises(UsageError, match="2 films need as many seeds, not 1"):
        task.make(NoduleBatch(film, small), [0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "paint"},
        {"size": 100},
        {"width": 0},
        {"kld": -1.0},
        {"perceptual": math.nan},
        {"ema": 1.0},
        {"r1_every": 0},
    ],
)
def test_numbers_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        check_generate_config(replace(TINY, **wrong))


# Training -----------------------------------------------------------------------------------------------------------


def test_the_discriminator_learns_four_times_as_fast_and_both_share_nothing() -> None:
    task, optimizers = build()
    (report,) = train(task, draw_batches(4, 1), optimizers, replace(TRAINING, steps=1))
    assert list(report.losses) == ["generator", "discriminator"] and not report.problem
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    assert rates == {"generator": 1e-3, "discriminator": 4e-3}
    groups = task.get_parameters()
    assert {id(p) for p in groups["generator"]} & {id(p) for p in groups["discriminator"]} == set()
    assert all(parameter.requires_grad for parameters in groups.values() for parameter in parameters)


def test_the_generators_loss_spares_the_discriminator_and_the_other_way_round() -> None:
    task, _ = build()
    for name, loss in task.losses(next(draw_batches(4, 1))):
        task.zero_grad()
        loss.backward()
        for part, parameters in task.get_parameters().items():
            moved = [p for p in parameters if p.grad is not None and p.grad.abs().sum() > 0]
            assert bool(moved) == (part == name)


def test_the_generators_loss_is_the_weighted_sum_of_its_signals_perceptual_one_included() -> None:
    asked = []

    def compare(made: Tensor, real: Tensor) -> Tensor:
        asked.append((made.shape, float(made.detach().min()) >= 0, float(made.detach().max()) <= 1))
        return (made - real).abs().mean()

    torch.manual_seed(0)
    task = GenerateNodules(replace(TINY, feature_matching=3.0, perceptual=7.0, kld=0.5), compare)
    batch = next(draw_batches(4, 1))
    steps = task.losses(batch)
    _, loss = next(iter(steps))
    parts = task.signals
    expected = parts["hinge"] + 3 * parts["feature_matching"] + 7 * parts["perceptual"] + 0.5 * parts["kld"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5) and asked == [((4, 1, 64, 64), True, True)]
    next(iter(steps))
    assert set(task.signals) == {*parts, "real_score", "fake_score", "real_accuracy", "fake_accuracy"}
    assert 0 <= task.signals["real_accuracy"] <= 1 and 0 <= task.signals["fake_accuracy"] <= 1


def test_a_perceptual_network_is_no_part_of_the_task_and_keeps_its_mode() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval().requires_grad_(False)
    task = GenerateNodules(TINY, lambda made, real: (network(made) - network(real)).abs().mean())
    plain = GenerateNodules(TINY)
    assert task.state_dict().keys() == plain.state_dict().keys()
    task.train()
    list(task.losses(next(draw_batches(2, 1))))
    assert not network[1].training and not any(parameter.requires_grad for parameter in network.parameters())


def test_the_gradient_penalty_comes_every_few_steps_and_reaches_the_discriminator() -> None:
    task, optimizers = build(replace(TINY, r1=1.0, r1_every=3))
    seen = []
    for report in train(task, draw_batches(4, 6), optimizers, TRAINING):
        assert not report.problem
        seen.append("r1" in task.signals)
    assert seen == [True, False, False, True, False, False]


def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    task, _ = build(replace(TINY, ema=0.9))
    before = [parameter.clone() for parameter in task.averaged.parameters()]
    with torch.no_grad():
        for parameter in task.generator.parameters():
            parameter.add_(1)
    left = 1.0
    for step in range(1, 121):
        task.after_step()
        left *= min(0.9, step / (step + 10))
        if step in (1, 5, 120):
            for old, new in zip(before, task.averaged.parameters(), strict=True):
                torch.testing.assert_close(new, old + 1 - left)
    assert not task.averaged.training and not any(p.requires_grad for p in task.averaged.parameters())
    task.train()
    assert not task.averaged.training and task.generator.training


@pytest.mark.parametrize("mode", ["film", "inpaint"])
def test_a_run_that_went_on_from_a_checkpoint_ends_as_if_nothing_had_happened(mode: Mode, tmp_path: Path) -> None:
    config = replace(TINY, mode=mode, r1=1.0, r1_every=3)
    whole, optimizers = build(config)
    list(train(whole, draw_batches(4, 6), optimizers, TRAINING))
    expected = copy_state(whole, optimizers)

    first, optimizers = build(config)
    loop = LoopState(first, TRAINING)
    for report in train(first, draw_batches(4, 6), optimizers, TRAINING, state=loop):
        if report.step == 2:
            break
    path = write_checkpoint(tmp_path / "checkpoints", 2, first, optimizers, {}, loop=loop)

    again, optimizers = build(config, seed=9)  # other weights, other draws: all must come from the file
    loop = LoopState(again, TRAINING)
    assert restore_checkpoint(path, again, optimizers, {}, loop) == 2
    list(train(again, draw_batches(4, 6, first=2), optimizers, TRAINING, 2, loop))
    assert list_changed(expected, copy_state(again, optimizers)) == []
    assert any(name.endswith("_u") for name in expected)  # the spectral norms' vectors were among what was compared


def test_a_step_that_is_not_finite_leaves_no_trace() -> None:
    spoil: list[float] = [0.0, math.nan]
    torch.manual_seed(0)
    task = GenerateNodules(TINY, lambda made, real: (made - real).abs().mean() + spoil.pop(0))
    groups = task.build_parameter_groups()
    optimizers = {name: torch.optim.Adam(groups[name], lr=1e-3, betas=(0.0, 0.9)) for name in groups}
    reports = train(task, draw_batches(4, 2), optimizers, replace(TRAINING, steps=2))
    assert not next(reports).problem
    before = copy_state(task, optimizers)
    assert next(reports).problem
    assert list_changed(before, copy_state(task, optimizers)) == []


def measure_contrast(film: Tensor, mask: Tensor) -> list[float]:
    """Mean inside the mask minus mean of the ring two to four pixels around it, for each film."""
    measured = []
    for pixels, shape in zip(film[:, 0].numpy(), mask[:, 0].numpy() > 0.5, strict=True):
        distance = ndimage.distance_transform_edt(~shape)
        measured.append(float(pixels[shape].mean() - pixels[(distance >= 2) & (distance <= 4)].mean()))
    return measured


@pytest.mark.parametrize(("mode", "steps"), [("film", 20), ("inpaint", 30)])
def test_a_tiny_generator_learns_to_put_a_bright_disc_where_the_mask_says(mode: Mode, steps: int) -> None:
    task, optimizers = build(replace(TINY, mode=mode))
    film, mask = draw_discs(8, seed=5, brighter=0.0)  # never trained on, and without a disc
    elsewhere = torch.flip(mask, (2, 3))
    apart = (mask * elsewhere).sum((1, 2, 3)) == 0
    film, mask, elsewhere = film[apart], mask[apart], elsewhere[apart]
    assert len(film) >= 3
    seeds = range(len(film))
    unlearned = measure_contrast(task.make(NoduleBatch(film, mask), seeds), mask)
    config = replace(TRAINING, steps=steps, batch=8)
    for report in train(task, draw_batches(8, steps), optimizers, config):
        assert not report.problem
    for here, there in ((mask, elsewhere), (elsewhere, mask)):
        made = task.make(NoduleBatch(film, here), seeds)
        assert min(measure_contrast(made, here)) > 0.12  # 0.3 is what it was shown
        assert np.mean(measure_contrast(made, here)) > np.mean(unlearned) + 0.1
        assert max(np.abs(measure_contrast(made, there))) < 0.08
