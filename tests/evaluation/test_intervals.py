import math

import numpy as np
import pytest
from scipy import stats

from chess_cxr.evaluation.intervals import (
    DrawReplicates,
    average_draws,
    bootstrap_by_patient,
    bootstrap_draws_by_patient,
    interval_of_draws,
    interval_of_rate,
    paired_bootstrap_by_patient,
    paired_bootstrap_draws_by_patient,
    replicate_draws,
    subtract_draws,
)
from chess_cxr.evaluation.metrics import build_multiclass_statistic, compute_multiclass
from chess_cxr.records import UsageError

NAMES = ("bacteria", "normal", "virus")


def weighted_mean(value_N: np.ndarray):
    return lambda weight_RN: {"mean": weight_RN @ value_N / weight_RN.sum(axis=1)}


def test_all_films_of_a_patient_are_drawn_together() -> None:
    patient = np.array(["a", "b", "a", "c", "b", "a"])
    seen: list[np.ndarray] = []

    def remember(index: np.ndarray) -> dict[str, float]:
        seen.append(np.bincount(index, minlength=6))
        return {"n": float(len(index))}

    bootstrap_by_patient(patient, remember, replicates=50)
    assert len(seen) == 51
    for count in seen:
        assert count[0] == count[2] == count[5] and count[1] == count[4]
        assert count[0] + count[1] + count[3] == 3
    assert len({tuple(count) for count in seen}) > 3


def test_the_interval_has_the_width_theory_gives_for_a_mean_over_patients() -> None:
    patient = np.repeat(np.arange(200), 3)
    value = np.random.default_rng(0).normal(size=200)[patient]
    found = bootstrap_by_patient(patient, lambda index: {"mean": value[index].mean()}, replicates=4000)["mean"]
    error = value[::3].std() / math.sqrt(200)
    assert found.value == pytest.approx(value.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_films_taken_for_independent_would_look_too_certain() -> None:
    patient = np.repeat(np.arange(40), 5)
    value = np.random.default_rng(0).normal(size=40)[patient]
    widths = []
    for unit in (patient, np.arange(200)):
        found = bootstrap_by_patient(unit, lambda index: {"mean": value[index].mean()}, replicates=500)["mean"]
        widths.append(found.high - found.low)
    assert widths[0] > 1.8 * widths[1]


def test_index_and_weight_statistics_give_the_same_interval() -> None:
    generator = np.random.default_rng(4)
    label, patient = generator.integers(0, 3, 90), generator.integers(0, 40, 90)
    score = generator.normal(size=(90, 3)) + np.eye(3)[label]
    slow = bootstrap_by_patient(
        patient, lambda i: compute_multiclass(label[i], score[i], NAMES), replicates=100, seed=7
    )
    fast = bootstrap_draws_by_patient(patient, [build_multiclass_statistic(label, score, NAMES)], 100, seed=7)
    for metric, interval in slow.items():
        assert (fast[metric].value, fast[metric].low, fast[metric].high) == pytest.approx(
            (interval.value, interval.low, interval.high)
        )


def test_replicates_without_the_class_are_dropped_and_counted() -> None:
    label, score = np.array([0, 1, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = bootstrap_by_patient(
        np.arange(4), lambda i: compute_multiclass(label[i], score[i], ("sick", "well")), replicates=400
    )
    # Chance that the one sick film, or all three others, are missing from four draws of four.
    missing = (3 / 4) ** 4 + (1 / 4) ** 4
    assert found["auroc"].undefined == pytest.approx(400 * missing, rel=0.25)
    assert found["accuracy"].undefined == 0
    assert math.isfinite(found["auroc"].low)


def test_a_metric_that_never_exists_has_no_interval() -> None:
    found = bootstrap_by_patient([1, 2, 3], lambda index: {"auroc": math.nan}, replicates=10)["auroc"]
    assert math.isnan(found.value) and math.isnan(found.low) and found.undefined == 10


def test_pairing_removes_what_both_predictions_share() -> None:
    generator = np.random.default_rng(5)
    shared = generator.normal(size=300) * 10
    gain = generator.normal(0.3, 0.5, size=300)
    patient = np.arange(300)

    def first(index: np.ndarray) -> dict[str, float]:
        return {"mean": float((shared + gain)[index].mean())}

    def second(index: np.ndarray) -> dict[str, float]:
        return {"mean": float(shared[index].mean())}

    found = paired_bootstrap_by_patient(patient, first, second)["mean"]
    alone = bootstrap_by_patient(patient, first)["mean"]
    assert found.low < gain.mean() < found.high
    assert found.low > 0 and found.p == pytest.approx(2 / 1001)
    assert alone.high - alone.low > 10 * (found.high - found.low)


def test_equal_predictions_do_not_differ() -> None:
    value = np.random.default_rng(6).normal(size=50)
    draws = [weighted_mean(value)] * 3
    found = paired_bootstrap_draws_by_patient(np.arange(50), draws, draws)["mean"]
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_p_is_uniform_enough_when_there_is_no_difference() -> None:
    small = 0
    for trial in range(200):
        gap = np.random.default_rng(trial).normal(size=60)
        found = paired_bootstrap_draws_by_patient(
            np.arange(60), [weighted_mean(gap)], [weighted_mean(np.zeros(60))], replicates=300
        )
        small += found["mean"].p < 0.1
    assert 8 <= small <= 36


def test_the_t_interval_of_draws_agrees_with_scipy() -> None:
    value = [0.71, 0.74, 0.69, 0.75, 0.70]
    want = stats.ttest_1samp(value, 0.0).confidence_interval(0.95)
    found = interval_of_draws([*value, math.nan])
    assert (found.low, found.high) == pytest.approx((want.low, want.high))
    assert found.undefined == 1


def test_one_draw_has_no_t_interval() -> None:
    found = interval_of_draws([0.7])
    assert found.value == 0.7 and math.isnan(found.low) and math.isnan(found.high)


def test_draw_variation_widens_the_interval_by_its_variance() -> None:
    generator = np.random.default_rng(8)
    draw_effect = generator.normal(0, 0.05, size=8)
    patient_noise = generator.normal(0, 0.01, size=4000)
    part = DrawReplicates(draw_effect, draw_effect[:, None] + patient_noise)
    found = average_draws(part, seed=1)
    error = math.sqrt(draw_effect.var(ddof=1) / 8 + 0.01**2)
    assert found.value == pytest.approx(draw_effect.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.07)


def test_a_single_draw_varies_by_patient_alone() -> None:
    value = np.random.default_rng(9).normal(size=80)
    alone = bootstrap_by_patient(np.arange(80), lambda index: {"mean": value[index].mean()}, seed=3)["mean"]
    found = bootstrap_draws_by_patient(np.arange(80), [weighted_mean(value)], seed=3)["mean"]
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_the_combined_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(150):
        generator = np.random.default_rng(trial)
        patient_effect, draw_effect = generator.normal(size=60), generator.normal(0, 0.2, size=10)
        draws = [weighted_mean(patient_effect + effect) for effect in draw_effect]
        found = bootstrap_draws_by_patient(np.arange(60), draws, replicates=300, seed=trial)["mean"]
        covered += found.low <= 0.0 <= found.high
    assert 132 <= covered <= 149


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    value = np.random.default_rng(10).normal(size=30)
    intervals = [
        bootstrap_draws_by_patient(np.arange(30), [weighted_mean(value)] * 2, seed=seed)["mean"] for seed in (1, 1, 2)
    ]
    assert intervals[0] == intervals[1] != intervals[2]


def test_a_large_test_set_is_resampled_in_blocks_with_the_same_result_rows() -> None:
    films = 9000
    found = replicate_draws(np.arange(films), [weighted_mean(np.ones(films))], replicates=1000)["mean"]
    assert found.value_DR.shape == (1, 1000)
    assert found.value_DR == pytest.approx(1.0)


def test_weights_are_whole_numbers_laid_out_by_film() -> None:
    seen: list[np.ndarray] = []

    def remember(weight_RN: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(weight_RN)
        return {"n": weight_RN.sum(axis=1)}

    replicate_draws(np.arange(700) // 2, [remember], replicates=30)
    assert seen[1].shape == (30, 700) and seen[1].dtype == np.float32 and seen[1].T.flags.c_contiguous
    assert (seen[1] == np.floor(seen[1])).all() and (seen[1].sum(axis=1) == 700).all()


def test_a_rate_of_independent_films_has_wilsons_interval() -> None:
    hit = np.r_[np.ones(18), np.zeros(22)]
    want = stats.binomtest(18, 40).proportion_ci(method="wilson")
    found = interval_of_rate(hit, np.arange(40))
    # The variance over patients has 39 in its divisor, that of independent films 40.
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.003)
    assert found.value == 0.45


def test_films_that_all_agree_within_a_patient_count_as_patients() -> None:
    per_patient = np.random.default_rng(0).random(50) < 0.3
    want = stats.binomtest(int(per_patient.sum()), 50).proportion_ci(method="wilson")
    found = interval_of_rate(np.repeat(per_patient, 6), np.repeat(np.arange(50), 6))
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.003)


def test_a_rate_of_0_or_1_still_has_an_interval_that_counts_patients() -> None:
    found = interval_of_rate(np.ones(30), np.arange(30) // 3)
    assert found.high == 1.0 and found.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="wilson").low)
    none = interval_of_rate(np.zeros(30), np.arange(30) // 3)
    assert none.low == 0.0 and none.high == pytest.approx(1 - found.low)
    assert interval_of_rate([1.0], ["a"]).low == pytest.approx(0.2065, abs=1e-3)
    assert math.isnan(interval_of_rate([], []).low)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="1 patients do not fit 2 films"):
        interval_of_rate([1.0, 0.0], ["a"])
    with pytest.raises(UsageError, match="at least one film"):
        bootstrap_by_patient([], lambda index: {})
    with pytest.raises(UsageError, match="one replicate"):
        bootstrap_by_patient([1], lambda index: {}, replicates=0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        bootstrap_by_patient([1], lambda index: {"n": 1.0}, level=95)
    with pytest.raises(UsageError, match="no draw"):
        replicate_draws([1], [])
    two, three = (DrawReplicates(np.zeros(n), np.zeros((n, 5))) for n in (2, 3))
    with pytest.raises(UsageError, match="same draws"):
        subtract_draws(two, three)
