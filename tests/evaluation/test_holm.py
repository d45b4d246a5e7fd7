import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.records import UsageError


def reject_by_hand(p: list[float], level: float) -> list[bool]:
    """Holm's procedure as the paper tells it: from the smallest p on, until one is too large for what is left."""
    rejected = [False] * len(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    for step, i in enumerate(order):
        if p[i] * (len(p) - step) > level:
            break
        rejected[i] = True
    return rejected


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_corrected_values_below_the_level_are_those_that_the_procedure_rejects(p: list[float], level: float) -> None:
    assert (correct_holm(p) <= level).tolist() == reject_by_hand(p, level)


def test_a_worked_example() -> None:
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_test_that_was_not_made_stays_nan_and_does_not_count() -> None:
    corrected = correct_holm([0.01, math.nan, 0.04])
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(corrected[1])
    assert np.isnan(correct_holm([math.nan])).all() and len(correct_holm([])) == 0


def test_any_false_finding_in_a_family_stays_rarer_than_the_level() -> None:
    generator = np.random.default_rng(0)
    families = generator.random((2000, 5))
    false = sum((correct_holm(family) < 0.05).any() for family in families)
    uncorrected = (families < 0.05).any(axis=1).sum()
    # 5 % of 2,000 is 100; four standard deviations are 39.
    assert 61 <= false <= 139 and uncorrected > 350


def test_what_is_no_p_value_is_refused() -> None:
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(UsageError, match="from 0 to 1"):
            correct_holm(wrong)
