from pathlib import Path

import numpy as np
import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from chess_cxr.encoders.contract import Fit, PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.store import open_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.objective import Classify, HeadShape
from chess_cxr.tasks.classify.pointing import compute_pointing_score, draw_disc
from chess_cxr.tasks.classify.saliency import (
    build_probe_network,
    compute_grad_cam,
    compute_label_maps,
    compute_occlusion,
    compute_saliency,
    find_spatial_layer,
    lay_on_film,
)
from chess_cxr.tasks.classify.saliency_sheet import SaliencyRow, draw_overlay, draw_saliency_sheet
from chess_cxr.tasks.classify.train import finetune_classifier

CONTRACT = PixelContract(64, (0.5,), (0.25,))


class SpotFinder(nn.Module):
    """Score 0 sees bright spots, score 1 dark ones, on maps of 16 x 16 cells, wherever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.spots = nn.Sequential(nn.Conv2d(1, 2, 4, stride=4, bias=False), nn.ReLU())
        weight = torch.full((2, 1, 4, 4), 1 / 16)
        weight[1] *= -1
        self.spots[0].weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, film_BCSS: Tensor) -> Tensor:
        score_BL: Tensor = self.spots(film_BCSS).mean((2, 3))
        return score_BL


class PlaceLooker(nn.Module):
    """Scores the grey of one region of its input and nothing else."""

    def __init__(self, region_SS: np.ndarray) -> None:
        super().__init__()
        self.region = nn.Parameter(torch.from_numpy(region_SS.astype(np.float32)))

    def forward(self, film_BCSS: Tensor) -> Tensor:
        return (film_BCSS[:, 0] * self.region).sum((1, 2), keepdim=False)[:, None]


def draw_spots(height: int, width: int, bright: tuple[int, int], dark: tuple[int, int], radius: int) -> np.ndarray:
    """A grey film with a bright and a dark disc at (x, y)."""
    film = np.full((height, width), 0.5, np.float32)
    film[draw_disc(height, width, *bright, radius)] = 1.0
    film[draw_disc(height, width, *dark, radius)] = 0.0
    return film


def find_brightest(map_HW: np.ndarray) -> tuple[int, int]:
    y, x = np.unravel_index(int(map_HW.argmax()), map_HW.shape)
    return int(x), int(y)


@pytest.mark.parametrize("how", ["grad_cam", "occlusion"])
@pytest.mark.parametrize(
    ("fit", "height", "width"), [("squash", 160, 120), ("pad", 160, 120), ("crop", 160, 240), ("squash", 64, 64)]
)
def test_a_network_that_sees_spots_points_at_them_on_films_of_any_shape(
    how: str, fit: Fit, height: int, width: int
) -> None:
    bright, dark = (width // 2 + height // 5, height // 4), (width // 2 - height // 5, 3 * height // 4)
    radius = height // 12
    film = draw_spots(height, width, bright, dark, radius)
    contract = PixelContract(64, (0.5,), (0.25,), fit=fit)
    # The air that pads a film is dark too, and its edge is as good a dark spot as any.
    for target, place in enumerate((bright,) if fit == "pad" else (bright, dark)):
        found = compute_saliency(SpotFinder(), contract, [film], target, how)[0]  # type: ignore[arg-type]
        assert found.shape == film.shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() == 1
        assert np.hypot(*np.subtract(find_brightest(found), place)) <= radius + 2
        assert found[~draw_disc(height, width, *place, 3 * radius)].max() < 0.2


def test_grad_cam_and_occlusion_agree_about_spots() -> None:
    film = draw_spots(64, 64, (44, 16), (20, 48), 6)
    maps = [compute_saliency(SpotFinder(), CONTRACT, [film], 0, how)[0] for how in ("grad_cam", "occlusion")]  # type: ignore[arg-type]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.8


def test_occlusion_is_the_mean_fall_of_the_score_over_the_squares_that_cover_a_pixel() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval()
    contract = PixelContract(16, (0.5,), (0.25,))
    film = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    found = compute_saliency(network, contract, [film], 1, "occlusion", window=4)[0]
    input_1CSS = contract.prepare(film)[None]
    falls, covers = np.zeros((16, 16)), np.zeros((16, 16))
    with torch.no_grad():
        whole = network(input_1CSS)[0, 1].item()
        for y in range(0, 13, 2):
            for x in range(0, 13, 2):
                covered = input_1CSS.clone()
                covered[..., y : y + 4, x : x + 4] = 0
                falls[y : y + 4, x : x + 4] += whole - network(covered)[0, 1].item()
                covers[y : y + 4, x : x + 4] += 1
    slow = np.maximum(falls / covers, 0)
    assert found == pytest.approx(slow / slow.max(), abs=1e-4)


def test_a_network_that_looks_at_the_finding_of_a_phantom_wins_the_pointing_game() -> None:
    films, regions, maps, blind = [], [], [], []
    for number in range(4):
        made = render_film(draw_anatomy(number), draw_exposure(number), "nodule", 128)
        films.append(made.pixels.astype(np.float32) / MAX_PIXEL)
        regions.append(made.finding_mask)
        small = CONTRACT.prepare(made.finding_mask.astype(np.float32)).numpy()[0] > -1.9
        contract = PixelContract(64, (0.0,), (1.0,))
        maps += compute_saliency(PlaceLooker(small), contract, films[-1:], 0, "occlusion", window=2)
        blind += compute_saliency(PlaceLooker(np.roll(small, 32, 0)), contract, films[-1:], 0, "occlusion", window=2)
    patients = [f"p{number}" for number in range(4)]
    seeing = compute_pointing_score(maps, regions, patients, tolerance_px=3)
    assert seeing.hit.value == 1 and seeing.above_chance.low > 0.4
    assert compute_pointing_score(blind, regions, patients, tolerance_px=3).hit.value == 0


@pytest.mark.parametrize("window", [8, 13])
def test_maps_are_those_of_captum(encoder: Encoder, window: int) -> None:
    film = np.random.default_rng(0).random((90, 70)).astype(np.float32)
    input_1CSS, module = encoder.contract.prepare(film)[None], encoder.module
    layer, targets = find_spatial_layer(module, encoder.contract), (0, 3, 5)
    ours = compute_grad_cam(module, layer, input_1CSS, targets)
    covered = compute_occlusion(module, input_1CSS, targets, window)
    for target, mine_SS, fall_SS in zip(targets, ours, covered, strict=True):
        coarse = captum.LayerGradCam(module, layer).attribute(input_1CSS, target=target, relu_attributions=True)
        theirs = captum.LayerAttribution.interpolate(coarse.detach(), tuple(input_1CSS.shape[-2:]), "bilinear")
        assert mine_SS == pytest.approx(theirs[0, 0].numpy(), abs=1e-6)
        shape, strides = (1, window, window), (1, window // 2, window // 2)
        falls = captum.Occlusion(module).attribute(
            input_1CSS, sliding_window_shapes=shape, strides=strides, target=target, baselines=0.0
        )
        assert fall_SS == pytest.approx(falls[0, 0].clamp_min(0).numpy(), abs=1e-5)
    assert ours.max() > 0 and covered.max() > 1e-4


@pytest.mark.parametrize(
    "shape",
    [
        HeadShape("linear", "multiclass", 368, 3),
        HeadShape("mlp", "multilabel", 368, 3, third_class=True),
        HeadShape("attentive", "ordinal", 368, 3),
    ],
    ids=lambda shape: shape.task,
)
def test_every_label_of_every_kind_of_classifier_has_a_map(encoder: Encoder, shape: HeadShape) -> None:
    torch.manual_seed(0)
    network = Classify(encoder.module, shape)
    for weight in network.head.parameters():
        nn.init.normal_(weight, std=0.3)
    film = np.random.default_rng(0).random((90, 70)).astype(np.float32)
    maps_LHW = compute_label_maps(network, encoder.contract, film)
    assert maps_LHW.shape == (3, 90, 70) and np.isfinite(maps_LHW).all()
    assert sorted(set(maps_LHW.max((1, 2)).tolist())) in ([0.0, 1.0], [1.0])
    assert not np.array_equal(maps_LHW[0], maps_LHW[2])


def test_a_blank_film_has_a_map_of_zeros() -> None:
    for how in ("grad_cam", "occlusion"):
        found = compute_saliency(SpotFinder(), CONTRACT, [np.full((50, 40), 0.5, np.float32)], 0, how)[0]  # type: ignore[arg-type]
        assert found.shape == (50, 40) and not found.any()


def test_the_layer_that_is_looked_at_is_the_last_with_enough_cells() -> None:
    encoder = load_encoder("random:regnetx_002@64")
    sides = {}
    for least in (2, 4, 8):
        layer = find_spatial_layer(encoder.module, encoder.contract, least)
        hook = layer.register_forward_hook(lambda _m, _i, output, least=least: sides.update({least: output.shape[-1]}))
        encoder.embed([np.zeros((64, 64), np.float32)])
        hook.remove()
    assert sides == {2: 2, 4: 4, 8: 8}


def test_a_side_branch_of_a_coarser_part_is_passed_over() -> None:
    encoder = load_encoder("random:regnetx_002@64")
    # The first layers of the last stage still have 4 x 4 cells, on a branch that begins with a weight of 0.
    assert find_spatial_layer(encoder.module, encoder.contract) is encoder.module.get_submodule("s3")
    film = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    maps = [compute_saliency(encoder.module, encoder.contract, [film], target)[0] for target in range(4)]
    assert max(float(one.max()) for one in maps) == 1


def test_a_network_without_maps_is_refused_by_grad_cam_and_not_by_occlusion() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 2))
    film = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    with pytest.raises(UsageError, match="use occlusion"):
        compute_saliency(network, CONTRACT, [film], 0)
    assert compute_saliency(network, CONTRACT, [film], 0, "occlusion")[0].max() > 0
    with pytest.raises(UsageError, match="does not fit an input of 64"):
        compute_saliency(network, CONTRACT, [film], 0, "occlusion", window=65)


def test_laying_a_map_on_the_film_undoes_the_contract() -> None:
    rng = np.random.default_rng(0)
    for fit in ("squash", "pad", "crop"):
        contract = PixelContract(64, (0.0,), (1.0,), fit=fit)  # type: ignore[arg-type]
        film = np.zeros((200, 140), np.float32)
        x, y = int(rng.integers(40, 100)), int(rng.integers(60, 140))
        film[draw_disc(200, 140, x, y, 8)] = 1
        laid = lay_on_film(contract.prepare(film).numpy()[0], contract, 200, 140)
        assert laid.shape == film.shape
        assert np.abs(np.subtract(np.argwhere(laid > 0.5).mean(0), (y, x))).max() < 1.5
    crop = lay_on_film(np.ones((64, 64)), PixelContract(64, (0.0,), (1.0,), fit="crop"), 200, 140)
    assert crop[:30].max() == 0 and crop[30:170].min() == 1 and crop[170:].max() == 0


def test_a_probe_and_its_encoder_as_one_network_score_as_the_probe_does(small_store: Path) -> None:
    store, encoder = open_store(small_store), load_encoder("random:regnetx_002@64")
    films = [film.astype(np.float32) / 255 for film in store.read_films(np.arange(40))]
    feature, label = encoder.embed(films), np.arange(40) // 2 % 2
    probe = fit_linear_probe(feature, label, np.arange(40) // 2, names=("stripes", "spots"))
    network = build_probe_network(encoder, probe)
    batch = torch.stack([encoder.contract.prepare(film) for film in films[:8]])
    assert network.predict(batch) == pytest.approx(probe.predict_scores(feature[:8]), abs=1e-4)
    for how in ("grad_cam", "occlusion"):
        found = [
            one
            for target in (0, 1)
            for one in compute_saliency(network, encoder.contract, films[:2], target, how)  # type: ignore[arg-type]
        ]
        assert [one.shape for one in found] == [film.shape for film in films[:2]] * 2
        # Of two classes, what speaks against the one speaks for the other.
        assert max(float(one.max()) for one in found) == 1


def test_a_written_classifier_shows_where_it_looks(small_store: Path, tmp_path: Path) -> None:
    encoder = load_encoder("random:regnetx_002@64")
    finetune_classifier(encoder, small_store, tmp_path / "model", ["stripes", "spots"], FinetuneConfig())
    model = load_classifier(tmp_path / "model")
    film = open_store(small_store).read_films(np.arange(1))[0].astype(np.float32) / 255
    assert compute_saliency(model.network, model.contract, [film], 0)[0].shape == film.shape


def test_an_overlay_leaves_the_film_where_the_map_is_zero_and_colours_it_where_it_is_one() -> None:
    film = np.full((4, 4), 100, np.uint8)
    saliency = np.zeros((4, 4))
    saliency[1, 2] = 1
    laid = draw_overlay(film, saliency)
    assert laid.shape == (4, 4, 3) and laid.dtype == np.uint8
    assert (np.delete(laid.reshape(16, 3), 6, 0) == 100).all()
    red, green, blue = laid[1, 2].astype(int)
    assert red > 180 and red > blue and green > 150  # the bright yellow end of the scale


def test_a_sheet_is_a_png_with_a_row_a_film() -> None:
    film = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    rows = [SaliencyRow(film, {"Grad-CAM": film / 63, "occlusion": film * 0.0}, draw_disc(48, 64, 20, 20, 5), "a film")]
    single, double = (draw_saliency_sheet(rows * count, "made up") for count in (1, 2))
    assert single.startswith(b"\x89PNG")
    assert int.from_bytes(double[20:24], "big") > 1.5 * int.from_bytes(single[20:24], "big")
