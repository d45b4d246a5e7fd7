from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS

from chess_cxr.judges.lpips import Lpips, compute_lpips
from chess_cxr.judges.vgg16 import read_vgg16_weights
from chess_cxr.records import UsageError

pytestmark = pytest.mark.usefixtures("vgg16_file")


def draw_film(seed: int = 0, height: int = 64, width: int = 48) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return np.clip(0.5 + cv2.GaussianBlur(noise, (0, 0), 2) + 0.05 * noise, 0, 1)


def test_it_agrees_with_torchmetrics_on_the_same_backbone() -> None:
    library = _LPIPS(net="vgg", pnet_rand=True)  # linear weights from its own file, VGG16 from ours
    state = dict(read_vgg16_weights().state)
    for block in (getattr(library.net, f"slice{number}") for number in range(1, 6)):
        block.load_state_dict({key: state[key] for key in block.state_dict()})
    library.eval()
    for other in (draw_film(1), cv2.GaussianBlur(draw_film(), (0, 0), 1.5), 1 - draw_film()):
        pair = [torch.from_numpy(film).expand(1, 3, -1, -1) for film in (draw_film(), other)]
        with torch.no_grad():
            want = float(library(*pair, normalize=True))
        assert compute_lpips(draw_film(), other) == pytest.approx(want, rel=1e-4)


def test_equal_films_are_at_no_distance_and_order_means_nothing() -> None:
    first, second = draw_film(0), draw_film(1)
    assert compute_lpips(first, first.copy()) == 0.0
    assert compute_lpips(first, second) == pytest.approx(compute_lpips(second, first), rel=1e-4)
    assert compute_lpips(first, second) > 0.1


@pytest.mark.real_films
def test_it_grows_with_blur_and_with_noise_on_a_real_film(real_films: Path) -> None:
    film = cv2.imread(str(real_films / "jsrt" / "images" / "JPCLN002.png"), 0)[192:288, 192:288] / np.float32(255)
    noise = np.random.default_rng(0).normal(size=film.shape).astype(np.float32)
    blurred = [compute_lpips(film, cv2.GaussianBlur(film, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    noisy = [compute_lpips(film, np.clip(film + level * noise, 0, 1)) for level in (0.005, 0.02, 0.05, 0.1)]
    for values in (blurred, noisy):
        assert values == sorted(values) and values[0] > 0 and values[-1] > 4 * values[0]


def test_a_film_can_be_improved_by_its_gradient_even_from_equality() -> None:
    network = Lpips()
    target = torch.from_numpy(draw_film()).expand(1, 3, -1, -1)
    same = target.clone().requires_grad_()
    network(same, target).backward()
    assert torch.isfinite(same.grad).all()
    other = target.flip(2).clone().requires_grad_()
    before = network(other, target)
    before.backward()
    moved = other.detach() - 0.02 * other.grad.sign()
    assert network(moved, target) < before
    assert not any(weight.requires_grad for weight in network.parameters())


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="one size"):
        compute_lpips(draw_film(), draw_film()[:-1])
    with pytest.raises(UsageError, match="16 pixels"):
        compute_lpips(np.zeros((15, 64)), np.zeros((15, 64)))
    with pytest.raises(UsageError, match="resize both"):
        compute_lpips(np.zeros((1, 1 << 21 | 1)), np.zeros((1, 1 << 21 | 1)))
    for bad in (np.nan, 255.0):
        with pytest.raises(UsageError, match=r"in \[0, 1\]"):
            compute_lpips(np.full((32, 32), bad), np.zeros((32, 32)))
