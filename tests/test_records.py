import math

import pytest

from chess_cxr.records import parse_age_years, parse_date, parse_sex, parse_view


@pytest.mark.parametrize(
    ("text", "age_years"),
    [("034Y", 34), ("018M", 1.5), ("026W", 0.498), ("010D", 0.0274), ("62", 62), ("62.0", 62), ("85 or more", 85)]
    + [(">89", 89), (" 7 ", 7), ("0", 0), ("age 40", math.nan)],
)
def test_an_age_is_read_in_years(text: str, age_years: float) -> None:
    assert parse_age_years(text) == pytest.approx(age_years, rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("text", ["", "unknown", "-3", "-3Y", "412", "nan", "Y"])
def test_what_is_no_age_is_unknown(text: str) -> None:
    assert math.isnan(parse_age_years(text))


@pytest.mark.parametrize(
    ("text", "sex"), [("F", "F"), ("female", "F"), ("M", "M"), ("Male ", "M"), ("O", ""), ("", ""), ("Unknown", "")]
)
def test_a_sex_is_read_from_any_spelling(text: str, sex: str) -> None:
    assert parse_sex(text) == sex


@pytest.mark.parametrize(
    ("text", "view"),
    [("PA", "PA"), ("pa", "PA"), ("AP", "AP"), ("AP SUPINE", "AP"), ("AP_horizontal", "AP"), ("Frontal", "")]
    + [("LATERAL", "LATERAL"), ("LL", "LATERAL"), ("RL", "LATERAL"), ("L", "LATERAL"), ("LLD", ""), ("", "")]
    + [("postero-anterior", "PA"), ("Antero-posterior", "AP"), ("left lateral decubitus", "")],
)
def test_a_view_is_read_from_any_wording(text: str, view: str) -> None:
    assert parse_view(text) == view


@pytest.mark.parametrize(
    ("text", "day"),
    [("20240229", "20240229"), (" 2024-02-29T08:00", "20240229"), ("2024.02.29", "20240229"), ("20230229", "")]
    + [("00000000", ""), ("99999999", ""), ("2024-0229", ""), ("", "")],
)
def test_only_a_day_of_the_calendar_is_a_date(text: str, day: str) -> None:
    assert parse_date(text) == day
