import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from chess_cxr.evaluation.delong import compare_areas, estimate_area_interval, estimate_areas
from chess_cxr.records import UsageError


def draw_films(
    seed: int, patients: int = 60, films: int = 3, gain: tuple[float, float] = (1.0, 1.0), share: float = 0.4
):
    """Films whose scores share an effect of the patient, so that they are far from independent."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), films)
    sick = (generator.random(patients) < share)[patient]
    kept = np.where(generator.random(len(patient)) < 0.2, ~sick, sick)
    effect = generator.normal(size=patients)[patient]
    scores = np.stack([kept * g + effect + generator.normal(0, 0.5, len(patient)) for g in gain])
    return patient, kept, scores


def place_by_hand(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wins = np.array([[(x > y) + 0.5 * (x == y) for y in score[~positive]] for x in score[positive]])
    return wins.mean(axis=1), wins.mean(axis=0)


def vary_by_hand(positive: np.ndarray, one: np.ndarray, other: np.ndarray, patient: np.ndarray) -> float:
    """Obuchowski (1997), p. 570, term by term, over loops of patients."""
    x_one, y_one = place_by_hand(positive, one)
    x_other, y_other = place_by_hand(positive, other)
    owner_x, owner_y = patient[positive], patient[~positive]
    here, there, everyone = set(owner_x), set(owner_y), set(patient)
    s10 = s01 = s11 = s11_turned = 0.0
    for p in everyone:
        a = sum(v - x_one.mean() for v, owner in zip(x_one, owner_x, strict=True) if owner == p)
        b = sum(v - y_one.mean() for v, owner in zip(y_one, owner_y, strict=True) if owner == p)
        c = sum(v - x_other.mean() for v, owner in zip(x_other, owner_x, strict=True) if owner == p)
        d = sum(v - y_other.mean() for v, owner in zip(y_other, owner_y, strict=True) if owner == p)
        s10, s01, s11, s11_turned = s10 + a * c, s01 + b * d, s11 + a * d, s11_turned + b * c
    m, n = len(x_one), len(y_one)
    s10 *= len(here) / ((len(here) - 1) * m)
    s01 *= len(there) / ((len(there) - 1) * n)
    return s10 / m + s01 / n + (s11 + s11_turned) * len(everyone) / (len(everyone) - 1) / (m * n)


def test_areas_agree_with_scikit_learn() -> None:
    _, positive, scores = draw_films(0)
    rounded = np.round(scores, 1)
    found = estimate_areas(positive, rounded).auroc_K
    assert found == pytest.approx([roc_auc_score(positive, score) for score in rounded])


def test_the_covariance_of_independent_films_is_delongs() -> None:
    _, positive, scores = draw_films(1)
    rounded = np.round(scores, 1)
    places = [place_by_hand(positive, score) for score in rounded]
    want = np.cov([x for x, _ in places]) / positive.sum() + np.cov([y for _, y in places]) / (~positive).sum()
    found = estimate_areas(positive, rounded)
    assert found.covariance_KK == pytest.approx(want) and not found.clustered


def test_the_covariance_over_patients_is_obuchowskis() -> None:
    patient, positive, scores = draw_films(2, patients=25)
    rounded = np.round(scores, 1)
    found = estimate_areas(positive, rounded, patient)
    want = [[vary_by_hand(positive, one, other, patient) for other in rounded] for one in rounded]
    assert found.covariance_KK == pytest.approx(np.array(want)) and found.clustered


def test_one_film_a_patient_is_no_cluster() -> None:
    _, positive, scores = draw_films(3)
    names = np.array([f"p{number}" for number in range(len(positive))])
    alone, named = estimate_areas(positive, scores), estimate_areas(positive, scores, names)
    assert not named.clustered
    assert named.covariance_KK == pytest.approx(alone.covariance_KK, rel=1e-12)


def test_many_films_of_a_patient_make_the_area_less_certain() -> None:
    patient, positive, scores = draw_films(4, films=6)
    assert (
        estimate_areas(positive, scores, patient).covariance_KK[0, 0]
        > 2 * (estimate_areas(positive, scores).covariance_KK[0, 0])
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12)
)
def test_any_films_give_a_p_between_0_and_1_or_none(films: list[tuple[bool, int, int, int]]) -> None:
    positive, one, other, patient = (np.array(column) for column in zip(*films, strict=True))
    found = compare_areas(positive, one, other, patient)
    assert math.isnan(found.p) or 0.0 <= found.p <= 1.0
    assert math.isnan(found.value) == (positive.all() or not positive.any())


def test_the_p_value_is_that_of_the_normal_test() -> None:
    patient, positive, scores = draw_films(5, gain=(1.0, 1.6))
    found = compare_areas(positive, *scores, patient)
    variance = sum(
        sign * vary_by_hand(positive, scores[i], scores[j], patient)
        for i, j, sign in ((0, 0, 1), (1, 1, 1), (0, 1, -1), (1, 0, -1))
    )
    assert found.p == pytest.approx(2 * stats.norm.cdf(-abs(found.value) / math.sqrt(variance)))
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, found.value, math.sqrt(variance)))


def test_scores_that_rank_alike_do_not_differ() -> None:
    patient, positive, scores = draw_films(6)
    found = compare_areas(positive, scores[0], np.exp(scores[0]), patient)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_constant_scores_are_a_coin_without_variance() -> None:
    found = estimate_areas([1, 1, 0, 0, 0], np.zeros((1, 5)))
    assert found.auroc_K[0] == 0.5 and found.covariance_KK[0, 0] == pytest.approx(0.0)
    assert math.isnan(estimate_area_interval([1, 1, 0, 0, 0], np.zeros(5)).low)


def test_areas_of_1_and_0_cannot_be_tested() -> None:
    found = compare_areas([1, 1, 0, 0], [3, 2, 1, 0], [0, 1, 2, 3])
    assert found.value == 1.0 and math.isnan(found.p) and math.isnan(found.low)


@pytest.mark.parametrize("positive", [[1], [0, 0, 0], [1, 1], [1, 0, 0]])
def test_too_few_films_of_a_class_have_no_test(positive: list[int]) -> None:
    score = np.arange(len(positive), dtype=float)
    found = compare_areas(positive, score, score[::-1])
    assert math.isnan(found.p)
    assert math.isnan(found.value) == (len(set(positive)) == 1)


def test_two_films_of_one_sick_patient_are_one_patient() -> None:
    score = np.array([0.9, 0.4, 0.5, 0.2, 0.1])
    assert math.isnan(estimate_areas([1, 1, 0, 0, 0], score[None], ["a", "a", "b", "c", "d"]).covariance_KK[0, 0])


def test_the_interval_of_an_area_stays_between_0_and_1() -> None:
    positive = np.r_[np.ones(12), np.zeros(12)]
    score = np.r_[np.arange(12, 24), np.arange(12)].astype(float)
    score[0] = 10.5
    found = estimate_area_interval(positive, score)
    assert 0.98 < found.value < 1.0 and found.value < found.high < 1.0 and found.low < found.value


def test_no_difference_is_found_as_seldom_as_the_level_says_when_films_come_in_clusters() -> None:
    clustered = independent = covered = 0
    trials = 400
    for trial in range(trials):
        patient, positive, scores = draw_films(trial, patients=80, films=4)
        own = np.random.default_rng((9, trial)).normal(0, 0.7, (2, 80))[:, patient]
        found = compare_areas(positive, *(scores + own), patient)
        clustered += found.p < 0.05
        covered += found.low <= 0.0 <= found.high
        independent += compare_areas(positive, *(scores + own)).p < 0.05
    # 5 % of 400 is 20, and three standard deviations are 13: films taken for independent fall outside.
    assert 7 <= clustered <= 33 and covered == trials - clustered
    assert independent > 33


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="do not fit scores"):
        estimate_areas([1, 0], np.zeros((1, 3)))
    with pytest.raises(UsageError, match="unknown label"):
        estimate_areas([1, math.nan], np.zeros((1, 2)))
    with pytest.raises(UsageError, match="diverged"):
        estimate_areas([1, 0], [[math.nan, 1.0]])
    with pytest.raises(UsageError, match="1 patients do not fit 2 films"):
        estimate_areas([1, 0], np.zeros((1, 2)), ["a"])
    with pytest.raises(UsageError, match="between 0 and 1"):
        compare_areas([1, 0, 1, 0], [4, 3, 2, 1], [1, 2, 4, 3], level=95)
