"""Nodule generation from films whose nodules are marked to a model folder with results on films left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from chess_cxr.encoders.embed import EncoderLike
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.film_means import FilmMean, summarise_films
from chess_cxr.evaluation.intervals import describe_intervals
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import UsageError
from chess_cxr.tasks.model_folder import refuse_foreign_folder, write_model
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films, split_nodule_films, square_film
from chess_cxr.tasks.nodules.fit import can_make, describe_films, plan_generation, train_nodule_generator
from chess_cxr.tasks.nodules.model import NoduleGenerator
from chess_cxr.tasks.nodules.objective import GENERATOR_VERSION, GenerateNodules
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.score import measure_background, measure_nodule
from chess_cxr.training.distributed import join_ranks, let_first_rank
from chess_cxr.training.run import OnStep, describe
from chess_cxr.views import resize_longest

SHOWN = 8  # films on the sheet of a model


@dataclass(frozen=True)
class NodulesResult:
    """What a generator does on held-out films that have a nodule: it makes another in the same place.

    metrics: means over films with 95 % intervals by patient.  films: by split; "scored" are those of the test whose
    nodule fits the generator.  kinds: of these.
    """

    metrics: Mapping[str, FilmMean]
    films: Mapping[str, Mapping[str, int]]
    kinds: tuple[str, ...]
    encoder: str
    perceptual: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"] = describe_intervals(self.metrics)
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{name:26s} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for name, m in self.metrics.items()]
        test, synthetic = self.films["scored"], " (SYNTHETIC)" if "phantom" in self.kinds else ""
        basis = f"{test['with_nodule']} nodules of {test['patients']} test patients: {', '.join(self.kinds)}{synthetic}"
        trained = f"trained on {self.films['train']['with_nodule']} films with a nodule"
        return "\n".join([*lines, f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})"])


def finetune_nodules(
    encoder: EncoderLike,
    places: Sequence[str] | Sequence[NoduleFilm],
    out: Path | str,
    config: NodulesConfig | None = None,
    val: float = 0.1,
    test: float = 0.2,
    on_stage: Callable[[str, int, int], None] | None = None,
    on_step: OnStep | None = None,
    device: str = "auto",
) -> NodulesResult:
    """Train a nodule generator, write it to `out` and let it make nodules in films it has not seen.

    places: folders of films with marked nodules and "phantom:PATIENTS@SIZE#SEED", see `read_nodule_films`; or films.
    The same call continues an interrupted run.  The folder then holds `model.safetensors` (the averaged generator),
    `config.json`, `result.json`, `test_films.png` and `metrics.jsonl`.
    Raises `UsageError` where `out` holds something else, and for films that cannot teach.
    """
    out, config, show = Path(out), config or NodulesConfig(), on_stage or _show_nothing
    planned = plan_generation(config)
    refuse_foreign_folder(out)
    films = list[NoduleFilm]()
    for place in places:
        films += [place] if isinstance(place, NoduleFilm) else _read_place(str(place), show)
    split = split_nodule_films(films, config.seed, val, test)
    held_out = [film for film in split["test"] if can_make(film, config, planned)]
    if not held_out:
        raise UsageError(
            f"{len(films)} films leave no nodule that fits the generator for the test; give more of them, or another "
            "--test"
        )
    join_ranks(device)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    method = train_nodule_generator(out / "run", loaded, split["train"], split["val"], config, on_step, device=device)

    def finish() -> NodulesResult:
        generator = NoduleGenerator(method, config.film_size)
        scores, rows = [], []
        for number, film in enumerate(held_out):
            made_HW = generator.paint(film.film_HW, film.mask_HW, number, film.lung_HW)
            scores.append(score_made_film(generator, film, made_HW))
            rows.append((film, made_HW))
            show("test", number + 1, len(held_out))
        result = NodulesResult(
            metrics=summarise_films(scores, [film.group for film in held_out], config.seed),
            films={part: describe_films(found) for part, found in split.items()} | {"scored": describe_films(held_out)},
            kinds=tuple(sorted({film.kind for film in held_out})),
            encoder=loaded.name,
            perceptual=config.perceptual,
            seed=config.seed,
        )
        _write_model(out, method, config, result, rows[:SHOWN])
        return result

    return let_first_rank(finish)


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


def _read_place(place: str, show: Callable[[str, int, int], None]) -> list[NoduleFilm]:
    title = f"read {Path(place).name}"
    return read_nodule_films(place, on_film=lambda done, total: show(title, done, total))


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


def draw_films(rows: Sequence[tuple[NoduleFilm, np.ndarray]], side: int = 220) -> bytes:
    """Draw films, where their nodules are, and what was made (SYNTHETIC), one column a film: PNG.

    side: of the square that a film is fitted into, in pixels.
    """
    columns = []
    for film, made_HW in rows:
        outline = film.mask_HW.astype(np.uint8)
        ring = cv2.dilate(outline, np.ones((3, 3), np.uint8)) - outline
        marked = np.where(cv2.resize(ring, film.film_HW.shape[::-1]) > 0, 1.0, film.film_HW)
        parts = [_fit_square(picture, side) for picture in (film.film_HW, marked, made_HW)]
        column = np.clip(255 * np.vstack(parts), 0, 255).astype(np.uint8)
        for row, text in enumerate(("film", "place", "made: SYNTHETIC"), start=1):
            _write_word(column, text, row * side - 8)
        columns.append(column)
    return cv2.imencode(".png", np.hstack(columns))[1].tobytes()


def _fit_square(picture_HW: np.ndarray, side: int) -> np.ndarray:
    """Bring a picture's longest side to `side`, in the middle of a black square."""
    small_HW = resize_longest(picture_HW.astype(np.float32), side)
    square_HW = np.zeros((side, side), np.float32)
    top, left = ((side - length) // 2 for length in small_HW.shape)
    square_HW[top : top + small_HW.shape[0], left : left + small_HW.shape[1]] = small_HW
    return square_HW


def _write_word(picture_HW: np.ndarray, text: str, row: int) -> None:
    """Write white letters with a black rim, which are seen on bright and on dark films."""
    for grey, stroke in ((0, 3), (255, 1)):
        cv2.putText(picture_HW, text, (6, row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, grey, stroke, cv2.LINE_AA)
