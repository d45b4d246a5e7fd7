import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chess_cxr.evaluation.operating_points import (
    RULES,
    ThresholdRule,
    choose_threshold,
    compute_operating_points,
    compute_transfer_costs,
)
from chess_cxr.records import UsageError

NAMES = ("Edema", "Mass")


def describe(positive: np.ndarray, score: np.ndarray, threshold: float) -> tuple[float, float]:
    flagged = score >= threshold
    return flagged[positive].mean(), (~flagged[~positive]).mean()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=25), st.sampled_from([0.3, 0.9, 1.0]))
def test_a_threshold_keeps_its_rule_and_no_other_does_better(films: list[tuple[bool, int]], target: float) -> None:
    positive, score = np.array([film[0] for film in films]), np.array([film[1] / 6 for film in films])
    if positive.all() or not positive.any():
        assert math.isnan(choose_threshold(positive, score, RULES[0]))
        return
    every = [describe(positive, score, threshold) for threshold in [*set(score), math.inf]]
    sens, spec = describe(positive, score, choose_threshold(positive, score, ThresholdRule("youden")))
    assert sens + spec == pytest.approx(max(a + b for a, b in every))
    sens, spec = describe(positive, score, choose_threshold(positive, score, ThresholdRule("sensitivity", target)))
    assert sens >= target - 1e-9 and spec == pytest.approx(max(b for a, b in every if a >= target - 1e-9))
    sens, spec = describe(positive, score, choose_threshold(positive, score, ThresholdRule("specificity", target)))
    assert spec >= target - 1e-9 and sens == pytest.approx(max(a for a, b in every if b >= target - 1e-9))


def test_a_threshold_lies_between_two_scores() -> None:
    positive, score = [0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9]
    assert choose_threshold(positive, score, ThresholdRule("youden")) == pytest.approx(0.4)
    assert choose_threshold(positive, score, ThresholdRule("sensitivity", 0.5)) == pytest.approx(0.7)


def test_a_threshold_of_scores_that_cannot_tell_flags_nothing_or_everything() -> None:
    assert choose_threshold([0, 1, 0], [0.5] * 3, ThresholdRule("specificity", 0.9)) == math.inf
    assert choose_threshold([0, 1, 0], [0.5] * 3, ThresholdRule("sensitivity", 0.9)) == 0.5


def draw_films(seed: int, films: int = 400, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = (generator.random((films, 2)) < [0.3, 0.4]).astype(float)
    score = 1.5 * label + generator.normal(size=(films, 2)) + shift
    label[generator.random((films, 2)) < 0.1] = np.nan
    return label, score


def test_a_table_of_operating_points_counts_what_the_thresholds_give() -> None:
    (val_label, val_score), (label, score) = draw_films(0), draw_films(1)
    patient = np.arange(400) // 2
    table = compute_operating_points(val_label, val_score, label, score, patient, NAMES, "multilabel")
    assert list(table["rule"]) == ["Youden", "sensitivity 0.9", "specificity 0.9"] * 2
    for row in table.itertuples():
        j = NAMES.index(row.name)
        known, val_known = ~np.isnan(label[:, j]), ~np.isnan(val_label[:, j])
        for part, truth, chance in (
            ("val_", val_label[val_known, j], val_score[val_known, j]),
            ("", label[known, j], score[known, j]),
        ):
            sens, spec = describe(truth == 1, chance, row.threshold)
            assert getattr(row, f"{part}sensitivity") == pytest.approx(sens)
            assert getattr(row, f"{part}specificity") == pytest.approx(spec)
        assert row.test_positives == np.nansum(label[:, j]) and row.test_positives + row.test_negatives == known.sum()
        assert row.flagged == pytest.approx((score[known, j] >= row.threshold).mean())
        assert row.sensitivity_low < row.sensitivity < row.sensitivity_high
        assert row.specificity_low < row.specificity < row.specificity_high
        assert row.warning == ""
    by_rule = table.set_index(["name", "rule"])
    fixed = by_rule.loc[("Edema", "sensitivity 0.9")]
    assert fixed["val_sensitivity"] >= 0.9 and fixed["shortfall"] == pytest.approx(0.9 - fixed["sensitivity"])
    assert math.isnan(by_rule.loc[("Edema", "Youden"), "shortfall"]) and not by_rule.loc[("Edema", "Youden"), "missed"]


def test_a_threshold_that_misses_what_was_asked_says_so() -> None:
    (val_label, val_score), (label, score) = draw_films(2), draw_films(3, shift=-1.0)
    table = compute_operating_points(val_label, val_score, label, score, np.arange(400), NAMES, "multilabel")
    missed = table.set_index(["name", "rule"])["missed"]
    assert missed["Edema", "sensitivity 0.9"] and not missed["Edema", "specificity 0.9"]


def test_classes_are_each_judged_against_the_rest() -> None:
    generator = np.random.default_rng(4)
    label = generator.integers(0, 3, 300)
    score = np.eye(3)[label] + generator.normal(size=(300, 3))
    table = compute_operating_points(label, score, label, score, np.arange(300), ("a", "b", "c"), "multiclass")
    row = table[(table["name"] == "b") & (table["rule"] == "Youden")].iloc[0]
    assert row["sensitivity"] == pytest.approx(describe(label == 1, score[:, 1], row["threshold"])[0])


def test_few_validation_films_are_warned_of_and_one_class_has_no_threshold() -> None:
    val_label, val_score = draw_films(5, films=12)
    val_label[:, 1] = 0.0
    label, score = draw_films(6)
    table = compute_operating_points(val_label, val_score, label, score, np.arange(400), NAMES, "multilabel")
    assert table["warning"].str.contains("too few").all()
    assert table[table["name"] == "Mass"][["threshold", "sensitivity", "sensitivity_low", "flagged"]].isna().all().all()
    assert not table[table["name"] == "Mass"]["missed"].any()


def carry(shift: float, **options: object):
    val_label, val_score = draw_films(7, films=800)
    label, score = draw_films(8, films=800)
    val_site, site = (np.where(np.arange(800) % 2, "here", "there") for _ in range(2))
    val_score[val_site == "there"] += shift
    score[site == "there"] += shift
    site[:20] = ""
    patient = np.arange(800) // 4
    sites = (val_label, val_score, val_site, label, score, site, patient)
    table = compute_transfer_costs(*sites, NAMES, "multilabel", replicates=300, **options)
    return table, label, score, site


def test_a_threshold_of_another_site_floods_it_with_false_alarms() -> None:
    table, label, score, site = carry(shift=1.5)
    assert len(table) == 2 * 3 * 4
    rows = table.set_index(["name", "rule", "from_site", "to_site"])
    carried = rows.loc[("Edema", "specificity 0.9", "here", "there")]
    assert carried["specificity_change_high"] < -0.2 and carried["sensitivity_change_low"] > 0
    films = (site == "there") & ~np.isnan(label[:, 0])
    own = describe(label[films, 0] == 1, score[films, 0], carried["own_threshold"])
    moved = describe(label[films, 0] == 1, score[films, 0], carried["threshold"])
    assert carried["specificity_change"] == pytest.approx(moved[1] - own[1])
    assert carried["sensitivity_change"] == pytest.approx(moved[0] - own[0])
    assert carried["specificity"] == pytest.approx(moved[1])
    assert carried["test_positives"] == np.nansum(label[site == "there", 0])


def test_a_threshold_at_its_own_site_changes_nothing() -> None:
    table, *_ = carry(shift=1.5)
    own = table[table["from_site"] == table["to_site"]]
    assert len(own) == 12
    for name in ("sensitivity_change", "sensitivity_change_low", "specificity_change", "specificity_change_high"):
        assert (own[name] == 0.0).all()


def test_a_site_without_validation_films_has_no_threshold_of_its_own() -> None:
    label, score = draw_films(9, films=100)
    patient = np.arange(100)
    arrays = (label, score, np.full(100, "here"), label, score, np.full(100, "new"), patient)
    table = compute_transfer_costs(*arrays, NAMES, "multilabel", replicates=20)
    assert set(table["to_site"]) == {"new"} and table["own_threshold"].isna().all()
    assert table["sensitivity_change"].isna().all() and table["sensitivity"].notna().all()


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="no rule named"):
        choose_threshold([0, 1], [0, 1], ThresholdRule("best"))
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        choose_threshold([0, 1], [0, 1], ThresholdRule("sensitivity", 90))
    label, score = draw_films(10, films=10)
    with pytest.raises(UsageError, match="9 patients"):
        compute_operating_points(label, score, label, score, np.arange(9), NAMES, "multilabel")
