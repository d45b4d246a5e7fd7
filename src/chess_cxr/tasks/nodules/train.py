"""Nodule generation from films whose nodules are marked to a model folder with results on films left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chess_cxr.encoders.embed import EncoderLike
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.film_means import FilmMean, summarise_films
from chess_cxr.evaluation.intervals import describe_intervals
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.tasks.model_folder import refuse_foreign_folder, write_model
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.distance import NoduleJudgement, Squares, blank_unknown, judge_nodules
from chess_cxr.tasks.nodules.films import (
    NoduleFilm,
    list_sources,
    read_each,
    read_source,
    resample_nodule_film,
    split_nodule_films,
    square_film,
)
from chess_cxr.tasks.nodules.fit import describe_films, plan_windows, train_nodule_generator
from chess_cxr.tasks.nodules.model import NoduleGenerator
from chess_cxr.tasks.nodules.objective import GENERATOR_VERSION, GenerateNodules
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.score import measure_background, measure_nodule
from chess_cxr.tasks.nodules.sheet import SHOWN, draw_films
from chess_cxr.tasks.nodules.windows import NoduleExample, WindowPlan, cut_around, take_example
from chess_cxr.training.run import OnStep, describe
from chess_cxr.workers.child import Limits


@dataclass(frozen=True)
class NodulesResult:
    """What a generator does on held-out films that have a nodule: it makes another in the same place.

    metrics: means over films with 95 % intervals by patient.  films: by split; "scored" are those of the test whose
    nodule fits the generator.  kinds: of these.  judged: made against real nodules of these films.
    """

    metrics: Mapping[str, FilmMean]
    films: Mapping[str, Mapping[str, int]]
    kinds: tuple[str, ...]
    encoder: str
    perceptual: str
    seed: int
    judged: NoduleJudgement = NoduleJudgement()

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"] = describe_intervals(self.metrics)
        described["judged"] = blank_unknown(described["judged"])
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:26s} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for name, m in self.metrics.items()]
        test, synthetic = self.films["scored"], " (SYNTHETIC)" if "phantom" in self.kinds else ""
        basis = f"{test['with_nodule']} nodules of {test['patients']} test patients: {', '.join(self.kinds)}{synthetic}"
        trained = f"trained on {self.films['train']['with_nodule']} films with a nodule"
        lines.append(f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})")
        return "\n".join([*lines, *self.judged.list_lines()])


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
    """Train a nodule generator, write it to `out` and let it make nodules in films it has not seen.

    places: folders of films with marked nodules and "phantom:PATIENTS@SIZE#SEED", see `list_sources`; or films.
    limits, executor: of the processes that decode, see `read_each`; films are read once to learn from, and those of the
    test again, one at a time.
    The same call continues an interrupted run.  The folder then holds `model.safetensors` (the averaged generator),
    `config.json`, `result.json`, `test_films.png` and `metrics.jsonl`.
    Raises `UsageError` where `out` holds something else, and for films that cannot teach.
    """
    out, config, show = Path(out), config or NodulesConfig(), on_stage or _show_nothing
    plan = plan_windows(config)
    refuse_foreign_folder(out)
    films = list[NoduleExample]()
    for place in places:
        films += (
            [take_example(place, plan)]
            if isinstance(place, NoduleFilm)
            else _read_place(str(place), plan, limits, executor, show)
        )
    split = split_nodule_films(films, config.seed, val, test)
    held_out = [film for film in split["test"] if film.can_make]
    if not held_out:
        raise UsageError(
            f"{len(films)} films leave no nodule that fits the generator for the test; give more of them, or another "
            "--test"
        )
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    method = train_nodule_generator(out / "run", loaded, split["train"], split["val"], config, on_step, device=device)
    generator = NoduleGenerator(method, config.film_size)
    scores, rows, pairs = [], [], []
    again = read_each(
        [film.source for film in held_out],
        read_source,
        limits=limits,
        executor=executor,
        in_flight=1,
        told="of the test",
    )
    for number, film in enumerate(again):
        made_HW = generator.paint(film.film_HW, film.mask_HW, number, film.lung_HW)
        scores.append(score_made_film(generator, film, made_HW))
        pairs.append(cut_pair(generator, film, made_HW))
        if number < SHOWN:
            rows.append((film, made_HW))
        show("test", number + 1, len(held_out))
    groups = [film.group for film in held_out]
    made, real = (Squares(pictures, groups) for pictures in zip(*pairs, strict=True))
    result = NodulesResult(
        metrics=summarise_films(scores, groups, config.seed),
        films={part: describe_films(found) for part, found in split.items()} | {"scored": describe_films(held_out)},
        kinds=tuple(sorted({film.kind for film in held_out})),
        encoder=loaded.name,
        perceptual=config.perceptual,
        seed=config.seed,
        judged=judge_nodules(made, real, _cut_learned(split["train"]), config.seed),
    )
    _write_model(out, method, config, result, rows)
    return result


def score_made_film(generator: NoduleGenerator, film: NoduleFilm, made_HW: np.ndarray) -> dict[str, float]:
    """Score a nodule that was made where a film has a real one.

    contrast_made, contrast_real: grey above the surroundings.  diameter_ratio: measured / asked, of the one made and of
    the real one.  lung_share: of the mask.  background_equal: share of the pixels outside the region that
    kept their bits.
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
    """Cut the squares around the made and the real nodules, at the scale that the generator works at or a smaller."""
    if generator.mode == "film":
        real = square_film(film, generator.task.config.size)
        return cut_around(made_HW, real.mask_HW), cut_around(real.film_HW, real.mask_HW)
    size = min(generator.film_size, max(film.film_HW.shape))
    made, real = (resample_nodule_film(it, size) for it in (replace(film, film_HW=made_HW), film))
    return cut_around(made.film_HW, real.mask_HW), cut_around(real.film_HW, real.mask_HW)


def _cut_learned(films: Sequence[NoduleExample]) -> Squares:
    """Cut the squares around the nodules that were learned from."""
    found = [(film.group, window) for film in films for window in film.windows if window.mask_HW.any()]
    return Squares([cut_around(w.film_HW, w.mask_HW) for _, w in found], [group for group, _ in found])


def _read_place(
    place: str,
    plan: WindowPlan,
    limits: Limits | None,
    executor: Executor | None,
    show: OnProgress,
) -> list[NoduleExample]:
    title, sources, films = f"read {Path(place).name}", list_sources(place), list[NoduleExample]()
    for film in read_each(sources, take_example, plan, limits=limits, executor=executor):
        films.append(film)
        show(title, len(films), len(sources))
    return films


def _show_nothing(_stage: str, _done: int, _total: int) -> None:
    pass


def _write_model(
    out: Path,
    method: GenerateNodules,
    config: NodulesConfig,
    result: NodulesResult,
    rows: Sequence[tuple[NoduleFilm, np.ndarray]],
) -> None:
    """Write all of a model, with a sheet of test films."""
    described = {
        "task": "nodules",
        "version": GENERATOR_VERSION,
        "generator": asdict(method.config),
        "film_size": config.film_size,
        "encoder": result.encoder,
        "finetune": describe(config),
    }
    write_atomically(out / "test_films.png", draw_films(rows))
    write_model(out, method.averaged.state_dict(), described, result.as_json())
