"""The bone network: what it may never do, where it begins, and films larger than what it sees at a time."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from chess_cxr.decode.film import decode_film
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import build_random_encoder, load_encoder
from chess_cxr.records import ChessError, UsageError
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.bones.network import BoneNetwork, BoneNetworkShape, build_bone_network, predict_bone
from chess_cxr.views import resize_longest

NETWORKS = ["resnet18", "tf_efficientnet_lite0", "regnetx_002"]


@pytest.fixture(scope="module")
def network(encoder: Encoder) -> BoneNetwork:
    return build_bone_network(encoder, "tiny", seed=1).eval()


def draw_film(size: int) -> np.ndarray:
    pixels = render_film(draw_anatomy(1), draw_exposure(2), "nodule", size).pixels
    return (pixels / np.float32(MAX_PIXEL)).astype(np.float32)


def draw_films(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("decoder", ["tiny", "full"])
def test_bone_is_never_negative_and_of_the_films_size(name: str, decoder: str) -> None:
    network = build_bone_network(load_encoder(f"random:{name}@64"), decoder).eval()
    with torch.inference_mode():
        for height, width in ((64, 64), (33, 47), (1, 70), (97, 11)):
            bone = network(draw_films(height, width))
            assert bone.shape == (2, 1, height, width) and bone.dtype == torch.float32
            assert torch.isfinite(bone).all() and float(bone.min()) >= 0


@pytest.mark.parametrize("push", [-50.0, 50.0])
def test_bone_stays_0_or_more_whatever_the_weights_say(encoder: Encoder, push: float) -> None:
    network = build_bone_network(encoder).eval()
    torch.nn.init.constant_(network.head[-1].bias, push)  # type: ignore[arg-type]
    film = draw_film(96)
    bone = predict_bone(network, film, 96, 64)
    assert bone.min() >= 0 and (bone.max() < 1e-6 if push < 0 else bone.min() > 1)


def test_a_linear_head_begins_without_bone_and_has_a_floor_in_use_alone(encoder: Encoder) -> None:
    network, films = build_bone_network(encoder, score_grey=0.02), draw_films(64, 64)
    assert float(network(films).detach().abs().max()) == 0
    torch.nn.init.constant_(network.head[-1].bias, -3.0)  # type: ignore[arg-type]
    bone = network.train()(films)
    torch.testing.assert_close(bone, torch.full_like(bone, -0.06))
    assert float(network.eval()(films).detach().abs().max()) == 0
    torch.nn.init.constant_(network.head[-1].bias, 3.0)  # type: ignore[arg-type]
    torch.testing.assert_close(network(films), torch.full_like(bone, 0.06))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_encoder_begins_with_the_given_weights_tensor_by_tensor(name: str) -> None:
    given = load_encoder(f"random:{name}@64#3")
    known = given.module.state_dict()
    begun = build_bone_network(given).encoder.state_dict()
    compared = 0
    for key, tensor in begun.items():
        assert torch.equal(tensor, known[key.removeprefix("model.")]), key
        compared += tensor.ndim == 4
    convolutions = sum(tensor.ndim == 4 for tensor in known.values())
    assert compared >= convolutions - 1  # a head's convolution is no part of the features
    assert not any(
        torch.equal(tensor, other)
        for (key, tensor), other in zip(
            begun.items(),
            build_bone_network(load_encoder(f"random:{name}@64#4")).encoder.state_dict().values(),
            strict=True,
        )
        if tensor.ndim == 4
    )


def test_an_encoder_of_three_channels_sees_the_same_in_grey() -> None:
    contract = PixelContract(64, (0.4, 0.5, 0.6), (0.25, 0.25, 0.25), channels=3)
    given = build_random_encoder("resnet18", contract)
    network = build_bone_network(given)
    assert (network.shape.mean, network.shape.std) == (pytest.approx(0.5), pytest.approx(0.25))
    first = network.encoder.state_dict()["model.conv1.weight"]
    torch.testing.assert_close(first, given.module.state_dict()["conv1.weight"].sum(1, keepdim=True))


def test_an_encoder_that_wants_bone_dark_is_turned() -> None:
    given = build_random_encoder("resnet18", PixelContract(64, (0.3,), (0.2,), polarity="bone_dark")).module
    encoder = build_random_encoder("resnet18", PixelContract(64, (0.3,), (0.2,), polarity="bone_dark"))
    network = build_bone_network(encoder)
    film = draw_films(64, 64)
    wanted = given.conv1(((1 - film) - 0.3) / 0.2)  # type: ignore[operator]
    found = network.encoder.model.conv1((film - network.shape.mean) / network.shape.std)
    inner = slice(4, -4)  # beside the edge, where zeros stand for other greys
    torch.testing.assert_close(found[..., inner, inner], wanted[..., inner, inner], atol=1e-4, rtol=1e-4)


def test_the_decoder_is_a_function_of_the_seed_and_leaves_the_callers_draws_alone(encoder: Encoder) -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    one, same, other = (build_bone_network(encoder, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_a_vision_transformer_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} .*cannot be the encoder of a U-Net") as caught:
        build_bone_network(build_random_encoder(name, PixelContract(224, (0.5,), (0.25,))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ({"architecture": "no_such_net"}, "timm has no network named"),
        ({"architecture": "../resnet18"}, "timm has no network named"),
        ({"architecture": "resnet18", "decoder": "huge"}, "decoder is tiny or full, not 'huge'"),
        ({"architecture": "resnet18", "std": 0.0}, "std from 0.0001 to 100"),
        ({"architecture": "resnet18", "mean": float("nan")}, "mean must lie within"),
        ({"architecture": "resnet18", "score_grey": -0.1}, "score_grey must lie from 0 to 1"),
        ({"architecture": "resnet18", "score_grey": float("nan")}, "score_grey must lie from 0 to 1"),
    ],
)
def test_a_shape_that_makes_no_network_is_refused(shape: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        BoneNetwork(BoneNetworkShape(**shape))  # type: ignore[arg-type]


# Tiles --------------------------------------------------------------------------------------------------------------


def train_briefly(network: BoneNetwork, film_HW: np.ndarray) -> BoneNetwork:
    """A few steps towards the film's own bright parts: weights that do something, as an untrained network does not."""
    film = torch.from_numpy(cv2.resize(film_HW, (256, 256), interpolation=cv2.INTER_AREA))[None, None]
    wanted = 0.3 * (film - torch.nn.functional.avg_pool2d(film, 31, 1, 15)).clamp(min=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for step in range(12):
        here = (..., slice(64 * (step % 3), 64 * (step % 3) + 128), slice(32 * (step % 4), 32 * (step % 4) + 128))
        optimizer.zero_grad()
        (network(film[here]) - wanted[here]).abs().mean().backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained(encoder: Encoder) -> BoneNetwork:
    return train_briefly(build_bone_network(encoder, "tiny", seed=1), draw_film(512))


@pytest.mark.parametrize("source", ["phantom", pytest.param("real", marks=pytest.mark.real_films)])
def test_tiles_leave_no_seams_at_1024(source: str, trained: BoneNetwork, request: pytest.FixtureRequest) -> None:
    """The step of the bone image across a border of a tile, as a multiple of the step elsewhere, is one tile's."""
    if source == "phantom":
        film = draw_film(1024)
    else:
        real: Path = request.getfixturevalue("real_films")
        film = decode_film(next(iter(sorted((real / "dicom").glob("RG1*.dcm"))))).pixels
        film = cv2.resize(film, (1024, 1024), interpolation=cv2.INTER_AREA)
    whole, tiled = predict_bone(trained, film, 1024, 1024), predict_bone(trained, film, 1024, 256)
    assert whole.std() > 1e-3
    borders = np.array(sorted({edge for start in range(0, 1024 - 255, 128) for edge in (start, start + 256)}))
    borders = borders[(borders > 0) & (borders < 1024)] - 1
    for axis in (0, 1):
        ratio = {}
        for name, bone in (("tiled", tiled), ("whole", whole)):
            step = np.abs(np.diff(bone, axis=axis)).mean(axis=1 - axis)
            elsewhere = np.ones(1023, bool)
            elsewhere[(borders[:, None] + np.arange(-2, 3)).ravel()] = False
            ratio[name] = float(step[borders].mean() / step[elsewhere].mean())
        assert ratio["tiled"] < 1.05 * ratio["whole"], ratio


def test_without_a_fade_the_seams_would_be_seen(trained: BoneNetwork) -> None:
    """The measure above can fail: tiles that are laid side by side have steps."""
    film = draw_film(512)
    bone = np.vstack([predict_bone(trained, film[top : top + 128], 512, 512) for top in range(0, 512, 128)])
    step = np.abs(np.diff(bone, axis=0)).mean(axis=1)
    assert step[127::128].mean() > 1.5 * np.delete(step, slice(127, None, 128)).mean()


@pytest.mark.parametrize("size", [(64, 64), (70, 131), (200, 64), (65, 300)])
def test_tiles_cover_every_pixel(size: tuple[int, int], network: BoneNetwork) -> None:
    film = np.random.default_rng(0).random(size, np.float32)
    bone = predict_bone(network, film, max(size), 64)
    assert bone.shape == size and np.isfinite(bone).all() and bone.min() >= 0


def test_one_tile_is_the_network_itself(network: BoneNetwork) -> None:
    film = draw_film(96)
    with torch.inference_mode():
        expected = network(torch.from_numpy(film)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(predict_bone(network, film, 96, 96), expected, atol=1e-5)


def test_a_film_larger_than_the_network_works_at_keeps_its_own_detail(network: BoneNetwork) -> None:
    film = draw_film(512)
    rng = np.random.default_rng(0)
    film = np.clip(film + 0.1 * rng.choice([-1, 1], film.shape), 0.0, 1.0).astype(np.float32)
    bone = predict_bone(network, film, 128, 128)
    assert bone.shape == film.shape
    high: Callable[[np.ndarray], np.ndarray] = lambda it: it - cv2.GaussianBlur(it, (0, 0), 1.5)  # noqa: E731
    inner = (film > 0.2) & (film < 0.8)
    kept = np.corrcoef(high(film)[inner], high(film - bone)[inner])[0, 1]
    assert kept > 0.999 and high(bone).std() < 0.02 * high(film).std()


def test_the_longest_side_becomes_the_size_and_the_shape_stays() -> None:
    film = draw_film(128)[:, :64]
    assert resize_longest(film, 256).shape == (256, 128) and resize_longest(film, 32).shape == (32, 16)
    assert resize_longest(film, 128) is film
    np.testing.assert_allclose(resize_longest(film, 64), film.reshape(64, 2, 32, 2).mean((1, 3)), atol=1e-6)
    assert resize_longest(np.zeros((3, 1500), np.float32), 64).shape == (1, 64)


def test_weights_that_are_not_finite_are_told(encoder: Encoder) -> None:
    network = build_bone_network(encoder)
    torch.nn.init.constant_(network.head[-1].bias, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ChessError, match="numbers that are not finite; its weights are broken"):
        predict_bone(network, draw_film(64), 64, 64)
