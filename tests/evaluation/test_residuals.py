"""Features without what is known of the films."""

import numpy as np
import pytest

from chess_cxr.evaluation.residuals import fit_residuals
from chess_cxr.records import UsageError


def test_what_is_left_is_the_residual_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(300, 3))
    feature = known @ rng.normal(size=(3, 5)) + rng.normal(size=(300, 5)) + 7
    left = fit_residuals(feature, known).take_off(feature, known)
    columns = np.column_stack([np.ones(300), known])
    wanted = feature - columns @ np.linalg.lstsq(columns, feature, rcond=None)[0]
    np.testing.assert_allclose(left - left.mean(0), wanted, atol=1e-3)
    np.testing.assert_allclose(left.mean(0), feature.mean(0))
    assert abs(np.corrcoef(left[:, 0], known[:, 1])[0, 1]) < 1e-4


def test_new_films_lose_what_the_training_films_say() -> None:
    known = np.array([[0.0], [1.0]] * 50)
    fitted = fit_residuals(3 * known + 1, known)
    np.testing.assert_allclose(fitted.take_off([[9.0]], [[1.0]]), [[7.5]], atol=0.01)


def test_columns_that_repeat_each_other_or_say_nothing_do_no_harm() -> None:
    known = np.column_stack([np.arange(20) % 2, 1 - np.arange(20) % 2, np.ones(20)])
    feature = np.random.default_rng(1).normal(size=(20, 4)) + known[:, :1]
    left = fit_residuals(feature, known).take_off(feature, known)
    assert np.isfinite(left).all()
    np.testing.assert_allclose(left[::2].mean(0), left[1::2].mean(0), atol=0.02)
    with pytest.raises(UsageError, match="do not fit"):
        fit_residuals(feature, known[:5])
