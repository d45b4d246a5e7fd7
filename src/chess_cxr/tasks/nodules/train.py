"""Train a nodule generator on films with marked nodules, and test it on films of held-out patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chess_cxr.encoders.embed import EncoderLike
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.film_means import FilmMean, summarise_films
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.tasks.card import CARD_FILE, render_card
from chess_cxr.tasks.model_folder import refuse_foreign_folder, write_model
from chess_cxr.tasks.nodules.canvas import NoduleBatch
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.distance import NoduleJudgement, Squares, judge_nodules
from chess_cxr.tasks.nodules.films import (
    NoduleFilm,
    list_sources,
    read_each,
    read_source,
    resample_nodule_film,
    split_nodule_films,
    square_film,
)
from chess_cxr.tasks.nodules.flow import FlowNodules
from chess_cxr.tasks.nodules.model import NoduleGenerator, load_nodule_generator
from chess_cxr.tasks.nodules.objective import GENERATOR_VERSION
from chess_cxr.tasks.nodules.plan import (
    NoduleMethod,
    begin_from,
    build_generator,
    build_groups,
    complete_earlier,
    describe_training,
    go_on_as_begun,
    plan_generation,
    plan_nodule_training,
    plan_windows,
)
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.score import measure_background, measure_nodule
from chess_cxr.tasks.nodules.sheet import SHOWN, draw_films
from chess_cxr.tasks.nodules.spread import NoduleSpread, draw_latents, measure_spread
from chess_cxr.tasks.nodules.windows import (
    NoduleExample,
    NoduleWindow,
    WindowPlan,
    cut_around,
    cut_square,
    take_example,
)
from chess_cxr.tasks.perceptual import balance_stages, build_perceptual
from chess_cxr.tasks.result import TaskResult, list_kinds
from chess_cxr.tasks.run import read_task_batches
from chess_cxr.training.distributed import join_ranks, let_first_rank
from chess_cxr.training.run import OnStep, RunInputs, describe, hash_uids, train_in_folder
from chess_cxr.training.watch import RunWatch
from chess_cxr.workers.child import Limits

NODULE_STREAM = 1 << 42  # keeps these draws apart from those of other tasks


@dataclass(frozen=True, kw_only=True)
class NodulesResult(TaskResult):
    """Metrics of a generator that makes a nodule in the place of each real one in the test films.

    They are means over films with 95 % intervals by patient.  films: counts by split; "scored" counts test films whose
    nodule fits the generator.  kinds: kinds of the scored films.  judged: comparison of made and real nodules.
    spread: how much made nodules differ, in mode inpaint.  begun_from: SHA-256 of the model that training began with.
    """

    metrics: Mapping[str, FilmMean]
    films: Mapping[str, Mapping[str, int]]
    kinds: tuple[str, ...]
    perceptual: str
    judged: NoduleJudgement = NoduleJudgement()
    spread: NoduleSpread | None = None
    begun_from: str = ""

    def describe_basis(self) -> str:
        """Describe the scored films and the training films."""
        scored = self.films["scored"]
        test = f"{scored['with_nodule']} nodules of {scored['patients']} test patients: {list_kinds(self.kinds)}"
        return f"{test}; trained on {self.films['train']['with_nodule']} films with a nodule"

    def list_notes(self) -> Sequence[str]:
        """Return the comparison of made and real nodules."""
        return [*self.judged.list_lines(), *([self.spread.as_text()] if self.spread else [])]


def finetune_nodules(
    encoder: EncoderLike,
    places: Sequence[str] | Sequence[NoduleFilm],
    out: Path | str,
    config: NodulesConfig | None = None,
    val: float = 0.1,
    test: float = 0.2,
    on_stage: OnProgress | None = None,
    on_step: OnStep | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    executor: Executor | None = None,
) -> NodulesResult:
    """Train a nodule generator, write it to `out` and test it on films that it has not seen.

    places: folders of films with marked nodules and "phantom:PATIENTS@SIZE#SEED", see `list_sources`; or films.
    limits, executor: for the decoding processes, see `read_each`; training films are read once, test films again, one
    at a time.
    The same call continues an interrupted run.  The folder holds `model.safetensors` (the averaged generator),
    `config.json`, `result.json`, `test_films.png`, `test_seeds.png` and `metrics.jsonl`.
    Raises `UsageError` if `out` holds something else, or no film can be used for training or for the test.
    """
    out, config, show = Path(out), config or NodulesConfig(), on_stage or (lambda *_: None)
    plan = plan_windows(config)
    refuse_foreign_folder(out)
    begun = load_nodule_generator(config.begin_from) if config.begin_from else None
    films = _read_places(places, plan, limits, executor, show)
    split = split_nodule_films(films, config.seed, val, test)
    held_out = [film for film in split["test"] if film.can_make]
    if not held_out:
        raise UsageError(
            f"{len(films)} films leave no nodule that fits the generator for the test; give more of them, or another "
            "--test"
        )
    config = go_on_as_begun(out / "run", config)
    join_ranks(device)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    method = train_nodule_generator(
        out / "run", loaded, split["train"], split["val"], config, on_step, device=device, begun=begun
    )

    def finish() -> NodulesResult:
        generator = NoduleGenerator(method, config.film_size)
        painted = _paint_test_films(generator, held_out, limits, executor, show)
        groups = [film.group for film in held_out]
        made, real = (Squares(pictures, groups) for pictures in zip(*painted.pairs, strict=True))
        places = [draw_nodule_batch([window], None, config) for film in held_out for window in film.windows]
        known = [draw_nodule_batch([window], None, config) for film in films for window in film.windows]
        result = NodulesResult(
            metrics=summarise_films(painted.scores, groups, config.seed),
            films={part: describe_films(found) for part, found in split.items()} | {"scored": describe_films(held_out)},
            kinds=tuple(sorted({film.kind for film in held_out})),
            encoder=loaded.name,
            perceptual=config.perceptual,
            seed=config.seed,
            judged=judge_nodules(made, real, _cut_learned(split["train"]), config.seed),
            begun_from=begun.sha256 if begun else "",
            spread=measure_spread(method, known, places) if generator.mode == "inpaint" else None,
        )
        pictures = {"test_films.png": draw_films(painted.shown)}
        if generator.mode == "inpaint":
            places.sort(key=lambda place: float(place.mask_B1SS.sum()))
            pictures["test_seeds.png"] = draw_latents(method, places[len(places) // 2])
        _write_model(out, method, config, result, pictures)
        return result

    return let_first_rank(finish)


@dataclass(frozen=True)
class _PaintedFilms:
    """Test films with a made nodule in the place of the real one: scores, squares of both, and some to show."""

    scores: list[dict[str, float]]
    pairs: list[tuple[np.ndarray, np.ndarray]]
    shown: list[tuple[NoduleFilm, np.ndarray]]


def _paint_test_films(
    generator: NoduleGenerator,
    held_out: Sequence[NoduleExample],
    limits: Limits | None,
    executor: Executor | None,
    show: OnProgress,
) -> _PaintedFilms:
    """Read the test films again, one at a time, and paint and score each."""
    painted = _PaintedFilms([], [], [])
    sources = [film.source for film in held_out]
    films = read_each(sources, read_source, limits=limits, executor=executor, in_flight=1, told="of the test")
    for number, film in enumerate(films):
        made_HW = generator.paint(film.film_HW, film.mask_HW, number, film.lung_HW)
        painted.scores.append(score_made_film(generator, film, made_HW))
        painted.pairs.append(cut_pair(generator, film, made_HW))
        if number < SHOWN:
            painted.shown.append((film, made_HW))
        show("test", number + 1, len(held_out))
    return painted


def score_made_film(generator: NoduleGenerator, film: NoduleFilm, made_HW: np.ndarray) -> dict[str, float]:
    """Score a nodule made in the place of a real one.

    contrast_made, contrast_real: grey above the surroundings.  diameter_ratio_made, diameter_ratio_real: measured /
    requested diameter.  lung_share: share of the mask inside the lung.  background_equal: share of the pixels outside
    the region that kept their bits.
    """
    reference = film
    if generator.mode == "film":
        reference = square_film(film, generator.task.config.size)
    mask_HW, lung_HW = reference.mask_HW, reference.lung_HW if film.lung_HW is not None else None
    if not mask_HW.any():
        return {}
    made, real = (measure_nodule(picture, mask_HW, lung_HW) for picture in (made_HW, reference.film_HW))
    scores = {
        "contrast_made": made.contrast,
        "contrast_real": real.contrast,
        "diameter_ratio_made": made.diameter_px / made.mask_diameter_px,
        "diameter_ratio_real": real.diameter_px / real.mask_diameter_px,
        "lung_share": made.lung_share,
    }
    if generator.mode == "inpaint":
        config, scale = generator.task.config, max(film.film_HW.shape) / generator.film_size
        region_HW = compute_region(mask_HW, config.margin, max(1, round(config.margin_px * scale)))
        scores["background_equal"] = measure_background(film.film_HW, made_HW, region_HW).equal_share
    return scores


def cut_pair(generator: NoduleGenerator, film: NoduleFilm, made_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the squares around the made and the real nodules, at the scale of the generator or of a smaller film."""
    if generator.mode == "film":
        real = square_film(film, generator.task.config.size)
        return cut_around(made_HW, real.mask_HW), cut_around(real.film_HW, real.mask_HW)
    size = min(generator.film_size, max(film.film_HW.shape))
    made, real = (resample_nodule_film(it, size) for it in (replace(film, film_HW=made_HW), film))
    return cut_around(made.film_HW, real.mask_HW), cut_around(real.film_HW, real.mask_HW)


def _cut_learned(films: Sequence[NoduleExample]) -> Squares:
    """Cut the squares around the training nodules."""
    found = [(film.group, window) for film in films for window in film.windows if window.mask_HW.any()]
    return Squares([cut_around(w.film_HW, w.mask_HW) for _, w in found], [group for group, _ in found])


def _read_places(
    places: Sequence[str] | Sequence[NoduleFilm],
    plan: WindowPlan,
    limits: Limits | None,
    executor: Executor | None,
    show: OnProgress,
) -> list[NoduleExample]:
    films = list[NoduleExample]()
    for place in places:
        if isinstance(place, NoduleFilm):
            films.append(take_example(place, plan))
            continue
        title, sources = f"read {Path(place).name}", list_sources(str(place))
        found = read_each(sources, take_example, plan, limits=limits, executor=executor)
        for number, film in enumerate(found, 1):
            films.append(film)
            show(title, number, len(sources))
    return films


def _write_model(
    out: Path,
    method: NoduleMethod,
    config: NodulesConfig,
    result: NodulesResult,
    pictures: Mapping[str, bytes],
) -> None:
    """Write all of a model, with pictures of its test films."""
    described = {
        "task": "nodules",
        "version": GENERATOR_VERSION,
        "network": config.network,
        "generator": asdict(method.config),
        "film_size": config.film_size,
        "encoder": result.encoder,
        "finetune": describe(config) | {"begin_from": Path(config.begin_from).name},
    }
    for name, content in pictures.items():
        write_atomically(out / name, content)
    card = render_card(described, result.as_json(), result.list_notes())
    write_model(out, method.averaged.state_dict(), described, result.as_json(), files={CARD_FILE: card.encode()})


def train_nodule_generator(
    folder: Path,
    encoder: Encoder,
    train: Sequence[NoduleExample],
    val: Sequence[NoduleExample],
    config: NodulesConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    device: str = "auto",
    begun: NoduleGenerator | None = None,
) -> NoduleMethod:
    """Train a nodule generator in `folder`, or continue there; return it on `device`.

    val: ten times, nodules are made in the places of these films' nodules, and their contrasts are compared.
    begun: from whose weights to begin.
    Raises UsageError if `folder` holds a run of another configuration, no training film has a nodule that fits, or
    `begun` is of another shape.
    """
    config = go_on_as_begun(folder, config)
    planned = plan_generation(config)
    windows = [window for film in train for window in film.windows]
    if not windows:
        raise UsageError("no film for training has a nodule that fits the generator; give films and masks with some")
    torch.manual_seed(config.seed)
    perceptual, about = build_perceptual(config.perceptual, encoder, config.compare, config.seed)
    if perceptual and config.balance:
        some = windows[: config.batch]
        perceptual.stages = balance_stages(perceptual, draw_nodule_batch(some, range(len(some)), config).film_B1SS)
    method = build_generator(planned, perceptual)
    if begun:
        begin_from(method, begun.task)
    if isinstance(method, FlowNodules) or method.config.vary:
        method.learn_nodules([draw_nodule_batch([window], None, config) for window in windows])
    training = plan_nodule_training(config)

    seen = [window for film in val for window in film.windows][:16]
    held_out = [draw_nodule_batch([window], None, config) for window in seen]

    def draw(chosen: list[NoduleWindow], positions: list[int]) -> NoduleBatch:
        return draw_nodule_batch(chosen, positions, config)

    def measure(_step: int) -> dict[str, float]:
        return {"val/contrast_ratio": compute_contrast_ratio(method, held_out)} if held_out else {}

    described = {
        "task": "nodules",
        "version": GENERATOR_VERSION,
        "nodules": describe_training(config),
        "perceptual": about,
        "perceptual_sha256": compute_state_sha256(perceptual.network) if perceptual else "",
        **({"begun_from": begun.sha256} if begun else {}),
        "films": {"train": len(train), "nodules": len(windows), "names_sha256": hash_uids([f.name for f in train])},
    }
    inputs = RunInputs(
        [film.name for film in train],
        lambda first_step, rank: read_task_batches(windows, draw, training, first_step, rank),
        lambda log, rank: RunWatch(log, training, measure),
        build_groups(method),
        complete_earlier,
    )
    train_in_folder(folder, method, training, inputs, described, on_step, say=say, device=device)
    return method.eval()


def draw_nodule_batch(
    windows: Sequence[NoduleWindow], positions: Sequence[int] | None, config: NodulesConfig
) -> NoduleBatch:
    """Cut a square from each window; with positions, varied as a pure function of (seed, position)."""
    drawn = []
    for number, window in enumerate(windows):
        rng = None
        if positions is not None:
            rng = np.random.Generator(np.random.Philox(key=[config.seed, NODULE_STREAM + int(positions[number])]))
        drawn.append(cut_square(window, config.size, rng))
    parts = (torch.from_numpy(np.stack(part)[:, None].astype(np.float32)) for part in zip(*drawn, strict=True))
    batch = NoduleBatch(*parts)
    return replace(batch, malignant_B=torch.tensor([window.malignant for window in windows]))


def compute_contrast_ratio(method: NoduleMethod, batches: Sequence[NoduleBatch]) -> float:
    """Return the mean contrast of made nodules over that of the real ones in the same places; NaN without any."""
    device = method.steps.device
    made, real = [], []
    for seed, batch in enumerate(batches):
        mask_HW = batch.mask_B1SS[0, 0].numpy() > 0.5
        if not mask_HW.any():
            continue
        film_HW = method.make(batch.to(device), [seed])[0, 0].cpu().numpy()
        made.append(measure_nodule(film_HW, mask_HW).contrast)
        real.append(measure_nodule(batch.film_B1SS[0, 0].numpy(), mask_HW).contrast)
    return float(np.mean(made) / np.mean(real)) if made and np.mean(real) else float("nan")


def describe_films(films: Sequence[NoduleExample]) -> dict[str, Any]:
    """Count films, those with a nodule, and patients."""
    return {
        "films": len(films),
        "with_nodule": sum(film.has_nodule for film in films),
        "patients": len({film.group for film in films}),
    }
