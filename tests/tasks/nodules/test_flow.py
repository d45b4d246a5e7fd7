"""Flow matching of lesions: what the loss is, what sampling does, and what a model folder keeps."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.nodules.canvas import NoduleBatch, build_canvas
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.flow import FlowConfig, FlowNodules
from chess_cxr.tasks.nodules.model import load_nodule_generator
from chess_cxr.tasks.nodules.plan import build_groups, plan_generation, plan_nodule_training
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.told import describe, find_lesion, measure_diameter
from chess_cxr.tasks.nodules.train import finetune_nodules
from chess_cxr.training.loop import build_optimizers
from same_end import Enough, stop_after

TINY = FlowConfig(64, 2)
FLOW = NodulesConfig(network="flow", size=64, film_size=128, width=2, steps=2, batch=2, perceptual="none")
ENCODER = "random:regnetx_002@64"


def draw_batch(count: int = 3, seed: int = 0, contrast: float = 0.2) -> NoduleBatch:
    """Films of smooth noise with a disc of some contrast."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    films, masks = [], []
    for _ in range(count):
        radius = rng.uniform(3, 9)
        mask = np.hypot(x - 32, y - 32) < radius
        films.append(0.4 + 0.001 * x + contrast * mask + rng.normal(0, 0.01, mask.shape))
        masks.append(mask)
    film, mask = (torch.from_numpy(np.stack(part)[:, None].astype(np.float32)) for part in (films, masks))
    return NoduleBatch(film.clamp(0, 1), mask, malignant_B=torch.tensor([1.0, 0.0, math.nan])[:count])


def test_the_loss_is_the_mean_squared_error_of_the_velocity_inside_the_region() -> None:
    """A new network returns zero, so the loss is the mean square of lesion minus noise: by loops, from the paper."""
    method, batch = FlowNodules(TINY), draw_batch()
    torch.manual_seed(5)
    ((name, loss),) = method.losses(batch)
    torch.manual_seed(5)
    noise = torch.randn(3, 1, 64, 64).numpy()
    ground = build_canvas(batch, TINY).ground_B1SS
    assert name == "generator" and ground is not None
    means = []
    for row in range(3):
        region = compute_region(batch.mask_B1SS[row, 0].numpy() > 0, TINY.margin, TINY.margin_px)
        errors = [
            ((batch.film_B1SS[row, 0, y, x] - ground[row, 0, y, x]).item() / 0.1 - noise[row, 0, y, x]) ** 2
            for y, x in np.argwhere(region)
        ]
        means.append(np.mean(errors))
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-5)


def test_the_network_is_told_size_contrast_and_kind() -> None:
    batch = draw_batch()
    lesion = 0.3 * batch.mask_B1SS
    told = describe(batch, lesion)
    area = batch.mask_B1SS.flatten(1).sum(1)
    assert torch.allclose(told[:, 0], torch.log(2 * torch.sqrt(area / math.pi)))
    assert torch.allclose(told[:, 1], torch.full((3,), 3.0))
    assert told[:, 2:].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert describe(replace(batch, malignant_B=None), lesion)[:, 2:].tolist() == [[0, 0]] * 3
    assert measure_diameter(torch.zeros(1, 1, 8, 8)).item() == 1


def test_sampling_follows_a_constant_velocity_to_its_end() -> None:
    """Straight paths are followed exactly, whatever the number of steps; every other pixel keeps its bits."""
    method, batch = FlowNodules(TINY), draw_batch(1)
    aim = 0.7

    def head_for(at_B4SS: torch.Tensor, time_B: torch.Tensor, _told: torch.Tensor) -> torch.Tensor:
        return (aim - at_B4SS[:, :1]) / (1 - time_B)[:, None, None, None]  # the velocity of straight paths to `aim`

    method.averaged.forward = head_for  # type: ignore[method-assign]
    made = method.make(batch, [3])
    canvas = build_canvas(batch, TINY)
    assert canvas.ground_B1SS is not None and canvas.share_B1SS is not None
    inside = canvas.share_B1SS == 1
    assert (made - (canvas.ground_B1SS + 0.1 * aim))[inside].abs().max() < 1e-5
    outside = canvas.share_B1SS == 0
    assert torch.equal(made[outside], batch.film_B1SS[outside])


def test_a_film_depends_on_its_own_row_and_seed_alone() -> None:
    torch.manual_seed(0)
    method, batch = FlowNodules(TINY), draw_batch()
    torch.nn.init.normal_(method.averaged.end.weight, std=0.1)
    made = method.make(batch, [1, 2, 3])
    alone = method.make(NoduleBatch(batch.film_B1SS[1:2], batch.mask_B1SS[1:2]), [2])
    assert torch.equal(made[1:2], alone)
    assert not torch.equal(method.make(batch, [1, 2, 4])[2], made[2])
    with pytest.raises(UsageError, match="3 films need as many seeds, not 1"):
        method.make(batch, [1])


def test_a_nodule_like_another_is_told_its_contrast_and_kind_and_keeps_its_own_size() -> None:
    method, batch = FlowNodules(TINY), draw_batch(1)
    told: list[torch.Tensor] = []

    def listen(at_B4SS: torch.Tensor, _time_B: torch.Tensor, told_BE: torch.Tensor) -> torch.Tensor:
        told.append(told_BE)
        return torch.zeros_like(at_B4SS[:, :1])

    method.averaged.forward = listen  # type: ignore[method-assign]
    like = draw_batch(1, seed=4, contrast=0.3)
    method.make(batch, [1], like)
    lesion = find_lesion(like, build_canvas(like, TINY))
    expected = [float(measure_diameter(batch.mask_B1SS).log()), float(describe(like, lesion)[0, 1]), 1, 0]
    assert told[0][0].tolist() == pytest.approx(expected) and expected[1] > 1.5


def test_contrasts_and_kinds_are_drawn_as_in_training() -> None:
    method = FlowNodules(TINY)
    rng = np.random.default_rng(0)
    log_N = rng.uniform(1, 3, 4000)
    contrast_N = 2 * log_N - 1 + rng.normal(0, 0.3, 4000)
    kind_N = rng.choice(3, 4000, p=[0.5, 0.3, 0.2])
    told = np.stack([log_N, contrast_N, kind_N == 0, kind_N == 1], 1).astype(np.float32)
    method.averaged.learn_nodules(torch.from_numpy(told))
    generator = torch.Generator().manual_seed(0)
    drawn = method.averaged.draw_nodules(torch.full((4000,), 2.0), generator)
    assert drawn[:, 1].mean().item() == pytest.approx(3, abs=0.03)
    assert drawn[:, 1].std().item() == pytest.approx(0.3, abs=0.02)
    assert drawn[:, 2:].mean(0).tolist() == pytest.approx([0.5, 0.3], abs=0.03)
    one = FlowNodules(TINY)
    one.learn_nodules([draw_batch(1)])  # one nodule: no line can be fitted
    assert torch.isfinite(one.averaged.draw_nodules(torch.tensor([2.0]), generator)).all()


def test_it_learns_the_contrast_that_it_is_told() -> None:
    """Overfitting discs of two contrasts: what it makes follows what it is asked for."""
    torch.manual_seed(0)
    config = replace(FLOW, width=4, steps=250, batch=4, learning_rate=3e-3)
    method = FlowNodules(FlowConfig(64, 4, ema=0.98))
    batches = [draw_batch(2, seed, contrast) for seed in range(4) for contrast in (0.08, 0.3)]
    method.learn_nodules(batches)
    optimizers = build_optimizers(method, plan_nodule_training(config), build_groups(method))
    first = last = 0.0
    for step in range(config.steps):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        ((_, loss),) = method.losses(batches[step % len(batches)])
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        method.after_step()
        first, last = first + loss.item() * (step < 20), last + loss.item() * (step >= config.steps - 20)
    assert last < 0.5 * first
    batch = draw_batch(1, 99, 0.0)
    made = []
    for contrast in (0.08, 0.3):
        told = torch.tensor([[float(measure_diameter(batch.mask_B1SS).log()), contrast / 0.1, 0.0, 0.0]])
        method.averaged.draw_nodules = lambda *_, told=told: told  # type: ignore[method-assign]
        film = method.eval().make(batch, [1])
        made.append(float((film - batch.film_B1SS)[batch.mask_B1SS > 0].mean()))
    assert made[1] > made[0] + 0.1


def test_a_model_folder_loads_and_paints_and_knows_its_network(tmp_path: Path) -> None:
    result = finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "flow", FLOW)
    assert result.metrics["background_equal"].value == 1
    described = json.loads((tmp_path / "flow/config.json").read_text())
    assert described["network"] == "flow"
    painter = load_nodule_generator(tmp_path / "flow")
    film, mask = np.full((128, 128), 0.5, np.float32), np.zeros((128, 128), bool)
    mask[60:68, 60:68] = True
    made = painter.paint(film, mask, 1)
    assert np.array_equal(made[:30], film[:30]) and not np.array_equal(made, film)
    for change in ({"network": "gan"}, {"generator": described["generator"] | {"width": 10**6}}):
        (tmp_path / "flow/config.json").write_text(json.dumps(described | change))
        with pytest.raises(ChessError, match="network of a generator|width of 1 to 256"):
            load_nodule_generator(tmp_path / "flow")


def test_an_interrupted_flow_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = replace(FLOW, steps=4, checkpoint_every=2)
    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "whole", config)

    with pytest.raises(Enough):
        finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "parts", config, on_step=stop_after(3))
    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "parts", config)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "film"}, "mode belongs to the network spade"),
        ({"vary": False}, "vary belongs to the network spade"),
        ({"kld": 0.1}, "kld belongs to the network spade"),
        ({"size": 256}, "a flow makes squares of 64 or 128 px, not 256"),
        ({"width": 0}, "width of 1 to 256"),
        ({"film_size": 32}, "size <= film_size"),
    ],
)
def test_options_that_do_nothing_for_a_flow_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_generation(replace(FLOW, **change))
