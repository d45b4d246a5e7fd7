"""From films to a nodule generator, and what it paints."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import read_nodule_films
from chess_cxr.tasks.nodules.model import NoduleGenerator, load_nodule_generator
from chess_cxr.tasks.nodules.objective import GenerateNodules
from chess_cxr.tasks.nodules.plan import plan_generation
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.sheet import draw_films
from chess_cxr.tasks.nodules.train import finetune_nodules

TINY = NodulesConfig(size=64, film_size=128, width=4, latent=8, steps=2, batch=2)
ENCODER = "random:regnetx_002@64"
FILES = {
    "model.safetensors",
    "config.json",
    "result.json",
    "test_films.png",
    "test_seeds.png",
    "metrics.jsonl",
    "README.md",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "nodules"
    finetune_nodules(ENCODER, ["phantom:12@128"], out, TINY)
    return out


def build_generator(mode: str = "inpaint", film_size: int = 128) -> NoduleGenerator:
    torch.manual_seed(0)
    config = replace(TINY, mode=mode, film_size=film_size)
    return NoduleGenerator(GenerateNodules(plan_generation(config)).eval(), film_size)


def draw_mask(shape: tuple[int, int], row: float = 0.5, column: float = 0.4, radius: float = 0.05) -> np.ndarray:
    """A disc; place and radius are shares of the sides."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - row * shape[0], x - column * shape[1]) <= radius * max(shape)


def draw_grey(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(4).random(shape).astype(np.float32)


# ---------------------------------------------------------------- the folder


def test_a_model_folder_holds_the_model_its_results_and_no_run(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == FILES
    result = json.loads((model / "result.json").read_text())
    assert result["kinds"] == ["phantom"] and result["films"]["scored"]["with_nodule"] > 0
    assert result["metrics"]["background_equal"]["value"] == 1.0
    assert json.loads((model / "config.json").read_text())["finetune"]["steps"] == 2
    assert cv2.imread(str(model / "test_films.png")).shape[0] == 660
    assert [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    card, contrast = (model / "README.md").read_text(), result["metrics"]["contrast_made"]
    assert f"| contrast_made | {contrast['value']:.3f} [" in card and "**Everything it makes is SYNTHETIC." in card
    assert f"| scored | {result['films']['scored']['films']} | " in card


def test_results_of_generated_films_say_synthetic(tmp_path: Path) -> None:
    result = finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "model", replace(TINY, steps=1))
    count = result.films["scored"]["with_nodule"]
    assert f"({count} nodules of {count} test patients: phantom (SYNTHETIC); " in result.as_text()


def test_reading_shows_how_far_it_is(tmp_path: Path) -> None:
    shown: list[tuple[str, int, int]] = []
    finetune_nodules(
        ENCODER, ["phantom:12@128"], tmp_path / "model", replace(TINY, steps=1), on_stage=lambda *a: shown.append(a)
    )
    assert shown[:24] == [("read phantom:12@128", number, 24) for number in range(1, 25)]


def test_a_film_that_is_not_square_keeps_its_proportions_on_the_sheet() -> None:
    film = read_nodule_films("phantom:1@128#5")[0]
    wide = replace(film, film_HW=film.film_HW[:64] * 0 + 1, mask_HW=film.mask_HW[:64] & False)
    sheet = cv2.imdecode(np.frombuffer(draw_films([(wide, wide.film_HW)]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (660, 220)
    assert (sheet[:50] == 0).all() and (sheet[60:160] == 255).all()  # a band in the middle of a black square


@pytest.mark.parametrize("mode", ["inpaint", "film"])
def test_a_loaded_model_makes_the_film_that_it_made_before_it_was_written(mode: str, tmp_path: Path) -> None:
    """The written network is the averaged one, as the run's last checkpoint has it."""
    config, checkpoints = replace(TINY, mode=mode), tmp_path / "checkpoints"

    def keep_last(stage: str, _done: int, _total: int) -> None:
        if stage == "test":
            shutil.copytree(tmp_path / "model" / "run" / "checkpoints", checkpoints, dirs_exist_ok=True)

    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "model", config, on_stage=keep_last)
    state = safetensors.torch.load_file(max(checkpoints.glob("*.safetensors")))
    before = GenerateNodules(plan_generation(config))
    before.load_state_dict({name[7:]: tensor for name, tensor in state.items() if name.startswith("method.")})
    before.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    loaded = load_nodule_generator(tmp_path / "model")
    film = read_nodule_films("phantom:1@128#5")[0]
    expected = NoduleGenerator(before, 128).paint(film.film_HW, film.mask_HW, 3, film.lung_HW)
    assert np.array_equal(loaded.paint(film.film_HW, film.mask_HW, 3, film.lung_HW), expected)
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    averaged = before.averaged.state_dict()
    assert set(weights) == set(averaged) and all(torch.equal(weights[name], averaged[name]) for name in weights)
    assert any(
        not torch.equal(p, q) for p, q in zip(before.averaged.parameters(), before.generator.parameters(), strict=True)
    )


def test_nodules_that_do_not_fit_are_no_part_of_the_test_and_counted(tmp_path: Path) -> None:
    films = read_nodule_films("phantom:12@128")
    giant = [
        replace(film, mask_HW=draw_mask((128, 128), radius=0.3)) if n % 4 == 0 else film for n, film in enumerate(films)
    ]
    result = finetune_nodules(ENCODER, giant, tmp_path / "model", replace(TINY, steps=1), test=0.5)
    assert 0 < result.films["scored"]["films"] < result.films["test"]["with_nodule"]


def test_film_mode_needs_no_lung_masks_and_takes_nodules_that_leave_the_lung(tmp_path: Path) -> None:
    films = read_nodule_films("phantom:12@128")
    bare = [replace(film, lung_HW=None) for film in films[:12]]
    outside = [
        replace(film, mask_HW=draw_mask((128, 128), row=0.93), lung_HW=film.lung_HW) if film.mask_HW.any() else film
        for film in films[12:]
    ]
    result = finetune_nodules(ENCODER, bare + outside, tmp_path / "model", replace(TINY, mode="film", steps=1))
    assert result.films["scored"]["films"] > 0


def test_a_folder_of_something_else_and_films_without_nodules_are_refused(model: Path, tmp_path: Path) -> None:
    films = read_nodule_films("phantom:12@128")
    with pytest.raises(UsageError, match="exists already"):
        finetune_nodules(ENCODER, films, model, TINY)
    with pytest.raises(UsageError, match="leave no nodule"):
        finetune_nodules(ENCODER, films[1::2], tmp_path / "model", TINY)
    assert not (tmp_path / "model").exists()


# ---------------------------------------------------------------- loading


def change(described: dict[str, Any], **values: object) -> dict[str, Any]:
    return described | {"generator": described["generator"] | values}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c | {"task": "bones"}, "is no nodule generator"),
        (lambda c: c | {"version": 1}, "was made by another version of chess-cxr; make it again"),
        (lambda c: {key: value for key, value in c.items() if key != "version"}, "made by another version"),
        (lambda c: c | {"generator": []}, "the generator has mode, size"),
        (lambda c: change(c, colour=1), "the generator has mode, size"),
        (lambda c: change(c, width="4"), "the generator is not valid"),
        (lambda c: change(c, lung=1), "the generator is not valid"),
        (lambda c: change(c, size=True), "the generator is not valid"),
        (lambda c: change(c, mode="sketch"), "the generator is not valid"),
        (lambda c: change(c, mode=["film"]), "the generator is not valid"),
        (lambda c: c | {"film_size": 10**9}, "the generator is not valid"),
        (lambda c: c | {"film_size": 64.0}, "the generator is not valid"),
        (lambda c: change(c, size=1 << 20), "makes films of"),
        (lambda c: change(c, width=10**9), "width of 64"),
        (lambda c: change(c, latent=10**12), "latent of 4096"),
        (lambda c: change(c, margin=float("nan")), "margin and weights"),
        (lambda c: change(c, width=5), "does not hold this model"),
        (lambda c: change(c, mode="film"), "only nodules of mode inpaint can be made to vary"),
        (lambda c: change(c, mode="film", vary=False), "does not hold this model"),
        (lambda c: change(c, vary=1), "the generator is not valid"),
    ],
)
def test_a_hostile_configuration_is_answered_in_one_line(
    damage: Callable[[dict[str, Any]], dict[str, Any]], words: str, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    described = json.loads((model / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(damage(described)))
    with pytest.raises(ChessError, match=words) as refused:
        load_nodule_generator(tmp_path / "model")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64])
def test_weights_that_are_no_weights_are_answered_in_one_line(content: bytes, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    with pytest.raises(ChessError, match="does not hold this model") as refused:
        load_nodule_generator(tmp_path / "model")
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_model_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make one with: chess-cxr finetune nodules"):
        load_nodule_generator(tmp_path)


# ---------------------------------------------------------------- painting


@pytest.mark.parametrize("shape", [(128, 128), (512, 512), (300, 200), (90, 150)])
def test_outside_the_region_every_pixel_keeps_its_bits(shape: tuple[int, int]) -> None:
    generator, film_HW, mask_HW = build_generator(), draw_grey(shape), draw_mask(shape)
    made_HW = generator.paint(film_HW, mask_HW, 1)
    config = generator.task.config
    scale = max(shape) / 128
    region_HW = compute_region(mask_HW, config.margin, max(1, round(config.margin_px * scale)))
    assert made_HW.shape == shape and made_HW.dtype == np.float32 and 0 <= made_HW.min() <= made_HW.max() <= 1
    assert np.array_equal(made_HW[~region_HW].view(np.uint32), film_HW[~region_HW].view(np.uint32))
    assert (made_HW != film_HW)[mask_HW].mean() > 0.9 and not region_HW.all()


@pytest.mark.real_films
def test_a_real_film_is_painted_where_its_nodule_is_and_nowhere_else(real_films: Path) -> None:
    film = read_nodule_films(str(real_films / "jsrt"))[1]
    made_HW = build_generator(film_size=256).paint(film.film_HW, film.mask_HW, 1)
    changed_HW = made_HW != film.film_HW
    near_HW = cv2.dilate(film.mask_HW.astype(np.uint8), np.ones((101, 101), np.uint8)) > 0
    assert changed_HW[film.mask_HW].any() and not changed_HW[~near_HW].any()


@pytest.mark.parametrize("mode", ["inpaint", "film"])
def test_a_seed_makes_its_film_again_and_another_seed_another(mode: str) -> None:
    generator, film_HW, mask_HW = build_generator(mode), draw_grey((128, 128)), draw_mask((128, 128))
    first, again, other = (generator.paint(film_HW, mask_HW, seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_film_mode_makes_a_film_of_the_generators_size_that_heeds_mask_and_lungs() -> None:
    generator, film_HW, mask_HW = build_generator("film"), draw_grey((200, 160)), draw_mask((200, 160))
    made = [
        generator.paint(film_HW, mask, 5, lung)
        for mask, lung in (
            (mask_HW, None),
            (mask_HW, draw_mask((200, 160), radius=0.3)),
            (draw_mask((200, 160), column=0.7), None),
        )
    ]
    assert all(film.shape == (64, 64) and film.dtype == np.float32 for film in made)
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


@pytest.mark.parametrize("mode", ["inpaint", "film"])
def test_a_nodule_that_vanishes_or_does_not_fit_is_refused(mode: str) -> None:
    generator, film_HW = build_generator(mode), draw_grey((512, 512))
    dot_HW = np.zeros((512, 512), bool)
    dot_HW[200, 200] = True
    with pytest.raises(UsageError, match="too small to be seen"):
        generator.paint(film_HW, dot_HW, 0)
    if mode == "inpaint":
        with pytest.raises(UsageError, match="ask for a smaller one"):
            generator.paint(film_HW, draw_mask((512, 512), radius=0.2), 0)


def test_a_generator_whose_weights_are_not_finite_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("inf")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ChessError, match="not finite"):
        load_nodule_generator(tmp_path / "model")
