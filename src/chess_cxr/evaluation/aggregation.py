"""Aggregate the films of each study into one prediction, as in CheXpert's evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

HowToJoin = Literal["max", "mean"]


@dataclass(frozen=True)
class StudyScores:
    """S studies, in order of their first films: score_SC, label [S] or [S, L], study_S, patient_S.

    first_film_S: index of each study's first film.  film_count_S: number of films of each study.
    """

    score_SC: FloatArray
    label: NDArray[np.generic]
    study_S: NDArray[np.generic]
    patient_S: NDArray[np.generic]
    first_film_S: NDArray[np.intp]
    film_count_S: NDArray[np.intp]


def aggregate_studies(
    score_MC: ArrayLike, label: ArrayLike, study_M: ArrayLike, patient_M: ArrayLike, how: HowToJoin = "max"
) -> StudyScores:
    """Aggregate the films of each (patient, study) by the largest or mean score of each class.

    score_MC: of M films.  label: class indices [M], or findings [M, L] of 1, 0 and NaN.  study_M: a film with "" is a
    study of its own.
    A finding of a study is present if present in any film, absent if known and never present, NaN if unknown in all.
    If the films' class scores are probabilities that sum to 1, largest scores are divided by their sum.
    Raises UsageError if lengths do not fit, or if films of a study have different classes.
    """
    score, label_array = np.asarray(score_MC, dtype=np.float64), np.asarray(label)
    study, patient = np.asarray(study_M), np.asarray(patient_M)
    if how not in ("max", "mean"):
        raise UsageError(f"films of a study are joined by max or mean, not {how!r}")
    if score.ndim != 2 or not len(score) == len(label_array) == len(study) == len(patient):
        raise UsageError(
            f"scores of {len(score)} films do not fit {len(label_array)} labels, {len(study)} studies and "
            f"{len(patient)} patients"
        )
    first, place_M = _number_studies(study, patient)
    count_S = np.bincount(place_M, minlength=len(first))
    return StudyScores(
        score_SC=_join_scores(score, place_M, count_S, how, one_class=label_array.ndim == 1),
        label=_join_labels(label_array, place_M, first),
        study_S=study[first],
        patient_S=patient[first],
        first_film_S=first,
        film_count_S=count_S,
    )


def _number_studies(
    study_M: NDArray[np.generic], patient_M: NDArray[np.generic]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first film of each study and the study of each film, studies in order of their first film."""
    numbers: dict[object, int] = {}
    first: list[int] = []
    place = np.empty(len(study_M), dtype=np.intp)
    for film, (study, patient) in enumerate(zip(study_M.tolist(), patient_M.tolist(), strict=True)):
        key = (patient, study) if study != "" else film
        if key not in numbers:
            numbers[key] = len(first)
            first.append(film)
        place[film] = numbers[key]
    return np.array(first, dtype=np.intp), place


def _join_scores(
    score_MC: FloatArray, place_M: NDArray[np.intp], count_S: NDArray[np.intp], how: HowToJoin, one_class: bool
) -> FloatArray:
    if how == "mean":
        total_SC = np.zeros((len(count_S), score_MC.shape[1]))
        np.add.at(total_SC, place_M, score_MC)
        return total_SC / count_S[:, None]
    largest_SC = np.full((len(count_S), score_MC.shape[1]), -math.inf)
    np.maximum.at(largest_SC, place_M, score_MC)
    if one_class and score_MC.min(initial=0.0) >= 0.0 and np.allclose(score_MC.sum(axis=1), 1.0, atol=1e-3):
        largest_SC /= largest_SC.sum(axis=1, keepdims=True)
    return largest_SC


def _join_labels(
    label: NDArray[np.generic], place_M: NDArray[np.intp], first_S: NDArray[np.intp]
) -> NDArray[np.generic]:
    if label.ndim == 1:
        differing = len(np.unique(place_M[label != label[first_S][place_M]]))
        if differing:
            raise UsageError(f"{differing} studies hold films of different classes: a study is of one class")
        return label[first_S]
    known_ML = np.where(np.isnan(label.astype(np.float64)), -math.inf, label.astype(np.float64))
    joined_SL = np.full((len(first_S), label.shape[1]), -math.inf)
    np.maximum.at(joined_SL, place_M, known_ML)
    return np.where(np.isinf(joined_SL), math.nan, joined_SL)
