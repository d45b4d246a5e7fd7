"""Films that the codec itself may shrink, against whole ones that are averaged."""

import math
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from chess_cxr.decode.film import DecodedFilm, decode_film
from dicom_files import write_dicom

HEIGHT, WIDTH = 1030, 903


@pytest.fixture(scope="module")
def stored(real_films: Path) -> np.ndarray:
    """A real film enlarged to 1030 x 903 pixels of 12 bits, with noise."""
    grey = np.asarray(Image.open(real_films / "jsrt" / "images" / "JPCLN002.png")).astype(np.float32) * 15.9
    large = cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 6, large.shape)
    return np.clip(large + noise, 0, 4095).astype(np.uint16)


def encode_j2k(stored: np.ndarray, reversible: bool = True) -> bytes:
    level = 0 if reversible else 50
    bits = None if stored.dtype == np.int16 else 12
    return imagecodecs.jpeg2k_encode(stored, codecformat="j2k", reversible=reversible, level=level, bitspersample=bits)


def write_film(path: Path, stored: np.ndarray, kind: str, **tags: object) -> Path:
    tags = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelSpacing": [0.2, 0.2]} | tags
    if kind == "JPEG":
        path.write_bytes(simplejpeg.encode_jpeg((stored >> 4).astype(np.uint8)[..., None], 92, "GRAY"))
        return path
    if kind == "PNG":
        path.write_bytes(imagecodecs.png_encode((stored >> 4).astype(np.uint8)))
        return path
    if kind == "JPEG in DICOM":
        grey = (stored >> 4).astype(np.uint8)
        frame, syntax = simplejpeg.encode_jpeg(grey[..., None], 92, "GRAY"), uid.JPEGBaseline8Bit
        tags |= {"WindowCenter": 128, "WindowWidth": 256}
        return write_dicom(path, grey, syntax=syntax, PixelData=encapsulate([frame]), **tags)
    syntax, frame = {
        "JPEG 2000": (uid.JPEG2000Lossless, lambda: encode_j2k(stored)),
        "JPEG 2000 lossy": (uid.JPEG2000, lambda: encode_j2k(stored, reversible=False)),
        "HTJ2K": (uid.HTJ2KLossless, lambda: imagecodecs.htj2k_encode(stored, reversible=True)),
        "JPEG-LS": (uid.JPEGLSLossless, lambda: imagecodecs.jpegls_encode(stored)),
    }[kind]
    return write_dicom(path, stored, syntax=syntax, PixelData=encapsulate([frame()]), **tags)


def average(film: DecodedFilm, longest: int) -> np.ndarray:
    shrink = longest / max(film.full_height, film.full_width)
    size = round(film.full_width * shrink), round(film.full_height * shrink)
    return cv2.resize(film.pixels, size, interpolation=cv2.INTER_AREA) * 255


CAN_SHRINK = ["JPEG", "JPEG in DICOM", "JPEG 2000", "JPEG 2000 lossy"]


@pytest.mark.real_films
@pytest.mark.parametrize("kind", [kind for kind in CAN_SHRINK if kind != "JPEG"])
@pytest.mark.parametrize(("at_least", "halvings"), [(0, 0), (344, 0), (343, 1), (200, 1), (171, 2), (60, 3), (1, 3)])
def test_a_film_is_reduced_to_no_less_than_one_and_a_half_times_what_is_asked(
    tmp_path: Path, stored: np.ndarray, kind: str, at_least: int, halvings: int
) -> None:
    film = decode_film(write_film(tmp_path / "film", stored, kind), at_least=at_least)
    assert film.pixels.shape == (math.ceil(HEIGHT / 2**halvings), math.ceil(WIDTH / 2**halvings))
    assert max(film.pixels.shape) >= 1.5 * at_least or not halvings
    assert (film.full_height, film.full_width) == (HEIGHT, WIDTH)
    assert film.spacing_mm == pytest.approx(0.2 * 2**halvings)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("at_least", [2000, 512, 256])
def test_a_picture_of_8_bits_is_averaged_to_the_size_that_is_asked(
    tmp_path: Path, stored: np.ndarray, kind: str, at_least: int
) -> None:
    path = write_film(tmp_path / "film", stored, kind)
    whole, reduced = decode_film(path), decode_film(path, at_least=at_least)
    assert max(reduced.pixels.shape) == min(at_least, HEIGHT)
    assert (reduced.full_height, reduced.full_width) == whole.pixels.shape == (HEIGHT, WIDTH)
    assert np.abs(average(whole, max(reduced.pixels.shape)) - reduced.pixels * 255).mean() < 0.5


@pytest.mark.real_films
@pytest.mark.parametrize("kind", CAN_SHRINK)
def test_a_reduced_film_is_the_whole_one_to_half_a_grey_level_after_averaging(
    tmp_path: Path, stored: np.ndarray, kind: str
) -> None:
    path = write_film(tmp_path / "film", stored, kind)
    whole, reduced = decode_film(path), decode_film(path, at_least=256)
    assert reduced.pixels.shape != whole.pixels.shape
    difference = np.abs(average(whole, 256) - average(reduced, 256))
    assert difference.mean() < 0.5
    assert np.percentile(difference, 99) < 5


@pytest.mark.real_films
@pytest.mark.parametrize("width", range(896, 904))
def test_a_film_of_any_width_is_reduced_or_left_whole_but_never_lost(
    tmp_path: Path, stored: np.ndarray, width: int
) -> None:
    path = write_film(tmp_path / "film", np.ascontiguousarray(stored[:, :width]), "JPEG 2000")
    for at_least in (300, 150, 60):
        film = decode_film(path, at_least=at_least)
        assert film.pixels.shape[1] in [math.ceil(width / 2**n) for n in range(1, 4)]
        assert film.pixels.mean() == pytest.approx(decode_film(path).pixels.mean(), abs=0.01)


@pytest.mark.real_films
def test_signed_and_unsigned_films_are_reduced_alike(tmp_path: Path, stored: np.ndarray) -> None:
    unsigned = write_film(tmp_path / "unsigned", stored, "JPEG 2000", BitsStored=12)
    values = stored.astype(np.int16) - 2048
    signed = write_film(tmp_path / "signed", values, "JPEG 2000", BitsStored=16, RescaleIntercept=2048)
    expected, found = (decode_film(path, at_least=256).pixels for path in (unsigned, signed))
    assert found.shape == (515, 452)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.real_films
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_reduced_frame_has_the_grey_levels_of_the_whole_one(tmp_path: Path, stored: np.ndarray, bits: int) -> None:
    raw = (stored >> 4).astype(np.uint8) if bits == 8 else stored << (bits - 12)
    frame = imagecodecs.jpeg2k_encode(raw, codecformat="j2k", reversible=True, level=0, bitspersample=bits)
    path = write_dicom(
        tmp_path / "film",
        raw,
        syntax=uid.JPEG2000Lossless,
        PixelData=encapsulate([frame]),
        BitsStored=bits,
        WindowCenter=2 ** (bits - 1),
        WindowWidth=2**bits,
    )
    film = decode_film(path, at_least=256)
    assert film.pixels.shape == (515, 452)
    assert film.pixels.mean() == pytest.approx(decode_film(path).pixels.mean(), abs=0.001)


@pytest.mark.real_films
def test_htj2k_is_reduced_too(tmp_path: Path, stored: np.ndarray) -> None:
    path = write_film(tmp_path / "film", stored << 4, "HTJ2K", BitsStored=16, WindowCenter=2**15, WindowWidth=2**16)
    whole, reduced = decode_film(path), decode_film(path, at_least=256)
    assert reduced.pixels.shape == (515, 452)
    assert np.abs(average(whole, 256) - average(reduced, 256)).mean() < 0.5


@pytest.mark.real_films
def test_what_cannot_be_reduced_without_harm_is_decoded_whole(tmp_path: Path, stored: np.ndarray) -> None:
    for kind, tags in (("JPEG-LS", {}), ("JPEG 2000", {"PixelPaddingValue": 0})):
        path = write_film(tmp_path / "film", stored, kind, **tags)
        assert np.array_equal(decode_film(path, at_least=64).pixels, decode_film(path).pixels)


@pytest.mark.real_films
def test_a_turned_photograph_is_reduced_and_stands_upright(tmp_path: Path, stored: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((stored >> 4).astype(np.uint8)).save(tmp_path / "film", "JPEG", quality=95, exif=exif)
    film = decode_film(tmp_path / "film", at_least=256)
    assert film.pixels.shape == (224, 256)
    assert (film.full_height, film.full_width) == (WIDTH, HEIGHT)
    assert np.abs(average(film, 256) - average(decode_film(tmp_path / "film"), 256)).mean() < 0.5
