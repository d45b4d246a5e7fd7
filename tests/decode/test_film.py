import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import simplejpeg
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from chess_cxr.decode.film import DecodedFilm, Undecodable, decode_film
from dicom_files import NUMBER, write_dicom
from film_files import make_grey, refuse, stretch_slowly, window_slowly, write_image

UPRIGHT = {  # EXIF 2.32, 4.6.5.1.6
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# ---------------------------------------------------------------- images


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_8_bit_image_is_reproduced_to_the_bit(tmp_path: Path, kind: str) -> None:
    grey = make_grey()
    film = decode_film(write_image(tmp_path / "film", Image.fromarray(grey), kind))
    assert film.pixels.dtype == np.float32
    assert np.array_equal(film.pixels, grey.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_has_the_pixels_that_pillow_reads_too(tmp_path: Path, mode: str) -> None:
    path = write_image(tmp_path / "film", Image.fromarray(make_grey()).convert(mode), "JPEG", quality=90)
    theirs = np.asarray(Image.open(path).convert("L"))
    assert np.abs(decode_film(path).pixels * 255 - theirs).max() <= (0 if mode == "L" else 1.001)


def test_a_webp_is_read(tmp_path: Path) -> None:
    grey = make_grey()
    path = write_image(tmp_path / "film", Image.fromarray(grey).convert("RGB"), "WEBP", lossless=True)
    assert np.array_equal(np.rint(decode_film(path).pixels * 255), grey)


@pytest.mark.parametrize("top", [255 * 4, 4080, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_16_bit_image_is_stretched_between_its_percentiles_and_not_clipped_to_white(
    tmp_path: Path, top: int, kind: str
) -> None:
    stored = make_grey(top=top)
    pixels = decode_film(write_image(tmp_path / "film", Image.fromarray(stored), kind)).pixels
    np.testing.assert_allclose(pixels, stretch_slowly(stored), atol=1e-6)
    assert (pixels == 1).mean() < 0.02


def test_a_16_bit_tiff_in_which_zero_is_white_is_turned_bone_bright(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    path = write_image(tmp_path / "film", Image.fromarray(stored), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(decode_film(path).pixels, 1 - stretch_slowly(stored), atol=1e-6)


def test_a_float_tiff_is_stretched_and_what_is_not_a_number_becomes_air(tmp_path: Path) -> None:
    stored = make_grey(top=4000).astype(np.float32)
    stored[:4, :4] = np.nan
    pixels = decode_film(write_image(tmp_path / "film", Image.fromarray(stored), "TIFF")).pixels
    assert not pixels[:4, :4].any()
    assert np.isfinite(pixels).all()
    assert pixels[-1, -1] == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_turned_image_comes_out_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(tmp_path / "film", Image.fromarray(make_grey()), kind, exif=exif)
    # Pillow's exif_transpose cannot be the oracle: it garbles a TIFF that is not loaded yet.
    stored = Image.open(path) if kind == "JPEG" else Image.fromarray(make_grey())
    upright = np.asarray(stored.transpose(UPRIGHT[orientation]) if orientation > 1 else stored)
    assert np.array_equal(np.rint(decode_film(path).pixels * 255), upright)


def test_a_cmyk_jpeg_is_read_as_its_luminance(tmp_path: Path) -> None:
    grey = make_grey()
    path = write_image(tmp_path / "film", Image.fromarray(grey).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(decode_film(path).pixels * 255 - grey).mean() < 2


def test_a_palette_image_is_read_by_its_colours(tmp_path: Path) -> None:
    grey = make_grey()
    image = Image.fromarray((255 - grey).astype(np.uint8)).convert("P")
    image.putpalette([255 - i // 3 for i in range(768)])
    assert np.array_equal(np.rint(decode_film(write_image(tmp_path / "film", image, "PNG")).pixels * 255), grey)


def test_half_transparent_pixels_keep_their_grey_and_fully_transparent_ones_are_air(tmp_path: Path) -> None:
    grey = make_grey()
    alpha = np.full_like(grey, 128)
    alpha[:, :10] = 0
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    pixels = np.rint(decode_film(write_image(tmp_path / "film", image, "PNG")).pixels * 255)
    assert np.array_equal(pixels[:, 10:], grey[:, 10:])
    assert not pixels[:, :10].any()


def test_the_content_and_not_the_extension_says_what_a_file_is(tmp_path: Path) -> None:
    grey = make_grey()
    as_png = write_image(tmp_path / "film.jpg", Image.fromarray(grey), "PNG")
    as_dicom = write_dicom(tmp_path / "film.png", grey)
    assert np.array_equal(decode_film(as_png).pixels, decode_film(as_dicom).pixels)


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -100), (-1, 4000)])
def test_a_window_is_applied_to_the_rescaled_values_as_the_standard_says(
    tmp_path: Path, function: str, slope: float, intercept: float
) -> None:
    stored = make_grey(top=4000)
    center, width = 900.0, 700.0
    path = write_dicom(
        tmp_path / "film",
        stored,
        WindowCenter=[center, 1],
        WindowWidth=[width, 2],
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    slow = [[window_slowly(v * slope + intercept, center, width, function) for v in row] for row in stored.tolist()]
    np.testing.assert_allclose(decode_film(path).pixels, slow, atol=1e-6)


@pytest.mark.parametrize("window", [(0.0, 0.0), (100.0, -5.0), (None, 300.0)])
def test_without_a_window_that_works_deep_pixels_are_stretched_between_their_percentiles(
    tmp_path: Path, window: tuple[float | None, float]
) -> None:
    stored = make_grey(top=4000)
    path = write_dicom(tmp_path / "film", stored, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_allclose(decode_film(path).pixels, stretch_slowly(stored), atol=1e-6)


def test_eight_bits_without_a_window_are_kept_as_they_are(tmp_path: Path) -> None:
    grey = make_grey()
    assert np.array_equal(decode_film(write_dicom(tmp_path / "film", grey)).pixels, grey / np.float32(255))


def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    bright, dark = (
        decode_film(
            write_dicom(tmp_path / kind, stored, PhotometricInterpretation=kind, WindowCenter=2e3, WindowWidth=3e3)
        )
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    np.testing.assert_allclose(dark.pixels, 1 - bright.pixels, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "padding", [{"PixelPaddingValue": 4095}, {"PixelPaddingValue": 4090, "PixelPaddingRangeLimit": 4095}]
)
def test_padding_becomes_air_and_has_no_say_in_the_percentiles(
    tmp_path: Path, photometric: str, padding: dict[str, int]
) -> None:
    inside = make_grey(top=2000)
    stored = np.full((48, 96), 4095, dtype=np.uint16)
    stored[:, :64] = inside
    path = write_dicom(tmp_path / "film", stored, PhotometricInterpretation=photometric, **padding)
    pixels = decode_film(path).pixels
    expected = stretch_slowly(inside) if photometric == "MONOCHROME2" else 1 - stretch_slowly(inside)
    assert not pixels[:, 64:].any()
    np.testing.assert_allclose(pixels[:, :64], expected, atol=1e-6)


def test_signed_pixels_are_read_with_their_sign(tmp_path: Path) -> None:
    stored = make_grey(top=3000).astype(np.int16) - 1500
    pixels = decode_film(write_dicom(tmp_path / "film", stored)).pixels
    np.testing.assert_allclose(pixels, stretch_slowly(stored), atol=1e-6)


def test_dirt_above_the_stored_bits_is_ignored(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    dirty = stored.copy()
    dirty[::3, ::5] |= 0xA000
    clean, dirt = (decode_film(write_dicom(tmp_path / str(i), s)) for i, s in enumerate((stored, dirty)))
    assert np.array_equal(clean.pixels, dirt.pixels)


def test_a_modality_lookup_table_is_applied(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.add_new("LUTData", "US", [(i * i) // 256 for i in range(4096)])
    path = write_dicom(tmp_path / "film", stored, ModalityLUTSequence=[table])
    expected = stretch_slowly(stored.astype(np.int64) ** 2 // 256)
    np.testing.assert_allclose(decode_film(path).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("falling", [False, True])
def test_a_voi_lookup_table_is_applied_on_the_range_that_it_uses(tmp_path: Path, bits: int, falling: bool) -> None:
    stored, first, entries = make_grey(top=4000), 300, 3000
    entry = [round((i / (entries - 1)) ** 2 * (2**bits - 1)) for i in range(entries)]
    entry = entry[::-1] if falling else entry
    table = Dataset()
    table.LUTDescriptor = [entries, first, bits]
    table.add_new("LUTData", "US", entry)
    path = write_dicom(tmp_path / "film", stored, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    slow = [[entry[min(max(v - first, 0), entries - 1)] / max(entry) for v in row] for row in stored.tolist()]
    np.testing.assert_allclose(decode_film(path).pixels, slow, atol=1e-6)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    grey = make_grey()
    rgb = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    path = write_dicom(
        tmp_path / "film", rgb, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    expected = (rgb * [0.299, 0.587, 0.114]).sum(-1) / 255
    np.testing.assert_allclose(decode_film(path).pixels, expected, atol=1e-6)


def test_the_first_of_many_frames_is_taken(tmp_path: Path) -> None:
    first = make_grey()
    path = write_dicom(tmp_path / "film", first, NumberOfFrames=2, PixelData=first.tobytes() + first[::-1].tobytes())
    assert np.array_equal(decode_film(path).pixels, first / np.float32(255))


def test_a_run_length_encoded_file_is_read(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    plain = write_dicom(tmp_path / "plain", stored)
    dataset = pydicom.dcmread(plain)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle")
    assert np.array_equal(decode_film(tmp_path / "rle").pixels, decode_film(plain).pixels)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_without_preamble_and_meta_header_is_read(tmp_path: Path, syntax: str) -> None:
    stored = make_grey(top=4000)
    whole = write_dicom(tmp_path / "whole", stored, syntax=syntax)
    dataset = pydicom.dcmread(whole)
    del dataset.file_meta
    dataset.preamble = None
    bare = tmp_path / "bare"
    dataset.save_as(bare, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=False)
    assert bare.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(decode_film(bare).pixels, decode_film(whole).pixels)


def test_a_big_endian_file_without_preamble_and_one_without_only_the_preamble_are_read(tmp_path: Path) -> None:
    stored = make_grey(top=4000)
    big = write_dicom(tmp_path / "big", stored, syntax=ExplicitVRBigEndian)
    expected = decode_film(big).pixels
    content = big.read_bytes()
    (tmp_path / "prefix").write_bytes(content[128:])
    (tmp_path / "bare").write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    for name in ("prefix", "bare"):
        assert np.array_equal(decode_film(tmp_path / name).pixels, expected)


def test_a_film_is_found_by_its_url_too(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a film", make_grey())
    assert np.array_equal(decode_film(path.as_uri()).pixels, decode_film(path).pixels)


def test_the_header_gives_the_original_identifiers_and_the_spacing(tmp_path: Path) -> None:
    film = decode_film(
        write_dicom(
            tmp_path / "film",
            make_grey(),
            PatientAge="018M",
            PatientSex="F",
            ViewPosition="LL",
            PixelSpacing=[0.2, 0.2],
            ImagerPixelSpacing=[0.3, 0.3],
        )
    )
    header = film.header
    assert (header.patient, header.study, header.uid) == (NUMBER, "1.2.3", "1.2.3.4")
    assert (header.age_years, header.sex, header.view, film.spacing_mm) == (1.5, "F", "LATERAL", 0.2)


@pytest.mark.parametrize("spacing", [None, [0, 0], [0.1, 0.2]])
def test_a_spacing_that_says_nothing_is_unknown(tmp_path: Path, spacing: list[float] | None) -> None:
    assert math.isnan(decode_film(write_dicom(tmp_path / "film", make_grey(), PixelSpacing=spacing)).spacing_mm)


# ---------------------------------------------------------------- refusals


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_truncated_image_is_refused(tmp_path: Path, kind: str, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = write_image(tmp_path / "Xfilm", Image.fromarray(noise).convert(mode), kind)
    refuse(cut(path, 0.6))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_dicom_file_is_refused(tmp_path: Path, share: float) -> None:
    refuse(cut(write_dicom(tmp_path / "Xfilm", make_grey(top=4000)), share))


def test_a_jpeg_that_ends_early_inside_dicom_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(noise, colorspace="GRAY")
    whole, broken = (encapsulate([content]) for content in (jpeg, jpeg[: len(jpeg) // 2]))
    read = write_dicom(tmp_path / "Xwhole", noise[..., 0], syntax=JPEGBaseline8Bit, PixelData=whole)
    # ISO/IEC 10918-2 leaves decoders one grey level apart.
    theirs = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[..., 0]
    np.testing.assert_allclose(decode_film(read).pixels * 255, theirs, atol=1.001)
    refuse(write_dicom(tmp_path / "Xbroken", noise[..., 0], syntax=JPEGBaseline8Bit, PixelData=broken))


def test_a_compressed_frame_of_another_size_than_the_header_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    jpeg = bytearray(simplejpeg.encode_jpeg(make_grey(64, 64)[..., None], colorspace="GRAY"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    path = write_dicom(
        tmp_path / "Xfilm", make_grey(64, 64), syntax=JPEGBaseline8Bit, PixelData=encapsulate([bytes(jpeg)])
    )
    assert "differ in size" in refuse(path)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [({"Rows": 12000, "Columns": 12000}, "more than 120 megapixels"), ({"NumberOfFrames": 1_000_000}, "end early")],
)
def test_a_dicom_file_that_claims_too_many_pixels_is_refused(
    tmp_path: Path, shape: dict[str, int], reason: str
) -> None:
    assert reason in refuse(write_dicom(tmp_path / "Xfilm", make_grey(), **shape))


@pytest.mark.parametrize(
    ("shape", "reason"), [((31, 64), "less than 32"), ((32, 32 * 8 + 1), "more than 8 times"), ((1, 1), "less than 32")]
)
def test_a_film_that_is_too_small_or_too_narrow_is_refused(tmp_path: Path, shape: tuple[int, int], reason: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert reason in refuse(write_image(tmp_path / "Xpng", Image.fromarray(noise), "PNG"))
    assert reason in refuse(write_dicom(tmp_path / "Xdcm", noise))


@pytest.mark.parametrize("value", [0, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_blank_film_is_refused(tmp_path: Path, value: int, dtype: type) -> None:
    stored = np.full((64, 64), value, dtype=dtype)
    stored[0, 0] = 3  # one bad pixel does not make a film
    assert refuse(write_image(tmp_path / "Xpng", Image.fromarray(stored), "PNG")) == "blank image"
    assert refuse(write_dicom(tmp_path / "Xdcm", stored)) == "blank image"


def test_a_film_that_its_own_window_makes_blank_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "Xfilm", make_grey(top=2000), WindowCenter=4000, WindowWidth=10)
    assert refuse(path) == "blank image"


def test_a_film_that_is_all_padding_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "Xfilm", make_grey(top=2000), PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    assert refuse(path) == "blank image"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not a DICOM"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged"),
        (bytes(128) + b"DICM" + bytes(200), "without pixel data"),
    ],
)
def test_what_is_no_film_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "Xfile").write_bytes(content)
    assert reason in refuse(tmp_path / "Xfile")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert refuse(tmp_path / "Xabsent") == "file not found"
    (tmp_path / "Xfolder").mkdir()
    assert refuse(tmp_path / "Xfolder") == "not a regular file"


def test_a_refusal_is_one_of_the_errors_that_users_see() -> None:
    assert Undecodable("reason").exit_code == 1


# ---------------------------------------------------------------- real files

READ_ALL = """
import csv, json, resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from chess_cxr.decode.film import Undecodable, decode_film
folder, results = Path(sys.argv[1]), {}
with open(folder / "manifest.csv", encoding="utf-8") as manifest:
    rows = list(csv.DictReader(manifest))
for row in rows:
    started = time.process_time()
    try:
        film = decode_film(folder / row["file"])
        results[row["file"]] = ["read", float(film.pixels.min()), float(film.pixels.max()), float(film.pixels.mean())]
    except Undecodable as error:
        results[row["file"]] = ["reject", str(error)]
    results[row["file"]].append(time.process_time() - started)
print(json.dumps(results))
"""
MAY = {
    "reject": {"reject"},
    "reject without allocating": {"reject"},
    "reject or warn": {"reject"},
    "flag": {"reject"},
    "reject or pad": {"reject"},
    "read": {"read"},
    "read upright": {"read"},
    "read (out of domain)": {"read"},
    "read/flag": {"read"},
    "reject or read garbage": {"reject", "read"},
    "reject (or read after repair)": {"reject", "read"},
    "no crash; reject or read": {"reject", "read"},
    "reject or read, no crash": {"reject", "read"},
    "?": {"reject", "read"},
}


@pytest.mark.real_films
def test_every_nasty_file_ends_as_its_manifest_expects(real_films: Path) -> None:
    folder = real_films / "nasty"
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_ALL, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    results = json.loads(child.stdout)
    with open(folder / "manifest.csv", encoding="utf-8") as manifest:
        expected = {row["file"]: row["expect"] for row in csv.DictReader(manifest)}
    assert results.keys() == expected.keys()
    assert len(expected) == 131
    wrong = {file: results[file] for file, expect in expected.items() if results[file][0] not in MAY[expect]}
    assert not wrong
    assert max(result[-1] for result in results.values()) < 10
    for file, result in results.items():
        if result[0] == "read":
            assert 0 <= result[1] < result[2] <= 1, file


def compute_means(film: DecodedFilm) -> tuple[float, float]:
    """Mean grey of a patch of the right upper lung and of the mediastinum, in fractions of the film."""
    height, width = film.pixels.shape
    rows = slice(round(0.2 * height), round(0.35 * height))
    lung = film.pixels[rows, round(0.2 * width) : round(0.35 * width)]
    mediastinum = film.pixels[rows, round(0.47 * width) : round(0.53 * width)]
    return float(lung.mean()), float(mediastinum.mean())


@pytest.mark.real_films
@pytest.mark.parametrize("name", ["966_fixed", "RG1_J2KI", "RG1_JLSN", "siim_850819"])
def test_lungs_of_real_dicom_films_are_darker_than_the_mediastinum(real_films: Path, name: str) -> None:
    film = decode_film(real_films / "dicom" / f"{name}.dcm")
    lung, mediastinum = compute_means(film)
    assert lung < mediastinum - 0.1


@pytest.mark.real_films
def test_every_real_dicom_file_is_read_whole_and_reduced(real_films: Path) -> None:
    paths = sorted((real_films / "dicom").glob("*.dcm"))
    assert len(paths) == 8
    for path in paths:
        whole, reduced = decode_film(path), decode_film(path, at_least=256)
        assert whole.pixels.shape == (reduced.full_height, reduced.full_width)
        assert reduced.pixels.mean() == pytest.approx(whole.pixels.mean(), abs=0.005)
        assert whole.header.modality in ("CR", "DX")


@pytest.mark.real_films
def test_two_compressions_of_one_film_agree(real_films: Path) -> None:
    folder = real_films / "dicom"
    lossless, also = (decode_film(folder / name).pixels for name in ("RG2_JPLL.dcm", "RG2_JLSL.dcm"))
    lossy, near = (decode_film(folder / name).pixels for name in ("RG1_J2KI.dcm", "RG1_JLSN.dcm"))
    assert np.array_equal(lossless, also)
    assert np.abs(lossy - near).mean() < 0.01


@pytest.mark.real_films
def test_a_tag_changed_to_monochrome1_inverts_the_film(real_films: Path) -> None:
    folder = real_films / "dicom"
    true, fake = (decode_film(folder / f"siim_850819{end}.dcm").pixels for end in ("", "_fake_MONOCHROME1"))
    np.testing.assert_allclose(fake, 1 - true, atol=1e-6)


@pytest.mark.real_films
def test_a_turned_photograph_of_a_real_film_stands_upright(real_films: Path) -> None:
    path = real_films / "nasty" / "image" / "exif_rotated.jpg"
    stored = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    assert np.array_equal(np.rint(decode_film(path).pixels * 255), np.rot90(stored, -1))
