"""The task of bone suppression: its loss against a slow one, and whether it learns, in the loop of all tasks."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.image_metrics import compute_ms_ssim
from chess_cxr.tasks.bones.network import build_bone_network
from chess_cxr.tasks.bones.objective import PairBatch, SuppressBones, compute_ms_ssim_loss
from chess_cxr.tasks.bones.pairs import draw_phantom_pair
from chess_cxr.tasks.bones.train import measure_bone_grey, weigh_pairs
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair_batch
from chess_cxr.tasks.perceptual import PerceptualLoss
from chess_cxr.training.checkpoint import restore_checkpoint, write_checkpoint
from chess_cxr.training.loop import LoopState, TrainingConfig, build_optimizers, train
from states import copy_state

TRAINING = TrainingConfig(steps=6, batch=2, optimizer="adamw", learning_rate=1e-3, warmup=0.0, clip_norm=1.0)


@cache
def draw_batch(count: int = 4, size: int = 64, first: int = 0) -> PairBatch:
    pairs = [draw_phantom_pair(n, n, size) for n in range(first, first + count)]
    film, bone_free = (np.stack([getattr(p, side) for p in pairs])[:, None] for side in ("film_HW", "bone_free_HW"))
    return PairBatch(torch.from_numpy(film), torch.from_numpy(bone_free))


def build(perceptual: bool = False, weight: float = 1.0, seed: int = 0) -> SuppressBones:
    encoder = load_encoder("random:regnetx_002@64")
    torch.manual_seed(seed)
    return SuppressBones(
        build_bone_network(encoder, "tiny", seed), PerceptualLoss(encoder) if perceptual else None, weight
    )


def draw_pictures(height: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    film = draw_batch(1, 256).film_B1HW[..., :height, :width]
    return (film + noise * torch.randn(film.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1), film


# MS-SSIM


@pytest.mark.parametrize("shape", [(256, 256), (177, 200), (64, 64), (100, 47), (11, 30)], ids=str)
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_ms_ssim_is_that_of_the_evaluation(shape: tuple[int, int], noise: float) -> None:
    picture, truth = draw_pictures(*shape, noise)
    expected = compute_ms_ssim(picture[0, 0].numpy(), truth[0, 0].numpy())
    assert 0 < expected < 1
    assert 1 - float(compute_ms_ssim_loss(picture, truth)) == pytest.approx(expected, abs=2e-5)


def test_ms_ssim_of_a_batch_is_the_mean_of_its_pictures() -> None:
    (picture, truth), (worse, _) = draw_pictures(64, 64, 0.02), draw_pictures(64, 64, 0.2)
    both = compute_ms_ssim_loss(torch.cat([picture, worse]), torch.cat([truth, truth]))
    alone = [float(compute_ms_ssim_loss(it, truth)) for it in (picture, worse)]
    assert float(both) == pytest.approx(sum(alone) / 2, rel=1e-4) and alone[0] < alone[1]
    assert float(compute_ms_ssim_loss(truth, truth)) == pytest.approx(0, abs=1e-5)


def test_ms_ssim_has_a_gradient_even_where_pictures_are_opposites() -> None:
    _, truth = draw_pictures(64, 64, 0.0)
    picture = (1 - truth).requires_grad_()
    compute_ms_ssim_loss(picture, truth).backward()
    assert picture.grad is not None and bool(torch.isfinite(picture.grad).all())


# The loss


def test_the_loss_is_l1_and_ms_ssim_and_the_weighed_perceptual_part() -> None:
    task, batch = build(perceptual=True, weight=3.0), draw_batch()
    task.eval()
    [(name, loss)] = list(task.losses(batch))
    with torch.no_grad():
        result = batch.film_B1HW - task.network(batch.film_B1HW)
    assert task.perceptual is not None
    l1 = float((result - batch.bone_free_B1HW).abs().mean())
    similar = float(compute_ms_ssim_loss(result, batch.bone_free_B1HW))
    perceptual = 3.0 * float(task.perceptual(result, batch.bone_free_B1HW))
    assert name == "suppression" and min(l1, similar, perceptual) > 1e-4
    assert float(loss.detach()) == pytest.approx(l1 + similar + perceptual, rel=1e-4)
    expected = {"part/l1": l1, "part/ms_ssim": similar, "part/perceptual": perceptual}
    assert task.signals == pytest.approx(expected, rel=1e-3)


def test_without_a_perceptual_network_or_its_weight_the_part_is_left_out() -> None:
    for task in (build(), build(perceptual=True, weight=0.0)):
        list(task.losses(draw_batch()))
        assert set(task.signals) == {"part/l1", "part/ms_ssim"}


def test_a_perfect_result_has_no_loss() -> None:
    task, batch = build(), draw_batch()
    nothing = PairBatch(batch.film_B1HW, batch.film_B1HW)
    torch.nn.init.constant_(task.network.head[-1].bias, -50.0)  # type: ignore[arg-type]
    [(_, loss)] = list(task.losses(nothing))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)


def test_the_perceptual_network_is_no_part_of_the_task() -> None:
    task = build(perceptual=True)
    assert task.state_dict().keys() == build().state_dict().keys()
    assert isinstance(task.perceptual, PerceptualLoss)
    before = {name: tensor.clone() for name, tensor in task.perceptual.network.state_dict().items()}
    optimizers = build_optimizers(task, TRAINING)
    list(train(task, repeat(draw_batch(), 3), optimizers, TRAINING, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.perceptual.network.state_dict().items())
    assert not task.perceptual.network.training


# Training


def repeat(batch: PairBatch, steps: int) -> Iterator[PairBatch]:
    for _ in range(steps):
        yield batch


def draw_batches(first: int, steps: int) -> Iterator[PairBatch]:
    for step in range(first, steps):
        yield draw_batch(2, 64, first=step)


def test_a_tiny_network_overfits_four_phantoms() -> None:
    """To a tenth of the loss it began with and below that of the untouched films, in less than half a minute."""
    task, batch = build(), draw_batch()
    training = TrainingConfig(
        steps=90, batch=4, optimizer="adamw", learning_rate=3e-3, warmup=0.05, clip_norm=1.0, weight_decay=0.0
    )
    start, losses = time.process_time(), []
    for report in train(task, repeat(batch, 90), build_optimizers(task, training), training):
        assert not report.problem
        losses.append(report.losses["suppression"])
    assert time.process_time() - start < 30
    assert np.mean(losses[-5:]) < losses[0] / 10, (losses[0], losses[-5:])
    untouched = (batch.film_B1HW - batch.bone_free_B1HW).abs().mean()
    untouched += compute_ms_ssim_loss(batch.film_B1HW, batch.bone_free_B1HW)
    assert np.mean(losses[-5:]) < 0.8 * float(untouched), (losses[-5:], untouched)


@pytest.mark.parametrize("grey", [0.0, 0.01])
def test_faint_bone_is_found_by_a_linear_head_and_lost_by_a_softplus(grey: float) -> None:
    """Bone of real films adds a tenth of the grey of a phantom's: L1 pushes a softplus to where it has no slope."""
    batch = draw_batch()
    faint = PairBatch(batch.bone_free_B1HW + 0.1 * (batch.film_B1HW - batch.bone_free_B1HW), batch.bone_free_B1HW)
    task = SuppressBones(build_bone_network(load_encoder("random:regnetx_002@64"), "tiny", score_grey=grey))
    training = replace(TRAINING, steps=40, batch=4, learning_rate=2e-3)
    for report in train(task, repeat(faint, 40), build_optimizers(task, training), training):
        assert not report.problem
    bone = faint.film_B1HW - faint.bone_free_B1HW
    with torch.no_grad():
        found = task.network(faint.film_B1HW)
    left = 1 - float((found * bone).sum() / (bone**2).sum())
    assert left < 0.4 if grey else left > 0.8, left


def test_faint_pairs_count_as_much_as_others() -> None:
    films = [np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64) for _ in range(3)]
    pairs = [TrainingPair(film, film * (1 - share), 1.0) for film, share in zip(films, (0.2, 0.02, 0), strict=True)]
    assert measure_bone_grey(pairs) == pytest.approx(0.22 * float(films[0].std()) / 3, rel=1e-2)
    weighed = weigh_pairs(pairs)
    mean = (0.1 + 0.01 + 0.001) / 3
    assert [pair.weight for pair in weighed] == pytest.approx([mean / 0.1, mean / 0.01, mean / 0.001], rel=1e-3)
    batch = draw_pair_batch(weighed[:2], [0, 1], 0, PairViews(64, rotate_deg=0, scale=0, gamma=0, contrast=0))
    task = SuppressBones(build_bone_network(load_encoder("random:regnetx_002@64"), score_grey=0.02))
    list(task.losses(batch))
    left = (batch.film_B1HW - batch.bone_free_B1HW).abs().mean((1, 2, 3)).numpy()
    similar = [float(compute_ms_ssim_loss(batch.film_B1HW[n, None], batch.bone_free_B1HW[n, None])) for n in (0, 1)]
    for name, parts in (("l1", left), ("ms_ssim", similar)):
        expected = np.mean([mean / 0.1 * parts[0], mean / 0.01 * parts[1]])
        assert task.signals[f"part/{name}"] == pytest.approx(float(expected), rel=1e-2)


def test_a_run_that_went_on_from_a_checkpoint_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = build(perceptual=True)
    optimizers = build_optimizers(whole, TRAINING)
    list(train(whole, draw_batches(0, 6), optimizers, TRAINING))
    expected = copy_state(whole, optimizers)

    first = build(perceptual=True)
    optimizers, loop = build_optimizers(first, TRAINING), LoopState(first, TRAINING)
    for report in train(first, draw_batches(0, 6), optimizers, TRAINING, state=loop):
        if report.step == 3:
            break
    path = write_checkpoint(tmp_path / "checkpoints", 3, first, optimizers, {}, loop=loop)

    again = build(perceptual=True, seed=9)  # other weights: all must come from the file
    optimizers, loop = build_optimizers(again, TRAINING), LoopState(again, TRAINING)
    assert restore_checkpoint(path, again, optimizers, {}, loop) == 3
    list(train(again, draw_batches(3, 6), optimizers, TRAINING, 3, loop))
    found = copy_state(again, optimizers)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
