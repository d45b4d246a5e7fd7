"""How a nodule generator learns: its windows, its batches, its run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films, resample_nodule_film
from chess_cxr.tasks.nodules.objective import GenerateNodules
from chess_cxr.tasks.nodules.plan import build_groups, plan_generation, plan_nodule_training, plan_windows
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.train import draw_nodule_batch, train_nodule_generator
from chess_cxr.tasks.nodules.windows import NoduleExample, can_make, cut_square, list_windows, take_example
from chess_cxr.training.loop import build_optimizers
from states import list_changed

TINY = NodulesConfig(size=64, film_size=128, width=4, latent=8, steps=4, batch=2)
MODES = ("inpaint", "film")


@pytest.fixture(scope="module")
def films() -> list[NoduleFilm]:
    return read_nodule_films("phantom:4@128#3")


def draw_film(radius: int, row: int = 64, column: int = 64, shape: tuple[int, int] = (128, 128)) -> NoduleFilm:
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask_HW = np.hypot(y - row, x - column) <= radius
    film_HW = np.random.default_rng(radius).random(shape).astype(np.float32)
    return NoduleFilm("drawn", film_HW, mask_HW, None, "drawn", 1.0, "folder")


def take(films: list[NoduleFilm], config: NodulesConfig) -> list[NoduleExample]:
    return [take_example(film, plan_windows(config)) for film in films]


def train(folder: Path, encoder: Encoder, films: list[NoduleFilm], config: NodulesConfig) -> GenerateNodules:
    examples = take(films, config)
    return train_nodule_generator(folder, encoder, examples, examples, config)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Halt(Exception):
    """Someone pulls the plug."""


# ---------------------------------------------------------------- windows and batches


@pytest.mark.parametrize("place", [(64, 64), (20, 100), (108, 18), (30, 30)])
@pytest.mark.parametrize("radius", [2, 9, 15])
def test_a_window_holds_the_whole_nodule_and_its_region(radius: int, place: tuple[int, int]) -> None:
    film, planned = draw_film(radius, *place), plan_generation(TINY)
    windows = list_windows(film, plan_windows(TINY))
    expected = int(compute_region(film.mask_HW, planned.margin, planned.margin_px).sum())
    assert len(windows) == 1
    for positions in [None, *([position] for position in range(30))]:
        mask_SS = draw_nodule_batch(windows, positions, TINY).mask_B1SS[0, 0].numpy() > 0.5
        assert mask_SS.sum() == film.mask_HW.sum()
        assert compute_region(mask_SS, planned.margin, planned.margin_px).sum() == expected


def test_of_a_large_film_only_what_squares_around_its_nodules_can_show_is_held() -> None:
    films = [draw_film(radius, 500, 20, (1024, 1024)) for radius in (0, 40)]
    films[0].mask_HW[:] = False
    healthy, ill = take(films, replace(TINY, film_size=256))
    assert healthy.windows == () and not healthy.has_nodule and not healthy.can_make
    [window] = ill.windows
    assert max(window.film_HW.shape) <= 1.5 * 64 and window.film_HW.base is None
    whole = resample_nodule_film(films[1], 256)
    places = set()
    for seed in range(200):
        film_SS, mask_SS = cut_square(window, 64, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        start = [whole_start(whole.mask_HW, axis, rng) for axis in (0, 1)]
        places.add(tuple(start))
        here = tuple(slice(first, first + 64) for first in start)
        expected = whole.mask_HW[here]
        assert np.array_equal(mask_SS, expected[:, ::-1] if rng.random() < 0.5 else expected)
        assert film_SS.shape == (64, 64)
    assert len(places) > 5


def whole_start(mask_HW: np.ndarray, axis: int, rng: np.random.Generator) -> int:
    """Where a square begins on the whole film, by the rule in words: moved by up to a quarter of its room."""
    region_HW = compute_region(mask_HW, 0.5, 4)
    inner, outer = (np.flatnonzero(part.any(1 - axis)) for part in (mask_HW, region_HW))
    slack = min((64 - len(range(inner[0], inner[-1] + 1))) // 4, (64 - len(range(outer[0], outer[-1] + 1))) // 2)
    middle = (outer[0] + outer[-1] + 1 - 64) // 2 + rng.integers(-slack, slack + 1)
    return int(np.clip(middle, 0, 256 - 64))


def test_a_nodule_larger_than_the_window_is_left_out_and_the_others_stay() -> None:
    films = [draw_film(6), draw_film(15), draw_film(20)]  # with its margin, the last is 81 px wide
    found = take(films, TINY)
    assert [[int(w.mask_HW.sum()) for w in film.windows] for film in found] == [
        [int(films[0].mask_HW.sum())],
        [int(films[1].mask_HW.sum())],
        [],
    ]
    assert [film.can_make for film in found] == [True, True, False]


def test_each_nodule_of_a_film_has_a_window_but_they_are_not_made_at_once_when_far_apart() -> None:
    one, other = draw_film(6, 30, 30), draw_film(6, 100, 100)
    both, plan = replace(one, mask_HW=one.mask_HW | other.mask_HW), plan_windows(TINY)
    assert len(list_windows(both, plan)) == 2
    assert can_make(one, plan) and not can_make(both, plan)


def test_a_film_without_a_nodule_or_with_one_too_small_to_be_seen_cannot_be_made() -> None:
    for mode, shape in (("inpaint", (128, 128)), ("film", (256, 256))):
        config = replace(TINY, mode=mode)
        film = draw_film(8, shape=shape)
        dot_HW = np.zeros(shape, bool)
        assert can_make(film, plan_windows(config))
        assert not can_make(replace(film, mask_HW=dot_HW), plan_windows(config))
    dot_HW[100, 100] = True
    assert not can_make(replace(film, mask_HW=dot_HW), plan_windows(config))


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_a_function_of_seed_and_position_alone(mode: str, films: list[NoduleFilm]) -> None:
    config = replace(TINY, mode=mode)
    windows = [window for film in take(films, config) for window in film.windows]
    whole = draw_nodule_batch(windows[:3], [7, 8, 9], config)
    alone = draw_nodule_batch(windows[1:2], [8], config)
    assert torch.equal(whole.film_B1SS[1:2], alone.film_B1SS) and torch.equal(whole.mask_B1SS[1:2], alone.mask_B1SS)
    assert whole.film_B1SS.shape == (3, 1, 64, 64) and (whole.lung_B1SS is not None) == (mode == "film")
    assert 0 <= whole.film_B1SS.min() < whole.film_B1SS.max() <= 1
    for positions, other in (([9], config), ([8], replace(config, seed=1))):
        assert not torch.equal(draw_nodule_batch(windows[1:2], positions, other).film_B1SS, alone.film_B1SS)


@pytest.mark.real_films
def test_windows_of_real_films_hold_the_film_as_it_is_where_nothing_is_varied(real_films: Path) -> None:
    film = next(f for f in read_nodule_films(str(real_films / "jsrt"))[:8] if f.mask_HW.sum() > 300)
    config = replace(TINY, film_size=256)
    windows = list_windows(film, plan_windows(config))
    batch = draw_nodule_batch(windows, None, config)
    found_SS, mask_SS = batch.film_B1SS[0, 0].numpy(), batch.mask_B1SS[0, 0].numpy() > 0.5
    whole = resample_nodule_film(film, 256)
    assert np.array_equal(np.sort(found_SS[mask_SS]), np.sort(whole.film_HW[whole.mask_HW]))


# ---------------------------------------------------------------- runs


def test_both_networks_have_adam_without_momentum_and_the_discriminator_four_times_the_rate() -> None:
    method, training = GenerateNodules(plan_generation(TINY)), plan_nodule_training(TINY)
    optimizers = build_optimizers(method, training, build_groups(method))
    assert {name: [g["betas"] for g in o.param_groups] for name, o in optimizers.items()} == {
        "generator": [(0.0, 0.9)],
        "discriminator": [(0.0, 0.9)],
    }
    [generator], [discriminator] = (optimizers[name].param_groups for name in ("generator", "discriminator"))
    assert discriminator["rate_scale"] == 4 * generator["rate_scale"] and generator["weight_decay"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    mode: str, encoder: Encoder, films: list[NoduleFilm], tmp_path: Path
) -> None:
    config = replace(TINY, mode=mode, checkpoint_every=2, r1=1.0)
    whole = train(tmp_path / "whole", encoder, films, config)

    def halt(report: object, _probe: object) -> None:
        if report.step == 3:  # type: ignore[attr-defined]
            raise Halt

    examples = take(films, config)
    with pytest.raises(Halt):
        train_nodule_generator(tmp_path / "halted", encoder, examples, examples, config, halt)
    steps = list[int]()
    resumed = train_nodule_generator(
        tmp_path / "halted", encoder, examples, examples, config, lambda report, _: steps.append(report.step)
    )
    assert steps == [3, 4]
    assert list_changed(whole.state_dict(), resumed.state_dict()) == []


def test_a_run_moves_both_networks_and_tells_the_parts_of_its_losses(
    encoder: Encoder, films: list[NoduleFilm], tmp_path: Path
) -> None:
    config = replace(TINY, steps=2, checkpoint_every=1)
    torch.manual_seed(config.seed)
    start = GenerateNodules(plan_generation(config))
    learned = train(tmp_path / "run", encoder, films, config)
    for part in ("generator", "discriminator"):
        moved = dict(getattr(learned, part).named_parameters())
        assert any(not torch.equal(moved[name], old) for name, old in getattr(start, part).named_parameters()), part
    last = read_metrics(tmp_path / "run")[-1]
    for part in ("hinge", "feature_matching", "perceptual", "kld", "generator", "discriminator"):
        [name] = [name for name in last if name.rsplit("/", 1)[-1] == part and "norm" not in name]
        assert np.isfinite(last[name])
    assert np.isfinite(last["val/contrast_ratio"])


def test_another_configuration_cannot_continue_a_run(encoder: Encoder, films: list[NoduleFilm], tmp_path: Path) -> None:
    config = replace(TINY, steps=1)
    done = train(tmp_path / "run", encoder, films, config)
    assert list_changed(train(tmp_path / "run", encoder, films, config).state_dict(), done.state_dict()) == []
    with pytest.raises(UsageError, match="learning_rate"):
        train(tmp_path / "run", encoder, films, replace(config, learning_rate=1e-3))
    with pytest.raises(UsageError, match="names_sha256|nodules"):
        train(tmp_path / "run", encoder, films[:4], config)


@pytest.mark.parametrize("perceptual", ["none", "random", "same"])
def test_the_perceptual_network_is_chosen_by_name(
    perceptual: str, encoder: Encoder, films: list[NoduleFilm], tmp_path: Path
) -> None:
    train(tmp_path / "run", encoder, films, replace(TINY, steps=1, perceptual=perceptual))
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (told["perceptual_sha256"] == "") == (perceptual == "none")
    assert any("perceptual" in name for name in read_metrics(tmp_path / "run")[-1]) == (perceptual != "none")


def test_what_cannot_teach_is_refused_in_one_line(encoder: Encoder, films: list[NoduleFilm], tmp_path: Path) -> None:
    cases = [
        (films, replace(TINY, perceptual="pixels:32"), "bare pixels are no perceptual network"),
        ([film for film in films if not film.mask_HW.any()], TINY, "no film for training has a nodule"),
        ([draw_film(30)], TINY, "no film for training has a nodule that fits"),
        (films, replace(TINY, film_size=32), "size <= film_size"),
        (films, replace(TINY, size=100), "makes films of"),
    ]
    for given, config, words in cases:
        with pytest.raises(UsageError, match=words) as refused:
            train(tmp_path / "run", encoder, given, config)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
