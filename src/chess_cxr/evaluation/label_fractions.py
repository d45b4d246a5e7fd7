"""Draw labelled subsets of a training set: by patient, balanced by class, nested; and cross-validation folds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.records import UsageError

IndexArray = NDArray[np.intp]


def draw_label_fraction(
    patient_N: ArrayLike,
    label: ArrayLike,
    *,
    fraction: float | None = None,
    films: int | None = None,
    seed: int = 0,
    one_film_per_patient: bool = False,
) -> IndexArray:
    """Draw whole patients of a training set; return sorted film indices.

    patient_N: patient of each film.  label: class index [N] or findings [N, L] (1, 0, NaN).
    fraction: share of the patients, in (0, 1].  films: instead, as few patients as have this many films.
    one_film_per_patient: take one random film of each patient.

    The seed fixes an order of the patients, and every subset is the beginning of this order, so smaller subsets lie
    inside larger ones.  The order begins with one patient of each class, and every beginning is as close as possible to
    the class shares of the whole.  A patient with several classes counts for the rarest (with `one_film_per_patient`,
    for the class of the drawn film).  Raises UsageError for an empty or too large subset.
    """
    patient = np.asarray(patient_N)
    stratum_N = _film_strata(np.asarray(label), len(patient))
    names, code_N = np.unique(patient, return_inverse=True)
    generator = np.random.default_rng((seed, 2))
    film_order = generator.permutation(len(patient))
    if one_film_per_patient:
        _, first = np.unique(code_N[film_order], return_index=True)
        film_order = film_order[np.sort(first)]
    stratum_P = _rarest_stratum(stratum_N[film_order], code_N[film_order], len(names))
    rank_P = np.empty(len(names), dtype=np.intp)
    rank_P[interleave_strata(stratum_P, generator)] = np.arange(len(names))
    rank_N = rank_P[code_N[film_order]]
    cut = _count_patients(rank_N, len(names), len(np.unique(stratum_P)), fraction, films)
    return np.sort(film_order[rank_N < cut])


def interleave_strata(stratum_P: IndexArray, generator: np.random.Generator) -> IndexArray:
    """Return a random order whose beginnings are as balanced as the whole, with one member of each stratum first.

    The i-th of a stratum's n members has position (i + 1/2) / n, so a beginning up to t has t * n of them, rounded; the
    first has position 0.
    """
    shuffled = generator.permutation(len(stratum_P))
    due_P = np.empty(len(stratum_P))
    for stratum in np.unique(stratum_P):
        member = shuffled[stratum_P[shuffled] == stratum]
        due_P[member] = (np.arange(len(member)) + 0.5) / len(member)
        due_P[member[0]] = 0.0
    return shuffled[np.argsort(due_P[shuffled], kind="stable")]


def assign_folds(patient_N: ArrayLike, label: ArrayLike, fold_count: int, seed: int = 0) -> IndexArray:
    """Assign patients to folds 0..fold_count-1, stratified by class, in random order; return the fold of each film."""
    patient = np.asarray(patient_N)
    names, code_N = np.unique(patient, return_inverse=True)
    stratum_P = _rarest_stratum(_film_strata(np.asarray(label), len(patient)), code_N, len(names))
    shuffled = np.random.default_rng((seed, 3)).permutation(len(names))
    dealt = shuffled[np.argsort(stratum_P[shuffled], kind="stable")]
    fold_P = np.empty(len(names), dtype=np.intp)
    fold_P[dealt] = np.arange(len(names)) % fold_count
    return fold_P[code_N]


def _count_patients(
    rank_N: IndexArray, patient_count: int, strata: int, fraction: float | None, films: int | None
) -> int:
    if (fraction is None) == (films is None):
        raise UsageError("give either a fraction of the patients or a number of films to draw")
    if films is not None:
        if not 1 <= films <= len(rank_N):
            raise UsageError(f"cannot draw {films} films from {len(rank_N)}")
        return int(np.sort(rank_N)[films - 1]) + 1
    assert fraction is not None
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"a label fraction must be above 0 and at most 1, not {fraction}")
    return min(patient_count, max(strata, round(fraction * patient_count)))


def _film_strata(label: NDArray[np.generic], film_count: int) -> IndexArray:
    """Return the stratum of each film, numbered from the rarest (0); films without findings are the last."""
    if len(label) != film_count or film_count == 0:
        raise UsageError(f"{len(label)} labels do not fit {film_count} films; both need at least one")
    if label.ndim == 1:
        classes, code_N, count = np.unique(label, return_inverse=True, return_counts=True)
        by_rarity = np.argsort(count, kind="stable")
        place = np.empty(len(classes), dtype=np.intp)
        place[by_rarity] = np.arange(len(classes))
        return place[code_N]
    present_NL = np.asarray(label, dtype=np.float64) == 1.0
    by_rarity = np.argsort(present_NL.sum(axis=0), kind="stable")
    first_N = present_NL[:, by_rarity].argmax(axis=1)
    stratum_N: IndexArray = np.where(present_NL.any(axis=1), first_N, label.shape[1]).astype(np.intp)
    return stratum_N


def _rarest_stratum(stratum_N: IndexArray, code_N: IndexArray, patient_count: int) -> IndexArray:
    stratum_P = np.full(patient_count, np.iinfo(np.intp).max)
    np.minimum.at(stratum_P, code_N, stratum_N)
    return stratum_P
