import csv
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import (
    CLASSES,
    MAX_PIXEL,
    Exposure,
    PhantomFilm,
    compute_attenuation,
    draw_anatomy,
    draw_exposure,
    render_film,
    write_phantom_films,
)

SIZE = 128


def draw_clean_exposure(seed: int) -> Exposure:
    """An exposure whose pixels follow from the two line integrals and the scatter alone."""
    bare = (0.0, 0.0, 0.0, 0.0)
    return replace(draw_exposure(seed), noise=False, marker=False, shutter=bare, blur_mm=0.0)


def render_clean(patient: int, film: int, finding: str = "normal", size: int = SIZE) -> PhantomFilm:
    return render_film(draw_anatomy(patient), draw_clean_exposure(film), finding, size, with_bone_free=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]], int]:
    ticks: list[None] = []
    table = write_phantom_films(tmp_path_factory.mktemp("films"), 4, 5, 3, 96, on_film=lambda: ticks.append(None))
    with table.open(newline="", encoding="utf-8") as file:
        return table.parent, list(csv.DictReader(file)), len(ticks)


@pytest.mark.parametrize("finding", CLASSES)
def test_the_same_seeds_give_the_same_film_and_another_seed_another(finding: str) -> None:
    first, again, other = (render_film(draw_anatomy(5), draw_exposure(s), finding, SIZE) for s in (8, 8, 9))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.finding_mask, again.finding_mask)
    assert not np.array_equal(first.pixels, other.pixels)


def test_films_have_twelve_bits_and_use_most_of_them() -> None:
    for seed in range(4):
        film = render_film(draw_anatomy(seed), draw_exposure(seed), CLASSES[seed], SIZE)
        assert film.pixels.shape == (SIZE, SIZE) and film.pixels.dtype == np.uint16
        assert film.pixels.max() <= MAX_PIXEL
        assert np.ptp(film.pixels) > 0.7 * MAX_PIXEL


def test_pixels_equal_beer_lambert_computed_one_ray_at_a_time() -> None:
    film, exposure = render_clean(2, 4), draw_clean_exposure(4)
    mu_soft, mu_bone = compute_attenuation(exposure.kvp)
    low, high = film.log_range
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, SIZE, (300, 2)):
        light = math.exp(-mu_soft * float(film.soft_cm[row, column]) - mu_bone * float(film.bone_cm[row, column]))
        light += float(film.scatter[row, column])
        expected = min(max((-math.log(light) - low) / (high - low), 0), 1) * MAX_PIXEL
        assert abs(float(film.pixels[row, column]) - expected) <= 1


def test_without_scatter_more_attenuation_is_never_darker() -> None:
    exposure = replace(draw_clean_exposure(4), scatter=0.0)
    film = render_film(draw_anatomy(2), exposure, "normal", SIZE)
    mu_soft, mu_bone = compute_attenuation(exposure.kvp)
    order = np.argsort((mu_soft * film.soft_cm.astype(float) + mu_bone * film.bone_cm.astype(float)).ravel())
    grey = film.pixels.ravel()[order].astype(int)
    assert np.diff(grey).min() >= -1
    assert grey[-1] - grey[0] > 0.7 * MAX_PIXEL


def test_bone_attenuates_more_than_soft_tissue_and_less_at_a_higher_voltage() -> None:
    soft_low, bone_low = compute_attenuation(95)
    soft_high, bone_high = compute_attenuation(125)
    assert bone_low > soft_low and bone_high > soft_high
    assert soft_high < soft_low and bone_high / soft_high < bone_low / soft_low


def test_two_films_of_a_patient_share_their_bones_and_two_patients_do_not() -> None:
    upright = [replace(draw_clean_exposure(s), rotation=0.0, shift=(0.0, 0.0), magnification=1.0) for s in (1, 2)]
    bones = [[render_film(draw_anatomy(p), e, "normal", SIZE).bone_cm.ravel() for e in upright] for p in (1, 2, 3)]
    within = [np.corrcoef(films)[0, 1] for films in bones]
    between = [np.corrcoef(bones[a][0], bones[b][1])[0, 1] for a in range(3) for b in range(3) if a != b]
    assert min(within) > max(between) + 0.05


def test_removing_bone_changes_only_rays_through_bone_and_never_brightens() -> None:
    film = render_clean(6, 7)
    assert film.without_bone is not None
    difference = film.pixels.astype(int) - film.without_bone.astype(int)
    assert difference.min() >= 0
    assert not difference[film.bone_cm == 0].any()
    assert (difference[film.bone_cm > 0.2] > 0).mean() > 0.6
    assert (film.bone_cm == 0).mean() > 0.05


def test_the_bone_free_film_keeps_the_noise_of_the_film() -> None:
    exposure = replace(draw_exposure(7), blur_mm=0.0)
    film = render_film(draw_anatomy(6), exposure, "normal", SIZE, with_bone_free=True)
    assert film.without_bone is not None
    no_bone = film.bone_cm == 0
    assert np.array_equal(film.pixels[no_bone], film.without_bone[no_bone])
    assert render_film(draw_anatomy(6), exposure, "normal", SIZE).without_bone is None


def test_noise_has_the_variance_of_counted_photons() -> None:
    exposure = replace(draw_clean_exposure(3), photons_per_cm2=1e6)
    anatomy = draw_anatomy(3)
    quiet = render_film(anatomy, exposure, "normal", 256)
    noisy = render_film(anatomy, replace(exposure, noise=True), "normal", 256)
    low, high = quiet.log_range
    inside = (quiet.pixels > 400) & (quiet.pixels < 2400)
    log_light = low + quiet.pixels[inside].astype(float) / MAX_PIXEL * (high - low)
    counts = np.exp(-log_light) * 1e6 * (quiet.spacing_mm * exposure.magnification / 10) ** 2
    error = (noisy.pixels[inside].astype(float) - quiet.pixels[inside]) / MAX_PIXEL * (high - low)
    assert counts.min() > 100
    assert abs(np.mean(error**2 * counts) - 1) < 0.05


@pytest.mark.parametrize("seed", range(10))
def test_a_nodule_mask_has_the_stated_diameter_and_lies_in_the_lung(seed: int) -> None:
    film = render_film(draw_anatomy(seed), draw_exposure(seed + 50), "nodule", 384)
    assert film.diameter_mm is not None and film.nodule_centre_px is not None
    assert 5 <= film.diameter_mm <= 30
    measured = 2 * math.sqrt(film.finding_mask.sum() / math.pi) * film.spacing_mm
    assert abs(measured - film.diameter_mm) < 0.08 * film.diameter_mm + 0.5 * film.spacing_mm
    assert ndimage.label(film.finding_mask)[1] == 1
    assert (film.finding_mask & ~film.lung_mask).sum() == 0
    row, column = ndimage.center_of_mass(film.finding_mask)
    assert math.dist((column, row), film.nodule_centre_px) < 1 + 0.1 * film.diameter_mm / film.spacing_mm


@pytest.mark.parametrize("finding", CLASSES[1:])
@pytest.mark.parametrize("seed", range(3))
def test_a_finding_changes_tissue_and_pixels_in_its_mask_with_the_right_sign(finding: str, seed: int) -> None:
    normal, ill = render_clean(seed, seed + 30), render_clean(seed, seed + 30, finding)
    mask = ill.finding_mask
    assert mask.sum() >= 4 and mask.mean() < 0.4
    added = ill.soft_cm[mask] - normal.soft_cm[mask]
    brighter = ill.pixels[mask].astype(float) - normal.pixels[mask]
    sign = -1 if finding == "pneumothorax" else 1
    assert sign * added.mean() > 0.03
    assert sign * brighter.mean() > 5
    assert np.array_equal(ill.bone_cm, normal.bone_cm)


def test_a_normal_film_has_an_empty_mask_and_no_nodule() -> None:
    film = render_film(draw_anatomy(1), draw_exposure(1), "normal", SIZE)
    assert not film.finding_mask.any()
    assert film.nodule_centre_px is None and film.diameter_mm is None


def test_lungs_are_darker_than_mediastinum_and_abdomen() -> None:
    for seed in range(5):
        film = render_clean(seed, seed)
        lung = np.median(film.pixels[film.lung_mask])
        centre = slice(round(0.47 * SIZE), round(0.53 * SIZE))
        assert lung + 800 < np.median(film.pixels[round(0.45 * SIZE) : round(0.6 * SIZE), centre])
        assert lung + 800 < np.median(film.pixels[round(0.88 * SIZE) : round(0.95 * SIZE), centre])
        assert 0.15 < film.lung_mask.mean() < 0.5


def test_unusable_requests_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use one of normal, nodule"):
        render_film(draw_anatomy(1), draw_exposure(1), "fracture")
    with pytest.raises(UsageError, match="at least 64"):
        render_film(draw_anatomy(1), draw_exposure(1), "normal", 32)
    with pytest.raises(UsageError, match="at least 64"):
        write_phantom_films(tmp_path / "a", 1, 1, 0, 32)
    with pytest.raises(UsageError, match="both must be 1 or more"):
        write_phantom_films(tmp_path / "a", 0, 1, 0)
    assert not (tmp_path / "a").exists()


def test_written_classes_are_balanced_and_only_nodules_have_a_diameter(
    written: tuple[Path, list[dict[str, str]], int],
) -> None:
    folder, rows, ticks = written
    assert ticks == len(rows) == 20
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1
    assert Counter(row["patient"] for row in rows) == dict.fromkeys((f"PHANTOM{p:04d}" for p in range(4)), 5)
    for row in rows:
        assert (folder / row["file"]).is_file()
        assert (row["diameter_mm"] != "") == (row["label"] == "nodule")


def test_written_dicom_says_what_it_is_and_reads_back_in_both_polarities(
    written: tuple[Path, list[dict[str, str]], int],
) -> None:
    folder, rows, _ = written
    photometrics, syntaxes, uids, persons = set(), set(), set(), set()
    for row in rows:
        ds = pydicom.dcmread(folder / row["file"])
        pixels = ds.pixel_array.astype(int)
        assert pixels.shape == (96, 96) and pixels.min() >= 0 and pixels.max() <= MAX_PIXEL
        if ds.PhotometricInterpretation == "MONOCHROME1":
            pixels = MAX_PIXEL - pixels
        assert np.median(pixels[80:90, 44:52]) > np.median(pixels[30:60, 20:76]) + 300
        assert ds.BitsStored == 12 and ds.HighBit == 11 and ds.Modality == "DX" and ds.ViewPosition == "PA"
        assert ds.ImageComments == "SYNTHETIC" and "SYNTHETIC" in ds.Manufacturer
        assert ds.PatientID == row["patient"]
        assert 2.0 < float(ds.PixelSpacing[0]) < 5.0
        photometrics.add(ds.PhotometricInterpretation)
        syntaxes.add(ds.file_meta.TransferSyntaxUID.name)
        uids.add(ds.SOPInstanceUID)
        persons.add((ds.PatientID, ds.PatientAge, ds.PatientSex))
    assert photometrics == {"MONOCHROME1", "MONOCHROME2"}
    assert len(syntaxes) == 2 and any("JPEG 2000" in name for name in syntaxes)
    assert len(uids) == len(rows) and len(persons) == 4


def test_files_do_not_depend_on_who_writes_them(
    written: tuple[Path, list[dict[str, str]], int], tmp_path: Path
) -> None:
    folder, rows, _ = written
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        table = write_phantom_films(tmp_path, 4, 5, 3, 96, executor=pool)
    assert table.read_bytes() == (folder / "labels.csv").read_bytes()
    assert all((tmp_path / row["file"]).read_bytes() == (folder / row["file"]).read_bytes() for row in rows)
    other = write_phantom_films(tmp_path / "other", 1, 1, 4, 96).parent / rows[0]["file"]
    assert other.read_bytes() != (folder / rows[0]["file"]).read_bytes()
