import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from chess_cxr.evaluation.film_means import build_mean_statistic, summarise_films
from chess_cxr.evaluation.intervals import paired_bootstrap_draws_by_patient
from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.bones.metrics import (
    compute_background,
    find_bone,
    find_gaps,
    find_ribs,
    measure_bone_contrast,
    measure_nodules,
    measure_vessels,
    pass_vessels,
    score_suppression,
)
from chess_cxr.tasks.classify.pointing import draw_disc
from chess_cxr.tasks.nodule_contrast import draw_ring

SIDE = 256
SEEDS = (1, 4, 7)


@dataclass(frozen=True)
class Case:
    """A generated (SYNTHETIC) film with a nodule, without bone, and without bone and nodule."""

    film: np.ndarray
    truth: np.ndarray
    erased: np.ndarray
    bone_cm: np.ndarray
    lung: np.ndarray
    nodule: np.ndarray

    def score(self, result: np.ndarray) -> dict[str, float]:
        return score_suppression(
            self.film, result, self.truth, lung_HW=self.lung, bone_HW=self.bone_cm, nodules=[self.nodule]
        )


@cache
def make_case(seed: int) -> Case:
    shown, without = (
        render_film(draw_anatomy(seed), draw_exposure(seed), finding, SIDE, with_bone_free=True)
        for finding in ("nodule", "normal")
    )
    assert shown.without_bone is not None and without.without_bone is not None
    film, truth, erased = (
        pixels.astype(np.float32) / np.float32(4095)
        for pixels in (shown.pixels, shown.without_bone, without.without_bone)
    )
    return Case(film, truth, erased, shown.bone_cm, shown.lung_mask, shown.finding_mask)


# ---------------------------------------------------------------- properties, on generated films


@pytest.mark.parametrize("seed", SEEDS)
def test_doing_nothing_leaves_all_bone_nodules_and_vessels(seed: int) -> None:
    case = make_case(seed)
    score = case.score(case.film)
    assert score["rib_residual"] == score["rib_residual_from_truth"] == 1
    assert score["nodule_cnr_ratio"] == score["nodule_contrast_ratio"] == score["vessel_energy_ratio"] == 1
    bone = (case.film - case.truth).astype(np.float64)
    left = np.maximum(bone - bone.mean(), 0)
    assert score["bsr"] == pytest.approx(1 - (left**2).sum() / (bone**2).sum(), abs=1e-6)
    assert 0 < score["bsr"] < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_perfect_suppression_leaves_no_bone_and_the_nodule_whole(seed: int) -> None:
    case = make_case(seed)
    score = case.score(case.truth)
    assert abs(score["rib_residual"]) < 0.15 and score["rib_contrast_before"] > 0.04
    assert score["rib_residual_from_truth"] == 0
    assert score["bsr"] == score["ssim"] == score["nodule_cnr_of_truth"] == score["nodule_contrast_of_truth"] == 1
    assert score["vessel_energy_of_truth"] == 1
    assert score["vessel_energy_ratio"] == pytest.approx(1, abs=0.1)
    assert score["nodule_cnr_ratio"] > 1  # the ribs across the ring are gone


@pytest.mark.parametrize("seed", SEEDS)
def test_an_erased_nodule_is_seen_to_be_gone_though_the_picture_is_good(seed: int) -> None:
    case = make_case(seed)
    score = case.score(case.erased)
    assert score["psnr"] > 34 and score["bsr"] > 0.99
    # What is left is the lung behind it, which is not the same in the ring.
    assert abs(score["nodule_contrast_of_truth"]) < 0.25 and abs(score["nodule_cnr_of_truth"]) < 0.25


def test_half_of_the_bone_taken_away_leaves_half() -> None:
    case = make_case(1)
    score = case.score((case.film + case.truth) / 2)
    assert score["rib_residual_from_truth"] == pytest.approx(0.5, abs=1e-5)
    assert score["rib_residual"] == pytest.approx(0.5, abs=0.02)
    dark = case.score(np.clip(2 * case.truth - case.film, 0, 1))
    assert dark["rib_residual"] < -0.9


def test_blurring_costs_vessels_and_noise_adds_to_them() -> None:
    case = make_case(4)
    blurred = ndimage.gaussian_filter(case.truth, 3.0)
    noisy = case.truth + np.random.default_rng(0).normal(0, 0.02, case.truth.shape).astype(np.float32)
    assert case.score(blurred)["vessel_energy_of_truth"] < 0.3
    assert case.score(noisy)["vessel_energy_of_truth"] > 1.2


def test_a_nodule_of_half_the_contrast_has_half_of_it() -> None:
    case = make_case(1)
    both = case.score((case.truth + case.erased) / 2)
    gone = case.score(case.erased)["nodule_contrast_of_truth"]
    assert both["nodule_contrast_of_truth"] == pytest.approx((1 + gone) / 2, abs=1e-6)


def test_bone_is_found_where_the_pair_differs() -> None:
    case = make_case(1)
    found = find_bone(case.film, case.truth)
    thick = case.lung & (case.bone_cm > np.percentile(case.bone_cm[case.lung], 90))
    thin = case.lung & (case.bone_cm < 0.02)
    assert found[thick].mean() > 0.8 and found[thin].mean() < 0.05
    assert not find_bone(case.film, case.film).any()


# ---------------------------------------------------------------- slow oracles


def average_slowly(film: np.ndarray, lung: np.ndarray, half: int) -> np.ndarray:
    mean = np.zeros(film.shape)
    for row in range(film.shape[0]):
        for column in range(film.shape[1]):
            square = slice(max(row - half, 0), row + half + 1), slice(max(column - half, 0), column + half + 1)
            if lung[square].any():
                mean[row, column] = film[square][lung[square]].mean()
    return mean


def make_stripes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lung of 40 x 48 pixels with three bright ribs on a slope of tone: film, bone mask, lung."""
    rng = np.random.default_rng(2)
    lung = np.zeros((40, 48), bool)
    lung[4:36, 6:40] = True
    bone = np.zeros((40, 48), bool)
    bone[[6, 7, 15, 16, 24, 25, 26]] = True
    film = 0.3 + 0.005 * np.arange(48)[None] + 0.1 * bone + rng.normal(0, 0.02, (40, 48))
    return np.clip(np.where(lung, film, 0.9), 0, 1), bone, lung


def test_the_background_is_the_mean_of_the_lung_around() -> None:
    film, _, lung = make_stripes()
    assert compute_background(film, lung) == pytest.approx(average_slowly(film, lung, 3), abs=1e-12)


def measure_contrast_slowly(film: np.ndarray, bone: np.ndarray, lung: np.ndarray) -> float:
    flat = film - average_slowly(film, lung, 3)
    thick = bone - average_slowly(bone.astype(float), lung, 3)
    on_bone, beside = [], []
    rib = [(r, c) for r, c in np.argwhere(lung) if thick[r, c] > 1e-9]
    for row, column in np.argwhere(lung):
        if thick[row, column] > 1e-9:
            on_bone.append(flat[row, column])
        elif thick[row, column] < -1e-9 and any(math.hypot(row - r, column - c) <= 0.03 * 48 for r, c in rib):
            beside.append(flat[row, column])
    return float(np.mean(on_bone) - np.mean(beside))


def test_the_contrast_of_ribs_is_that_of_their_pixels_in_turn() -> None:
    film, bone, lung = make_stripes()
    result = film - 0.07 * bone
    measured = measure_bone_contrast(film, result, bone, lung)
    before, after = (measure_contrast_slowly(part, bone, lung) for part in (film, result))
    assert measured["contrast_before"] == pytest.approx(before, abs=1e-12)
    assert measured["residual"] == pytest.approx(after / before, abs=1e-10)
    assert measured["residual"] == pytest.approx(0.3, abs=0.1)
    thickness = np.where(bone, 2.0, 0.5)
    assert measure_bone_contrast(film, result, thickness, lung)["residual"] == measured["residual"]


def test_the_slope_of_the_film_is_no_contrast() -> None:
    _, bone, lung = make_stripes()
    slope = np.tile(0.2 + 0.01 * np.arange(48), (40, 1))
    assert abs(measure_bone_contrast(slope, slope, bone, lung)["contrast_before"]) < 1e-3


def measure_nodule_slowly(film: np.ndarray, nodule: np.ndarray, lung: np.ndarray, other: np.ndarray) -> float:
    radius = math.sqrt(nodule.sum() / math.pi)
    inner, outer = max(1.0, 0.25 * radius), max(3.0, radius)
    inside = [film[r, c] for r, c in np.argwhere(nodule)]
    ring = []
    for row, column in np.argwhere(lung & ~nodule & ~other):
        away = min(math.hypot(row - r, column - c) for r, c in np.argwhere(nodule))
        if inner < away <= outer:
            ring.append(film[row, column])
    return float((np.mean(inside) - np.mean(ring)) / np.std(ring))


def test_the_contrast_to_noise_of_a_nodule_is_that_of_its_pixels_in_turn() -> None:
    film, bone, lung = make_stripes()
    nodule, other = draw_disc(40, 48, 20, 18, 5), draw_disc(40, 48, 29, 18, 2)
    film = np.clip(film + 0.1 * nodule, 0, 1)
    result = film - 0.07 * bone
    before, after = (measure_nodule_slowly(part, nodule, lung, other) for part in (film, result))
    lone_before = measure_nodule_slowly(film, other, lung, nodule)
    measured = measure_nodules(film, result, [nodule, other], lung)
    assert measured["cnr_before"] == pytest.approx((before + lone_before) / 2, abs=1e-10)
    ring = draw_ring(nodule, lung, [nodule, other])
    assert not (ring & (nodule | other | ~lung)).any()
    only = measure_nodules(np.where(other, film[0, 10], film), result, [nodule], lung & ~other)
    assert only["cnr_before"] == pytest.approx(before, abs=1e-10)
    assert only["cnr_after"] == pytest.approx(after, abs=1e-10)
    assert only["cnr_ratio"] == pytest.approx(after / before, abs=1e-10)


def blur_slowly(film: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of four standard deviations, the film mirrored at its borders, weight by weight."""
    reach = int(4 * sigma + 0.5)
    weight = [math.exp(-(k * k) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    padded = np.pad(film, reach, mode="symmetric")
    blurred = np.zeros(film.shape)
    for i, down in enumerate(weight):
        for j, right in enumerate(weight):
            blurred += down * right * padded[i : i + film.shape[0], j : j + film.shape[1]]
    return blurred / sum(weight) ** 2


def test_the_detail_of_vessels_is_that_of_their_pixels_in_turn() -> None:
    case = make_case(1)
    film, result = (cv2.resize(part, (128, 128), interpolation=cv2.INTER_AREA) for part in (case.film, case.truth))
    bone = cv2.resize(case.bone_cm, (128, 128), interpolation=cv2.INTER_AREA)
    lung = cv2.resize(case.lung.astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST) > 0
    parts = [part.astype(np.float64) for part in (film, result, bone)]
    bands = [blur_slowly(part, 0.32) - blur_slowly(part, 1.28) for part in parts]
    deep = ndimage.distance_transform_edt(lung) > 0.02 * 128
    edge = math.sqrt(float(np.mean([bands[2][r, c] ** 2 for r, c in np.argwhere(deep)])))
    _, beside = find_ribs(bone, lung)
    gaps = [(r, c) for r, c in np.argwhere(deep & beside) if abs(bands[2][r, c]) <= 0.25 * edge]
    before, after = (np.mean([band[r, c] ** 2 for r, c in gaps]) for band in bands[:2])
    assert len(gaps) == find_gaps(bone, lung).sum() > 100
    assert measure_vessels(film, result, bone, lung)["energy_ratio"] == pytest.approx(after / before, rel=1e-9)


def test_the_band_of_vessels_passes_the_cycles_that_are_documented() -> None:
    x = (np.arange(512) + 0.5) / 512
    passed = {}
    for cycles in (3, 17, 39, 87, 200):
        wave = np.tile(np.cos(2 * np.pi * cycles * x), (512, 1))
        passed[cycles] = pass_vessels(wave)[:, 100:-100].std() / wave[:, 100:-100].std()
    assert passed[39] == pytest.approx(0.78, abs=0.02) and max(passed.values()) == passed[39]
    assert passed[17] == pytest.approx(passed[39] / 2, abs=0.02)
    assert passed[87] == pytest.approx(passed[39] / 2, abs=0.02)
    assert passed[3] < 0.05 and passed[200] < 0.05


# ---------------------------------------------------------------- what cannot be measured, and what is refused


def test_a_score_that_has_no_value_is_nan_and_no_number() -> None:
    film, bone, lung = make_stripes()
    nowhere = np.zeros_like(bone)
    assert all(math.isnan(value) for value in measure_bone_contrast(film, film, nowhere, lung).values())
    assert math.isnan(measure_vessels(film, film, bone, nowhere)["energy_ratio"])
    flat = np.full_like(film, 0.5)
    assert math.isnan(measure_bone_contrast(flat, flat, bone, lung)["residual"])  # nothing to suppress
    nodule = draw_disc(40, 48, 44, 20, 3)  # outside the lungs
    assert all(math.isnan(value) for value in measure_nodules(film, film, [nodule], lung).values())
    hidden = draw_disc(40, 48, 20, 20, 3)
    assert math.isnan(measure_nodules(flat, film, [hidden], lung)["contrast_ratio"])


def test_a_film_is_scored_by_what_is_known_of_it() -> None:
    case = make_case(1)

    def names(**known: Any) -> set[str]:
        return {name.split("_")[0] for name in score_suppression(case.film, case.truth, **known)}

    assert names() == set()
    assert names(truth_HW=case.truth) == {"psnr", "rmse", "ssim", "ms", "bsr", "rib"}
    assert names(clavicle_HW=case.lung) == {"clavicle"}
    assert names(nodules=[case.nodule], lung_HW=case.lung) == {"nodule"}
    assert names(bone_HW=case.bone_cm, lung_HW=case.lung) == {"rib", "vessel"}


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    case = make_case(1)
    for known, words in (
        ({"lung_HW": case.lung[:100]}, "mask of lungs is bool"),
        ({"lung_HW": case.lung.astype(np.uint8)}, "mask of lungs is bool"),
        ({"clavicle_HW": case.lung.astype(np.float32)}, "mask of clavicles is bool"),
        ({"bone_HW": case.bone_cm.astype(np.uint8)}, "bone is bool or a float"),
        ({"bone_HW": case.bone_cm * np.nan}, "NaN or infinity"),
        ({"nodules": [case.nodule & False]}, "nodule is empty"),
        ({"nodules": [case.nodule[:9]]}, "mask of a nodule is bool"),
        ({"truth_HW": case.truth[:, :9]}, "cannot be compared"),
        ({"truth_HW": (255 * case.truth).astype(np.uint8)}, "films must be floats"),
    ):
        with pytest.raises(UsageError, match=words):
            score_suppression(case.film, case.truth, **known)


# ---------------------------------------------------------------- means over films


def test_a_mean_leaves_out_what_is_unknown_and_says_so() -> None:
    films = [
        {"psnr": 30.0, "bsr": 0.5},
        {"psnr": math.inf},
        {"psnr": 34.0, "bsr": math.nan},
        {"psnr": 35.0, "bsr": 0.7},
    ]
    summary = summarise_films(films, ["a", "b", "c", "c"], seed=1)
    assert summary["psnr"].value == pytest.approx(33) and summary["psnr"].films == 3 and summary["psnr"].groups == 2
    assert summary["bsr"].value == pytest.approx(0.6) and summary["bsr"].films == 2
    assert summary["psnr"].replicates == 2000 and summary["psnr"].undefined > 0  # b, b, b has no value
    assert summary["psnr"].low <= 33 <= summary["psnr"].high
    assert summary == summarise_films(films, ["a", "b", "c", "c"], seed=1)


def test_the_interval_resamples_groups_slowly_too() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 3)
    value = rng.normal(30, 1, 36) + rng.normal(0, 3, 12)[groups]
    summary = summarise_films([{"psnr": one} for one in value], groups, replicates=4000)["psnr"]
    means = []
    for _ in range(4000):
        drawn = rng.integers(12, size=12)
        means.append(np.mean(np.concatenate([value[groups == group] for group in drawn])))
    assert (summary.low, summary.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.15)
    films = summarise_films([{"psnr": one} for one in value], np.arange(36))["psnr"]
    assert films.high - films.low < 0.8 * (summary.high - summary.low)


def test_two_networks_are_compared_on_the_same_films() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(30, 4, 40)
    first, second = ([{"psnr": one} for one in hard + gain + rng.normal(0, 0.3, 40)] for gain in (1.0, 0.0))
    gap = paired_bootstrap_draws_by_patient(
        np.arange(40), [build_mean_statistic(first)], [build_mean_statistic(second)], 1000
    )["psnr"]
    assert gap.value == pytest.approx(1, abs=0.2) and gap.low > 0.7 and gap.p < 0.01


def test_groups_must_fit_the_films() -> None:
    with pytest.raises(UsageError, match="2 groups do not fit the scores of 1 films"):
        summarise_films([{"psnr": 30.0}], ["a", "b"])


# ---------------------------------------------------------------- real films


@pytest.mark.real_films
def test_real_pairs_without_bone_have_no_ribs_and_keep_their_vessels(real_films: Path) -> None:
    """JPCLN139 and its BSE-JSRT target, with the masks of JSRT; and a dual-energy pair without any mask."""
    pairs, jsrt = real_films / "bone_pairs", real_films / "jsrt"
    film, truth = (1 - read_film(pairs / part / "JPCLN139_1.png") for part in ("source", "target"))
    fields = cv2.imread(str(jsrt / "masks" / "JPCLN139.png"), cv2.IMREAD_GRAYSCALE)
    case = pd.read_csv(jsrt / "cases.csv", index_col="case").loc["JPCLN139"]
    nodule = draw_disc(512, 512, float(case["x_512"]), float(case["y_512"]), float(case["radius_512"]))
    known = {"lung_HW": (fields & 3) > 0, "clavicle_HW": (fields & 24) > 0, "nodules": [nodule]}
    nothing, target = (score_suppression(film, result, truth, **known) for result in (film, truth))
    assert nothing["rib_contrast_before"] > 0.03 and nothing["clavicle_contrast_before"] > 0.02
    assert abs(target["rib_residual"]) < 0.25 and abs(target["clavicle_residual"]) < 0.35
    assert target["nodule_contrast_ratio"] == pytest.approx(1, abs=0.1)
    assert 0.6 < target["vessel_energy_ratio"] < 1.2
    assert nothing["psnr"] == pytest.approx(29.585, abs=0.01)

    film, truth = (read_film(pairs / part / "bone_suppression_001.png") for part in ("source", "target"))
    bone = find_bone(film, truth)
    assert 0.05 < bone.mean() < 0.25
    assert score_suppression(film, truth, truth)["rib_residual_from_truth"] == 0


@pytest.mark.real_films
def test_clavicles_of_real_films_are_brighter_than_the_lung_beside_them(real_films: Path) -> None:
    table = pd.read_csv(real_films / "jsrt" / "cases.csv").query("low_contrast == 0").head(12)
    brighter = []
    for row in table.itertuples():
        film = read_film(real_films / "jsrt" / str(row.file))
        fields = cv2.imread(str(real_films / "jsrt" / "masks" / f"{row.case}.png"), cv2.IMREAD_GRAYSCALE)
        score = score_suppression(film, film, lung_HW=(fields & 3) > 0, clavicle_HW=(fields & 24) > 0)
        brighter.append(score["clavicle_contrast_before"])
    assert np.mean(np.array(brighter) > 0.01) >= 0.75  # beside the others lie ribs as bright
    assert np.mean(brighter) > 0.01


def read_film(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / np.float32(255)
