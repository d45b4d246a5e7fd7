import numpy as np
import pytest

from chess_cxr.records import UsageError
from chess_cxr.tasks.classify.pointing import compute_pointing_score, draw_disc, play_pointing_game

EVERYWHERE = np.ones((20, 30), bool)


def make_map(y: int, x: int) -> np.ndarray:
    brightness = np.zeros((20, 30))
    brightness[y, x] = 1
    return brightness


def test_a_point_in_the_region_or_near_enough_hits() -> None:
    region = draw_disc(20, 30, 10, 8, 3)
    assert play_pointing_game(make_map(8, 10), region, 0, EVERYWHERE)[0] == 1
    assert play_pointing_game(make_map(8, 15), region, 0, EVERYWHERE)[0] == 0
    assert play_pointing_game(make_map(8, 15), region, 2, EVERYWHERE)[0] == 1
    assert play_pointing_game(make_map(8, 16), region, 2, EVERYWHERE)[0] == 0


def test_chance_is_the_share_of_points_that_would_hit() -> None:
    region = draw_disc(20, 30, 10, 8, 3)
    near = 0
    for y in range(20):
        for x in range(30):
            near += any(region[v, u] and (v - y) ** 2 + (u - x) ** 2 <= 4 for v in range(20) for u in range(30))
    assert play_pointing_game(make_map(0, 0), region, 2, EVERYWHERE)[1] == pytest.approx(near / 600)
    inside = np.zeros((20, 30), bool)
    inside[:, :15] = True
    within = play_pointing_game(make_map(0, 0), region, 0, inside)[1]
    assert within == pytest.approx(region.sum() / 300)


def test_a_map_without_a_brightest_point_hits_by_chance() -> None:
    hit, chance = play_pointing_game(np.zeros((20, 30)), draw_disc(20, 30, 10, 8, 3), 1, EVERYWHERE)
    assert hit == chance > 0


def test_the_brightest_point_is_looked_for_inside_only() -> None:
    brightness = make_map(8, 10) + 2 * make_map(0, 29)
    region, inside = draw_disc(20, 30, 10, 8, 3), EVERYWHERE.copy()
    inside[:3] = False
    assert play_pointing_game(brightness, region, 0, EVERYWHERE)[0] == 0
    assert play_pointing_game(brightness, region, 0, inside)[0] == 1


def test_the_score_is_the_mean_of_films_with_an_interval_over_patients() -> None:
    region = draw_disc(20, 30, 10, 8, 3)
    hits = np.random.default_rng(0).random(80) < 0.4
    maps = [make_map(8, 10) if hit else make_map(0, 29) for hit in hits]
    single = compute_pointing_score(maps, [region] * 80, [f"p{place}" for place in range(80)])
    assert single.hit.value == pytest.approx(hits.mean())
    assert single.chance == pytest.approx(region.mean())
    assert single.above_chance.value == pytest.approx(hits.mean() - region.mean())
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 80)
    assert (single.hit.low, single.hit.high) == pytest.approx((hits.mean() - half, hits.mean() + half), abs=0.03)
    paired = compute_pointing_score(maps * 2, [region] * 160, [f"p{place}" for place in range(80)] * 2)
    assert paired.hit.high - paired.hit.low == pytest.approx(single.hit.high - single.hit.low, abs=0.02)
    assert "80 films" in single.as_text()


def test_no_hit_on_a_few_films_is_not_below_chance() -> None:
    region = draw_disc(20, 30, 10, 8, 2)
    missed = compute_pointing_score([make_map(0, 29)] * 30, [region] * 30, [f"p{place}" for place in range(30)])
    assert missed.hit.value == 0 and missed.above_chance.low < 0 < missed.above_chance.high
    again = compute_pointing_score([make_map(0, 29)] * 30, [region] * 30, [f"p{place // 10}" for place in range(30)])
    assert again.hit.high > 2 * missed.hit.high  # three patients say less than thirty


def test_what_cannot_be_pointed_at_is_refused() -> None:
    region = draw_disc(20, 30, 10, 8, 3)
    with pytest.raises(UsageError, match="no region or nothing to search"):
        compute_pointing_score([make_map(0, 0)], [np.zeros((20, 30), bool)], ["p"])
    with pytest.raises(UsageError, match="does not fit a region"):
        compute_pointing_score([np.zeros((5, 5))], [region], ["p"])
    with pytest.raises(UsageError, match="do not fit 1 regions"):
        compute_pointing_score([make_map(0, 0)] * 2, [region], ["p", "q"])
    with pytest.raises(UsageError, match="NaN"):
        compute_pointing_score([make_map(0, 0) * np.nan], [region], ["p"])


def test_a_disc_has_the_area_of_its_circle_and_is_never_empty() -> None:
    assert draw_disc(200, 200, 100, 90, 40).sum() == pytest.approx(np.pi * 1600, rel=0.01)
    tiny = draw_disc(20, 20, 7.5, 3.5, 0.1)
    assert tiny.any() and np.argwhere(tiny).mean(0).tolist() == [3.5, 7.5]
