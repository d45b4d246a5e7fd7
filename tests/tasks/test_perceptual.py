"""The perceptual loss against features taken by hand, and pictures against the contract they are brought to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from chess_cxr.decode.film import decode_film
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import build_random_encoder, load_encoder
from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.config import STAGE_WEIGHTS, PerceptualConfig
from chess_cxr.tasks.perceptual import (
    DISTURBED,
    PerceptualLoss,
    balance_stages,
    build_perceptual,
    build_stages,
    check_perceptual,
    draw_disturbances,
    find_window,
    prepare_pictures,
)

CONTRACT = PixelContract(64, (0.4,), (0.3,))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_random_encoder("resnet18", CONTRACT, seed=2)


def draw_phantom(height: int = 96, width: int = 96) -> np.ndarray:
    size = max(height, width, 64)
    pixels = render_film(draw_anatomy(1), draw_exposure(2), "nodule", size).pixels
    return (pixels / np.float32(MAX_PIXEL)).astype(np.float32)[:height, :width]


def draw_pictures(seed: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))


def as_batch(film_HW: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(film_HW))[None, None]


# The loss -----------------------------------------------------------------------------------------------------------


def compute_by_hand(encoder: Encoder, picture: Tensor, truth: Tensor, scale: str) -> list[float]:
    """ResNet-18, one layer after the other, one number after the other."""
    net = encoder.module
    found = []
    stages: list[list[Tensor]] = []
    for films in (picture, truth):
        x = (films - 0.4) / 0.3
        with torch.no_grad():
            stem = net.act1(net.bn1(net.conv1(x)))  # type: ignore[operator]
            x, layers = net.maxpool(stem), [stem]  # type: ignore[operator]
            for name in ("layer1", "layer2", "layer3", "layer4"):
                x = getattr(net, name)(x)
                layers.append(x)
        stages.append(layers)
    for a_BCHW, b_BCHW in zip(*stages, strict=True):
        total = 0.0
        if scale == "unit":
            a_BCHW, b_BCHW = (f / f.pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-12) for f in (a_BCHW, b_BCHW))
        for a, b in zip(a_BCHW.double().flatten().tolist(), b_BCHW.double().flatten().tolist(), strict=True):
            total += abs(a - b)
        found.append(total / a_BCHW.numel())
    return found


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_the_loss_equals_features_taken_by_hand(scale: str, encoder: Encoder) -> None:
    picture, truth = draw_pictures(0), draw_pictures(1)
    stages = compute_by_hand(encoder, picture, truth, scale)
    assert min(stages) > 1e-4
    found = PerceptualLoss(encoder, PerceptualConfig(scale=scale))(picture, truth)  # type: ignore[arg-type]
    assert STAGE_WEIGHTS == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    assert float(found) == pytest.approx(sum(w * s for w, s in zip(STAGE_WEIGHTS, stages, strict=True)), rel=1e-4)
    for number in range(5):
        only = PerceptualConfig(tuple(float(n == number) for n in range(5)), scale=scale)  # type: ignore[arg-type]
        assert float(PerceptualLoss(encoder, only)(picture, truth)) == pytest.approx(stages[number], rel=1e-4)


@pytest.mark.parametrize("name", ["regnetx_002", "tf_efficientnet_lite0"])
def test_the_loss_equals_timms_own_features(name: str) -> None:
    encoder = build_random_encoder(name, CONTRACT, seed=1)
    net = timm.create_model(name, pretrained=False, features_only=True, in_chans=1).eval()
    missing, _ = net.load_state_dict(encoder.module.state_dict(), strict=False)
    assert missing == []
    picture, truth = draw_pictures(0), draw_pictures(1)
    with torch.no_grad():
        pairs = zip(net((picture - 0.4) / 0.3), net((truth - 0.4) / 0.3), strict=True)
    expected = sum(w * float((a - b).abs().mean()) for w, (a, b) in zip(STAGE_WEIGHTS, pairs, strict=True))
    assert float(PerceptualLoss(encoder)(picture, truth)) == pytest.approx(expected, rel=1e-4)


def test_equal_pictures_are_no_distance_apart_and_nearer_ones_less(encoder: Encoder) -> None:
    loss, truth = PerceptualLoss(encoder), as_batch(draw_phantom())
    assert float(loss(truth, truth)) == 0
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    distances = [float(loss(truth + amount * noise, truth)) for amount in (0.01, 0.03, 0.1)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_gradients_reach_the_picture_and_never_the_network_nor_the_truth(encoder: Encoder) -> None:
    loss = PerceptualLoss(encoder)
    picture, truth = draw_pictures(0).requires_grad_(), draw_pictures(1).requires_grad_()
    loss(picture, truth).backward()
    assert picture.grad is not None and float(picture.grad.abs().sum()) > 0 and truth.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in loss.network.parameters())


def test_a_contract_with_a_window_lets_gradients_through_too(encoder: Encoder) -> None:
    windowed = replace(encoder, contract=replace(CONTRACT, percentiles=(1.0, 99.0), polarity="bone_dark"))
    picture = draw_pictures(0, 96, 80).requires_grad_()
    PerceptualLoss(windowed)(picture, draw_pictures(1, 96, 80)).backward()
    assert picture.grad is not None and float(picture.grad.abs().mean()) > 0


def test_the_network_stays_as_it_was_through_training_steps(encoder: Encoder) -> None:
    given = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    loss = PerceptualLoss(encoder)
    before = {name: tensor.clone() for name, tensor in loss.network.state_dict().items()}
    layer = nn.Conv2d(1, 1, 3, padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(3):
        layer.train()
        optimizer.zero_grad()
        loss(layer(draw_pictures(step)), draw_pictures(9)).backward()
        optimizer.step()
    assert not any(module.training for module in loss.network.modules())
    assert sum("running_mean" in name for name in before) > 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.network.state_dict().items())
    assert all(torch.equal(tensor, given[name]) for name, tensor in encoder.module.state_dict().items())


def test_the_networks_weights_are_its_own(encoder: Encoder) -> None:
    """An encoder that is trained on, as that of a bone network may be, changes nothing in what it is judged by."""
    given = build_random_encoder("resnet18", CONTRACT, seed=5)
    loss = PerceptualLoss(given)
    before = float(loss(draw_pictures(0), draw_pictures(1)))
    with torch.no_grad():
        for parameter in given.module.parameters():
            parameter.add_(1)
    assert float(loss(draw_pictures(0), draw_pictures(1))) == before


# The contract -------------------------------------------------------------------------------------------------------

CONTRACTS = {
    "plain": CONTRACT,
    "window": replace(CONTRACT, percentiles=(2.0, 95.0)),
    "dark": replace(CONTRACT, polarity="bone_dark"),
    "dark window": replace(CONTRACT, polarity="bone_dark", percentiles=(0.0, 99.0)),
    "three channels": PixelContract(64, (0.48, 0.45, 0.4), (0.2, 0.3, 0.25), channels=3),
    "pad": replace(CONTRACT, fit="pad"),
    "pad dark": replace(CONTRACT, fit="pad", polarity="bone_dark"),
    "crop": replace(CONTRACT, fit="crop"),
}


def prepare(film_HW: np.ndarray, contract: PixelContract) -> np.ndarray:
    film = as_batch(film_HW)
    return prepare_pictures(film, contract, find_window(film, contract))[0].numpy()


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("shape", [(64, 64), (40, 50), (51, 33)], ids=str)
def test_pictures_are_prepared_as_the_contract_prepares_films(name: str, shape: tuple[int, int]) -> None:
    film, contract = draw_phantom(*shape), CONTRACTS[name]
    expected = contract.prepare(film).numpy()
    np.testing.assert_allclose(prepare(film, contract), expected, atol=2e-3 / min(contract.std))


@pytest.mark.parametrize("name", CONTRACTS)
def test_sampling_without_averages_is_the_contracts_too(name: str) -> None:
    contract = replace(CONTRACTS[name], interpolation="bilinear")
    film = draw_phantom(200, 150)
    np.testing.assert_allclose(prepare(film, contract), contract.prepare(film).numpy(), atol=2e-3 / min(contract.std))


@pytest.mark.real_films
@pytest.mark.parametrize("name", CONTRACTS)
def test_real_films_that_shrink_are_nearly_the_contracts(name: str, real_films: Path) -> None:
    """Antialiased sampling stands for area means: off by a grey level of 255 in the mean."""
    contract = CONTRACTS[name]
    for path in sorted((real_films / "jsrt" / "images").iterdir())[:2]:
        film = decode_film(path).pixels[:, 20:]
        off = np.abs(prepare(film, contract) - contract.prepare(film).numpy()) * min(contract.std)
        assert off.mean() < 1.5 / 255 and np.percentile(off, 99) < 8 / 255, (off.mean(), np.percentile(off, 99))


def test_the_windows_of_both_pictures_are_the_truths(encoder: Encoder) -> None:
    """A picture that is the truth with twice the contrast must not be brought back to it by a window of its own."""
    windowed = replace(encoder, contract=replace(CONTRACT, percentiles=(0.0, 100.0)))
    truth = 0.25 + 0.5 * draw_pictures(0)
    assert float(PerceptualLoss(windowed)(0.5 * truth, truth)) > 0.01


def test_a_blank_picture_gives_numbers(encoder: Encoder) -> None:
    windowed = replace(encoder, contract=replace(CONTRACT, percentiles=(1.0, 99.0)))
    blank = torch.full((1, 1, 64, 64), 0.5, requires_grad=True)
    loss = PerceptualLoss(windowed)(blank, blank.detach())
    loss.backward()
    assert float(loss.detach()) == 0 and blank.grad is not None and bool(torch.isfinite(blank.grad).all())


def test_films_can_be_compared_at_their_own_size(encoder: Encoder) -> None:
    picture, truth = draw_pictures(0, 128, 128), draw_pictures(1, 128, 128)
    config = PerceptualConfig((1.0, 0, 0, 0, 0), resolution="film")
    stages = compute_by_hand(encoder, picture, truth, "raw")
    assert float(PerceptualLoss(encoder, config)(picture, truth)) == pytest.approx(stages[0], rel=1e-4)
    assert float(PerceptualLoss(encoder, replace(config, resolution="contract"))(picture, truth)) != pytest.approx(
        stages[0], rel=0.05
    )


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(1.0,) * 4, (0.0,) * 5, (1.0, 1.0, -1.0, 1.0, 1.0), (float("nan"),) * 5])
def test_weights_that_weigh_nothing_are_refused(stages: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="5 stage weights of 0 or more, one of them above 0"):
        PerceptualConfig(stages)


def test_a_network_without_five_stages_is_refused_in_one_line() -> None:
    for name, part in (("vit_tiny_patch16_224", "vit_tiny_patch16_224"), ("convnext_atto", "4 stages of features")):
        with pytest.raises(UsageError, match=part) as caught:
            build_stages(build_random_encoder(name, PixelContract(224, (0.5,), (0.25,))))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("chess", "chess needs the published file"),
        ("chess:absent.pth.tar", "there is no file absent.pth.tar"),
        ("pixels:32", "bare pixels are no perceptual network"),
        ("no/such/folder", "there is no encoder folder no/such/folder"),
    ],
)
def test_a_name_that_no_network_has_is_refused_before_anything_is_loaded(spec: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        check_perceptual(spec)


def test_networks_are_found_by_name(encoder: Encoder) -> None:
    assert build_perceptual("none", encoder) == (None, "no perceptual loss")
    picture, truth = draw_pictures(0), draw_pictures(1)
    losses = {}
    for spec in ("same", "random", "random:regnetx_002@64"):
        loss, about = build_perceptual(spec, encoder)
        assert loss is not None and about.endswith("at 64²)")
        losses[spec] = float(loss(picture, truth))
    assert losses["same"] == float(PerceptualLoss(encoder)(picture, truth))
    assert len(set(losses.values())) == 3
    again, _ = build_perceptual("random", encoder)
    other, _ = build_perceptual("random", encoder, seed=1)
    assert again is not None and other is not None
    assert float(again(picture, truth)) == losses["random"] != float(other(picture, truth))


def test_imagenet_brings_its_own_contract() -> None:
    loss, about = build_perceptual("imagenet", load_encoder("random:regnetx_002@64"))
    assert loss is not None and loss.contract.channels == 3 and loss.contract.size >= 224
    assert about.split(" ")[0]


# Balance


def test_balanced_stages_cost_a_fifth_of_l1_each_whatever_the_gain_of_the_network(encoder: Encoder) -> None:
    picture = torch.from_numpy(draw_phantom())[None, None]
    changes = draw_disturbances(picture)
    assert set(changes) == {"noise", "blur", "brightness", "mottle"}
    assert all(float(it.square().mean().sqrt()) == pytest.approx(DISTURBED, rel=1e-4) for it in changes.values())
    costs = []
    for loss in (PerceptualLoss(encoder), PerceptualLoss(build_random_encoder("resnet18", CONTRACT, seed=3))):
        loss.stages = balance_stages(loss, picture)
        share_DS = [
            [w * float(d) / float(change.abs().mean()) for w, d in zip(loss.stages, found, strict=True)]
            for change in changes.values()
            if (found := loss.measure_stages(picture + change, picture))
        ]
        np.testing.assert_allclose(np.exp(np.log(share_DS).mean(0)), 0.2, rtol=1e-3)
        costs.append(np.sum(share_DS, axis=1))
    assert np.exp(np.log(costs[0]).mean()) == pytest.approx(np.exp(np.log(costs[1]).mean()), rel=0.2)
