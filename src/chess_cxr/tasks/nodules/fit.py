"""How a nodule generator learns from films whose nodules are marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, resample_nodule_film, square_film
from chess_cxr.tasks.nodules.objective import (
    GENERATOR_VERSION,
    GenerateConfig,
    GenerateNodules,
    NoduleBatch,
    check_generate_config,
    generate,
)
from chess_cxr.tasks.nodules.region import compute_region, find_window
from chess_cxr.tasks.nodules.score import measure_nodule
from chess_cxr.tasks.perceptual import build_perceptual
from chess_cxr.tasks.run import TaskWatch, read_task_batches
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import OnStep, RunInputs, describe, hash_uids, train_in_folder
from chess_cxr.views import resize_longest

NODULE_STREAM = 1 << 42  # keeps these draws apart from those of other tasks
ADAM_BETAS = (0.0, 0.9)  # Park et al. 2019


def plan_generation(config: NodulesConfig) -> GenerateConfig:
    """Return the generator's own configuration; raise UsageError for one that cannot work."""
    planned = GenerateConfig(
        mode=config.mode,
        size=config.size,
        width=config.width,
        latent=config.latent,
        lung=config.mode == "film",
        feature_matching=config.feature_matching,
        perceptual=config.perceptual_weight,
        kld=config.kld,
        r1=config.r1,
        ema=config.ema,
    )
    check_generate_config(planned)
    if config.mode == "inpaint" and not config.size <= config.film_size <= 4096:
        raise UsageError("a nodule generator needs size <= film_size <= 4096 pixels")
    return planned


def plan_nodule_training(config: NodulesConfig) -> TrainingConfig:
    """Return how a nodule generator is optimised: Adam, constant but for a short warm-up and half a cosine."""
    return TrainingConfig(
        steps=config.steps,
        batch=config.batch,
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        warmup=0.02,
        log_every=max(1, min(20, config.steps)),
        probe_every=max(1, config.steps // 10),
        checkpoint_every=config.checkpoint_every,
        loader_threads=config.threads,
        seed=config.seed,
    )


def train_nodule_generator(
    folder: Path,
    encoder: Encoder,
    train: Sequence[NoduleFilm],
    val: Sequence[NoduleFilm],
    config: NodulesConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    device: str = "auto",
) -> GenerateNodules:
    """Train a nodule generator in `folder`, or continue there; return it on `device`.

    val: ten times, nodules are made where its films have them, and their contrast is held against the real one's.
    Raises UsageError where `folder` holds a run of another configuration, and where no film can teach.
    """
    planned = plan_generation(config)
    windows = list_windows(train, config, planned)
    if not windows:
        raise UsageError("no film for training has a nodule that fits the generator; give films and masks with some")
    torch.manual_seed(config.seed)
    perceptual, about = build_perceptual(config.perceptual, encoder, config.compare, config.seed)
    method = GenerateNodules(planned, perceptual)
    training = plan_nodule_training(config)

    held_out = [draw_nodule_batch([window], None, config) for window in list_windows(val, config, planned)[:16]]

    def draw(chosen: list[NoduleWindow], positions: list[int]) -> NoduleBatch:
        return draw_nodule_batch(chosen, positions, config)

    def measure(_step: int) -> dict[str, float]:
        return {"val/contrast_ratio": compute_contrast_ratio(method, held_out)} if held_out else {}

    described = {
        "task": "nodules",
        "version": GENERATOR_VERSION,
        "nodules": describe(config),
        "perceptual": about,
        "perceptual_sha256": compute_state_sha256(perceptual.network) if perceptual else "",
        "films": {"train": len(train), "nodules": len(windows), "names_sha256": hash_uids([f.name for f in train])},
    }
    inputs = RunInputs(
        [film.name for film in train],
        lambda first_step, rank: read_task_batches(windows, draw, training, first_step, rank),
        lambda log, rank: TaskWatch(log, method, training, measure),
        build_groups(method),
    )
    train_in_folder(folder, method, training, inputs, described, on_step, say=say, device=device)
    return method.eval()


def build_groups(method: GenerateNodules) -> dict[str, list[dict[str, Any]]]:
    """Return the parameter groups of both optimisers, with the betas of Park et al. and a rate for each."""
    return {
        name: [group | {"betas": ADAM_BETAS} for group in parts]
        for name, parts in method.build_parameter_groups().items()
    }


# ---------------------------------------------------------------- what it learns from


@dataclass(frozen=True)
class NoduleWindow:
    """A film with the nodule around which a window is cut; its whole is the window where whole films are made.

    region_HW: of the nodule, bool; the window holds all of it.
    """

    film: NoduleFilm
    nodule_HW: np.ndarray
    region_HW: np.ndarray


def list_windows(films: Sequence[NoduleFilm], config: NodulesConfig, planned: GenerateConfig) -> list[NoduleWindow]:
    """List what a generator can learn from: each nodule that fits its window, or each whole film."""
    if config.mode == "film":
        squares = [square_film(film, config.size) for film in films]
        return [NoduleWindow(film, film.mask_HW, film.mask_HW) for film in squares]
    windows = []
    for film in films:
        small = resample_nodule_film(film, config.film_size)
        count, part_HW = cv2.connectedComponents(small.mask_HW.astype(np.uint8))
        for number in range(1, count):
            nodule_HW = part_HW == number
            region_HW = compute_region(nodule_HW, planned.margin, planned.margin_px)
            try:
                find_window(region_HW, config.size)
            except UsageError:  # larger than the window: no example of what fits into it
                continue
            windows.append(NoduleWindow(small, nodule_HW, region_HW))
    return windows


def can_make(film: NoduleFilm, config: NodulesConfig, planned: GenerateConfig) -> bool:
    """Whether all nodules of a film can be made at once: some are to be seen, and they fit the window."""
    if config.mode == "film":
        return bool(square_film(film, config.size).mask_HW.any())
    mask_HW = resize_longest(film.mask_HW.astype(np.float32), config.film_size) > 0.5
    try:
        return bool(mask_HW.any()) and bool(
            find_window(compute_region(mask_HW, planned.margin, planned.margin_px), config.size)
        )
    except UsageError:
        return False


def draw_nodule_batch(
    windows: Sequence[NoduleWindow], positions: Sequence[int] | None, config: NodulesConfig
) -> NoduleBatch:
    """Cut windows, varied as a pure function of (seed, position); as they are, the nodule in the middle, without."""
    drawn = []
    for number, window in enumerate(windows):
        rng = None
        if positions is not None:
            rng = np.random.Generator(np.random.Philox(key=[config.seed, NODULE_STREAM + int(positions[number])]))
        drawn.append(_cut(window, config.size, rng))
    film, mask, lung = (
        torch.from_numpy(np.stack(part)[:, None].astype(np.float32)) for part in zip(*drawn, strict=True)
    )
    return NoduleBatch(film, mask, lung if config.mode == "film" else None)


def _cut(window: NoduleWindow, size: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    film, side = window.film, window.film.film_HW.shape
    start = [0, 0]
    if side != (size, size):
        for axis in (0, 1):
            inner, outer = (np.flatnonzero(part.any(1 - axis)) for part in (window.nodule_HW, window.region_HW))
            slack = min((size - int(np.ptp(inner)) - 1) // 4, (size - int(np.ptp(outer)) - 1) // 2)  # it stays inside
            middle = (outer[0] + outer[-1] + 1 - size) // 2 + (int(rng.integers(-slack, slack + 1)) if rng else 0)
            start[axis] = int(np.clip(middle, 0, side[axis] - size))
    here = tuple(slice(first, first + size) for first in start)
    lung_HW = film.lung_HW if film.lung_HW is not None else np.zeros(side, bool)
    parts = [film.film_HW[here], film.mask_HW[here], lung_HW[here]]
    if rng is not None:
        if rng.random() < 0.5:
            parts = [part[:, ::-1] for part in parts]
        exponent, gain = np.exp(rng.uniform(-0.15, 0.15)), 1 + rng.uniform(-0.05, 0.05)
        parts[0] = np.clip(np.power(parts[0], exponent) * gain, 0, 1)
    return parts[0], parts[1], parts[2]


def compute_contrast_ratio(method: GenerateNodules, batches: Sequence[NoduleBatch]) -> float:
    """Return the mean contrast of made nodules over that of the real ones in the same places; NaN without any."""
    device = method.steps.device
    made, real = [], []
    for seed, batch in enumerate(batches):
        mask_HW = batch.mask_B1SS[0, 0].numpy() > 0.5
        if not mask_HW.any():
            continue
        film_HW = generate(method, batch.to(device), [seed])[0, 0].cpu().numpy()
        made.append(measure_nodule(film_HW, mask_HW).contrast)
        real.append(measure_nodule(batch.film_B1SS[0, 0].numpy(), mask_HW).contrast)
    return float(np.mean(made) / np.mean(real)) if made and np.mean(real) else float("nan")


def describe_films(films: Sequence[NoduleFilm]) -> dict[str, Any]:
    """Count films, those with a nodule, and patients."""
    return {
        "films": len(films),
        "with_nodule": sum(bool(film.mask_HW.any()) for film in films),
        "patients": len({film.group for film in films}),
    }
