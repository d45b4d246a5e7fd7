"""Squares of lung with and without a nodule, a small classifier that tells them apart, and a detector made of it.

The detector slides the classifier over the lungs and keeps the best of each neighbourhood.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.ndimage import distance_transform_edt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.intervals import Difference, Interval, bootstrap_by_patient, paired_bootstrap_by_patient
from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films

FOLDS = 3
SIDE = 48  # pixels at 256 a film: 67 mm of JSRT
HEALTHY_PER_FILM = 3
STRIDE = 12  # of the detector
Arm = TypeVar("Arm", bound=Hashable)
Statistic = Callable[[np.ndarray], dict[str, float]]
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0)  # per film, at which the sensitivity is averaged


def read_folds(jsrt: str) -> tuple[list[NoduleFilm], np.ndarray]:
    """Read JSRT films at 256 pixels, and give each the number of its fold, by patient."""
    films = read_nodule_films(jsrt, 256)
    sick_N = np.array([int(film.mask_HW.any()) for film in films])
    return films, assign_folds(np.array([film.group for film in films]), sick_N, FOLDS, 0)


@dataclass(frozen=True)
class Crops:
    """Squares of films, their labels (1 for a nodule) and patients."""

    pixels: list[np.ndarray]
    label: np.ndarray
    group: np.ndarray


def place_crops(films: Sequence[NoduleFilm], seed: int) -> list[tuple[int, int, int, int]]:
    """Choose squares: film number, top, left, label; nodules near the middle, healthy lung at random places."""
    rng = np.random.default_rng([seed, 31])
    places = []
    for number, film in enumerate(films):
        if film.mask_HW.any():
            row, column = np.argwhere(film.mask_HW).mean(0) + rng.integers(-6, 7, 2)
            places.append((number, *_corner(film, row, column), 1))
        for _ in range(HEALTHY_PER_FILM):
            spots = np.argwhere(film.lung_HW)
            for row, column in spots[rng.permutation(len(spots))[:50]]:
                top, left = _corner(film, row, column)
                if not film.mask_HW[top : top + SIDE, left : left + SIDE].any():
                    places.append((number, top, left, 0))
                    break
    return places


def _corner(film: NoduleFilm, row: float, column: float) -> tuple[int, int]:
    limits = (side - SIDE for side in film.film_HW.shape)
    return tuple(int(np.clip(v - SIDE / 2, 0, most)) for v, most in zip((row, column), limits, strict=True))


def cut_crops(
    films: Sequence[NoduleFilm], pictures: Sequence[np.ndarray], places: Sequence[tuple[int, int, int, int]]
) -> Crops:
    """Cut the same squares out of any pictures of the films."""
    return Crops(
        [pictures[n][top : top + SIDE, left : left + SIDE] for n, top, left, _ in places],
        np.array([label for *_, label in places]),
        np.array([films[n].group for n, *_ in places]),
    )


def embed_crops(encoder: Encoder, crops: Crops) -> np.ndarray:
    """Embed squares, each stretched to its own range as a reader would window it."""
    stretched = []
    for pixels in crops.pixels:
        low, high = np.percentile(pixels, (1, 99))
        stretched.append(np.clip((pixels - low) / max(high - low, 1e-3), 0, 1).astype(np.float32))
    return encoder.embed(stretched)


def fit_and_score(train_ND: np.ndarray, label_N: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """Fit a logistic regression, and score the test squares."""
    return build_classifier().fit(train_ND, label_N).decision_function(test_MD)


def build_classifier() -> Pipeline:
    """Build a logistic regression on features, whose strength is fixed beforehand."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.003, class_weight="balanced", max_iter=2000))


def compute_auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the AUROC, NaN if a class is missing."""
    return float(roc_auc_score(label, score)) if 0 < label.mean() < 1 else float("nan")


def place_grid(films: Sequence[NoduleFilm]) -> list[tuple[int, int, int, int]]:
    """List squares (film number, top, left, 0) on a grid, whose middles lie in a lung."""
    return [
        (number, top, left, 0)
        for number, film in enumerate(films)
        for top in range(0, film.film_HW.shape[0] - SIDE + 1, STRIDE)
        for left in range(0, film.film_HW.shape[1] - SIDE + 1, STRIDE)
        if film.lung_HW[top + SIDE // 2, left + SIDE // 2]
    ]


def detect(
    films: Sequence[NoduleFilm], places: Sequence[tuple[int, int, int, int]], score_P: np.ndarray
) -> list[list[tuple[float, bool]]]:
    """Return each film's detections, best first: score, and whether it is the first on the nodule."""
    found: list[list[tuple[float, bool]]] = []
    place_P4 = np.array(places).reshape(-1, 4)
    for number, film in enumerate(films):
        rows = np.flatnonzero(place_P4[:, 0] == number)
        middle_P2, score = place_P4[rows, 1:3] + SIDE // 2, score_P[rows]
        kept, hit = list[tuple[float, bool]](), False
        is_free = np.ones(len(rows), bool)
        near_HW = distance_transform_edt(~film.mask_HW) <= STRIDE if film.mask_HW.any() else film.mask_HW
        for best in np.argsort(-score, kind="stable"):
            if is_free[best]:
                is_free &= np.hypot(*(middle_P2 - middle_P2[best]).T) >= SIDE / 2
                on_nodule = bool(near_HW[tuple(middle_P2[best])])
                if not (on_nodule and hit):  # a second mark on a nodule counts neither way
                    kept.append((float(score[best]), on_nodule))
                hit |= on_nodule
        found.append(kept)
    return found


def measure_froc(films: Sequence[NoduleFilm], found: Sequence[Sequence[tuple[float, bool]]]) -> float:
    """Return the mean sensitivity at `FALSE_POSITIVES` per film."""
    marks = sorted((mark for one in found for mark in one), reverse=True)
    hit_N = np.cumsum([is_hit for _, is_hit in marks])
    false_N = np.cumsum([not is_hit for _, is_hit in marks])
    nodules = sum(film.has_nodule for film in films)
    if not nodules or not marks:
        return float("nan")
    last = [int(np.searchsorted(false_N, rate * len(films), side="right")) - 1 for rate in FALSE_POSITIVES]
    return float(np.mean([hit_N[one] / nodules if one >= 0 else 0.0 for one in last]))


def build_measures(
    label: np.ndarray, score: np.ndarray, films: Sequence[NoduleFilm], marks: Sequence[Sequence[tuple[float, bool]]]
) -> dict[str, Statistic]:
    """Return the AUROC of squares and the FROC of a detector's marks on films as functions of rows."""
    return {
        "auroc": lambda rows: {"auroc": compute_auroc(label[rows], score[rows])},
        "froc": lambda rows: {"froc": measure_froc([films[r] for r in rows], [marks[r] for r in rows])},
    }


def compare_arms(
    measures: Mapping[Arm, Mapping[str, Statistic]], patients: Mapping[str, np.ndarray], reference: Arm, resamples: int
) -> Iterator[tuple[Arm, dict[str, object], str]]:
    """Yield each arm's measures and their gain over the reference, with 95 % intervals by patient: a row and a line."""
    for arm, own in measures.items():
        for name, statistic in own.items():
            value = bootstrap_by_patient(patients[name], statistic, resamples, 0)[name]
            row: dict[str, object] = {"measure": name, **vars(value)}
            line = f"{name} {say(value)}"
            if arm != reference:
                other = measures[reference][name]
                gain = paired_bootstrap_by_patient(patients[name], statistic, other, resamples, 0)[name]
                row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                line += f"; gain {say(gain)}"
            yield arm, row, line


def say(value: Interval) -> str:
    """Write a value with its interval."""
    p = f", p {value.p:.3f}" if isinstance(value, Difference) else ""
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]{p}"
