"""Every transfer syntax, under its own name, under none and under a wrong one."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import simplejpeg
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

from chess_cxr.decode.film import decode_film
from dicom_files import write_dicom
from film_files import encode_lossless_jpeg, make_grey, refuse, stretch_slowly


def encode_rle(stored: np.ndarray) -> bytes:
    rows, columns, samples = (*stored.shape, 1)[:3]
    return RLELosslessEncoder.encode(
        stored.tobytes(),
        encoding_plugin="pydicom",
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        bits_allocated=8 * stored.itemsize,
        bits_stored=8 * stored.itemsize,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2" if samples == 1 else "RGB",
        planar_configuration=0,
        number_of_frames=1,
    )


def encode_j2k(stored: np.ndarray, **options: object) -> bytes:
    return imagecodecs.jpeg2k_encode(stored, codecformat="j2k", **{"level": 0, "reversible": True} | options)


def encode_htj2k(stored: np.ndarray) -> bytes:
    return imagecodecs.htj2k_encode(stored, reversible=True)


LOSSLESS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "RLE": (uid.RLELossless, encode_rle),
    "JPEG lossless": (uid.JPEGLossless, lambda stored: encode_lossless_jpeg(stored, predictor=6)),
    "JPEG lossless SV1": (uid.JPEGLosslessSV1, encode_lossless_jpeg),
    "JPEG-LS": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "JPEG 2000": (uid.JPEG2000Lossless, encode_j2k),
    "HTJ2K": (uid.HTJ2KLossless, encode_htj2k),
}
NATIVE = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
ENDS = {"JPEG lossless", "JPEG lossless SV1", "JPEG-LS", "JPEG 2000", "HTJ2K"}


@pytest.fixture(scope="module")
def film(real_films: Path) -> np.ndarray:
    """A real film of 250 x 251 pixels, made 12 bits deep with noise."""
    grey = np.asarray(Image.open(real_films / "jsrt" / "images" / "JPCLN002.png"))[100:350, 100:351].astype(np.uint16)
    return (grey << 4) | np.random.default_rng(0).integers(0, 16, grey.shape, dtype=np.uint16)


def write_compressed(path: Path, stored: np.ndarray, frame: bytes, syntax: str, **tags: object) -> Path:
    return write_dicom(path, stored, syntax=syntax, PixelData=encapsulate([frame]), **tags)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_every_lossless_codec_gives_what_the_native_file_gives(
    tmp_path: Path, film: np.ndarray, kind: str, bits: int
) -> None:
    syntax, encode = LOSSLESS[kind]
    stored = film >> (12 - bits) if bits < 12 else film << (bits - 12)
    stored = stored.astype(np.uint8) if bits == 8 else stored
    native = decode_film(write_dicom(tmp_path / "native", stored, BitsStored=bits)).pixels
    packed = write_compressed(tmp_path / "packed", stored, encode(stored), syntax, BitsStored=bits)
    assert np.array_equal(decode_film(packed).pixels, native)
    assert bits == 8 or np.abs(native - stretch_slowly(stored)).max() < 1e-6


@pytest.mark.real_films
@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_every_native_syntax_gives_the_same_film(tmp_path: Path, film: np.ndarray, kind: str, dtype: type) -> None:
    stored = (film >> 4 if dtype is np.uint8 else film).astype(dtype)
    if dtype is np.int16:
        stored -= 2048
    path = write_dicom(tmp_path / "film", stored, syntax=NATIVE[kind])
    expected = stored / np.float32(255) if dtype is np.uint8 else stretch_slowly(stored)
    np.testing.assert_allclose(decode_film(path).pixels, expected, atol=1e-6)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", ["RLE", "JPEG-LS", "JPEG lossless", "JPEG 2000"])
def test_signed_pixels_keep_their_sign_through_every_codec(tmp_path: Path, film: np.ndarray, kind: str) -> None:
    syntax, encode = LOSSLESS[kind]
    stored = film.astype(np.int16) - 2048
    unsigned = stored.view(np.uint16) if kind == "RLE" else stored.view(np.uint16) & 0xFFF
    frame = encode(stored if kind == "JPEG 2000" else unsigned)
    path = write_compressed(tmp_path / "film", stored, frame, syntax)
    np.testing.assert_allclose(decode_film(path).pixels, stretch_slowly(stored), atol=1e-6)


@pytest.mark.real_films
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (uid.JPEGBaseline8Bit, lambda s: simplejpeg.encode_jpeg((s >> 4).astype(np.uint8)[..., None], 95, "GRAY")),
        (uid.JPEGExtended12Bit, lambda s: imagecodecs.jpeg8_encode(s, 95, bitspersample=12)),
        (uid.JPEGLSNearLossless, lambda s: imagecodecs.jpegls_encode(s, level=6)),
        (uid.JPEG2000, lambda s: encode_j2k(s, reversible=False, level=55, bitspersample=12)),
    ],
)
def test_every_lossy_codec_stays_close_to_the_film(
    tmp_path: Path, film: np.ndarray, syntax: str, encode: Callable[[np.ndarray], bytes]
) -> None:
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    stored = (film >> 4).astype(np.uint8) if bits == 8 else film
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    native, packed = (
        decode_film(path).pixels
        for path in (
            write_dicom(tmp_path / "native", stored, **window),
            write_compressed(tmp_path / "packed", stored, encode(film), syntax, **window),
        )
    )
    difference = np.abs(native - packed) * 255
    assert 0 < difference.mean() < 1
    assert difference.max() < 12


# ---------------------------------------------------------------- the bytes have the last word


@pytest.mark.real_films
@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(
    "claimed", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEG2000Lossless]
)
def test_a_compressed_film_under_a_wrong_name_is_read(
    tmp_path: Path, film: np.ndarray, kind: str, claimed: str
) -> None:
    true, encode = LOSSLESS[kind]
    right = write_compressed(tmp_path / "right", film, encode(film), true)
    wrong = write_compressed(tmp_path / "wrong", film, encode(film), true)
    content = right.read_bytes()
    padded = claimed.encode().ljust(len(true) + len(true) % 2, b"\0")
    if len(padded) == len(true) + len(true) % 2:
        wrong.write_bytes(content.replace(true.encode().ljust(len(padded), b"\0"), padded, 1))
        assert pydicom.dcmread(wrong).file_meta.TransferSyntaxUID == claimed
    else:
        dataset = pydicom.dcmread(right)
        dataset.file_meta.TransferSyntaxUID = claimed
        dataset["PixelData"].is_undefined_length = uid.UID(claimed).is_encapsulated
        dataset.save_as(wrong)
    assert np.array_equal(decode_film(wrong).pixels, decode_film(right).pixels)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", sorted(ENDS))
def test_a_codestream_in_place_of_native_pixels_is_read(tmp_path: Path, film: np.ndarray, kind: str) -> None:
    frame = LOSSLESS[kind][1](film)
    bare = write_dicom(tmp_path / "bare", film, PixelData=frame + b"\0" * (len(frame) % 2))
    assert np.array_equal(decode_film(bare).pixels, decode_film(write_dicom(tmp_path / "native", film)).pixels)


@pytest.mark.real_films
@pytest.mark.parametrize("claimed", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless])
@pytest.mark.parametrize("in_items", [False, True])
def test_native_pixels_under_a_compressed_name_are_read(
    tmp_path: Path, film: np.ndarray, claimed: str, in_items: bool
) -> None:
    expected = decode_film(write_dicom(tmp_path / "native", film)).pixels
    path = write_dicom(tmp_path / "film", film)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = claimed
    if in_items:
        dataset.PixelData = encapsulate([film.tobytes()])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    else:
        explicit = uid.ExplicitVRLittleEndian.encode()
        content = path.read_bytes()
        at = content.index(explicit)
        # pydicom itself refuses to write such files.
        new = claimed.encode() + b"\0" * (len(claimed) % 2)
        length = struct.unpack_from("<I", content, 140)[0] + len(new) - (len(explicit) + len(explicit) % 2)
        head = content[:140] + struct.pack("<I", length) + content[144 : at - 2] + struct.pack("<H", len(new)) + new
        path.write_bytes(head + content[at + len(explicit) + len(explicit) % 2 :])
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == claimed
    assert np.array_equal(decode_film(path).pixels, expected)


@pytest.mark.real_films
def test_a_whole_jp2_file_in_place_of_a_codestream_is_read(tmp_path: Path, film: np.ndarray) -> None:
    frame = imagecodecs.jpeg2k_encode(film, codecformat="jp2", reversible=True, level=0)
    assert frame[4:8] == b"jP  "
    path = write_compressed(tmp_path / "jp2", film, frame, uid.JPEG2000Lossless)
    assert np.array_equal(decode_film(path).pixels, decode_film(write_dicom(tmp_path / "native", film)).pixels)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", [None, *LOSSLESS])
def test_the_first_of_many_frames_is_taken_and_their_number_is_told(
    tmp_path: Path, film: np.ndarray, kind: str | None
) -> None:
    second = np.ascontiguousarray(film[::-1])
    frames = (film, second)
    if kind is None:
        path = write_dicom(
            tmp_path / "film", film, PixelData=b"".join(map(np.ndarray.tobytes, frames)), NumberOfFrames=2
        )
    else:
        syntax, encode = LOSSLESS[kind]
        data = encapsulate([encode(frame) for frame in frames])
        path = write_dicom(tmp_path / "film", film, syntax=syntax, PixelData=data, NumberOfFrames=2)
    decoded = decode_film(path)
    assert np.array_equal(decoded.pixels, decode_film(write_dicom(tmp_path / "one", film)).pixels)
    assert decoded.header.frames == 2


@pytest.mark.real_films
def test_a_frame_in_many_fragments_with_a_wrong_offset_table_is_read(tmp_path: Path, film: np.ndarray) -> None:
    frame = imagecodecs.jpegls_encode(film)
    data = bytearray(encapsulate([frame], fragments_per_frame=5))
    data[8:12] = b"\x99\x00\x00\x00"
    path = write_dicom(tmp_path / "film", film, syntax=uid.JPEGLSLossless, PixelData=bytes(data))
    assert np.array_equal(decode_film(path).pixels, decode_film(write_dicom(tmp_path / "native", film)).pixels)


# ---------------------------------------------------------------- colour


def make_colours() -> np.ndarray:
    grey = make_grey()
    return np.ascontiguousarray(np.stack([grey, grey // 2, 255 - grey], axis=-1))


def weigh_slowly(rgb: np.ndarray) -> np.ndarray:
    return np.array([[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in row] for row in rgb.tolist()]) / 255


@pytest.mark.parametrize("kind", ["RLE", "JPEG-LS", "JPEG lossless", "JPEG 2000", "planar", "interleaved"])
def test_rgb_of_every_codec_becomes_its_luminance(tmp_path: Path, kind: str) -> None:
    rgb = make_colours()
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    if kind == "planar":
        tags |= {"PlanarConfiguration": 1, "PixelData": np.moveaxis(rgb, -1, 0).tobytes()}
    if kind in LOSSLESS:
        syntax, encode = LOSSLESS[kind]
        path = write_compressed(tmp_path / "film", rgb, encode(rgb), syntax, **tags)
    else:
        path = write_dicom(tmp_path / "film", rgb, **tags)
    np.testing.assert_allclose(decode_film(path).pixels, weigh_slowly(rgb), atol=1e-6)


def to_ybr(rgb: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_the_luminance_of_native_ybr_is_its_first_component(tmp_path: Path, photometric: str) -> None:
    ybr = to_ybr(make_colours())
    data = ybr.tobytes()
    if photometric == "YBR_FULL_422":
        pairs = ybr.reshape(48, 32, 2, 3)
        data = np.stack([pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]], axis=-1).tobytes()
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    path = write_dicom(tmp_path / "film", ybr, PixelData=data, **tags)
    np.testing.assert_allclose(decode_film(path).pixels, ybr[..., 0] / 255, atol=1e-6)
    if photometric == "YBR_FULL_422":  # every chrominance sample is there although the tag says half of them
        path = write_dicom(tmp_path / "full", ybr, **tags)
        np.testing.assert_allclose(decode_film(path).pixels, ybr[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_colour_jpeg_is_read_by_its_markers_and_without_them_by_the_tag(
    tmp_path: Path, photometric: str, marked: bool
) -> None:
    rgb = make_colours()
    if photometric == "RGB" and not marked:
        jpeg = imagecodecs.jpeg8_encode(rgb, 100, colorspace="RGB", outcolorspace="RGB")
        jpeg = strip_adobe(jpeg).replace(b"R\x11\x00G\x11\x00B\x11\x00", b"\x01\x11\x00\x02\x11\x00\x03\x11\x00")
        jpeg = jpeg.replace(b"R\x00G\x00B\x00", b"\x01\x00\x02\x00\x03\x00")
    else:
        jpeg = simplejpeg.encode_jpeg(rgb, 100, "RGB", "444")
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    path = write_compressed(tmp_path / "film", rgb, jpeg, uid.JPEGBaseline8Bit, **tags)
    np.testing.assert_allclose(decode_film(path).pixels, weigh_slowly(rgb), atol=3 / 255)


def strip_adobe(jpeg: bytes) -> bytes:
    at = jpeg.find(b"\xff\xeeAdobe"[:2])
    if at < 0:
        return jpeg
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


# ---------------------------------------------------------------- refusals


@pytest.mark.real_films
@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_frame_that_is_cut_off_is_refused(tmp_path: Path, film: np.ndarray, kind: str, share: float) -> None:
    syntax, encode = LOSSLESS[kind]
    frame = encode(film)
    path = write_compressed(tmp_path / "Xfilm", film, frame[: int(len(frame) * share)], syntax)
    assert "blank" not in refuse(path)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", ["JPEG 2000", "HTJ2K"])
def test_tile_parts_that_do_not_reach_the_end_marker_are_refused(tmp_path: Path, film: np.ndarray, kind: str) -> None:
    syntax, encode = LOSSLESS[kind]
    frame = encode(film)
    path = write_compressed(tmp_path / "Xfilm", film, frame[: len(frame) // 2] + b"\xff\xd9", syntax)
    assert "ends early" in refuse(path)


@pytest.mark.real_films
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_frame_of_another_size_than_the_header_is_refused(tmp_path: Path, film: np.ndarray, kind: str) -> None:
    syntax, encode = LOSSLESS[kind]
    path = write_compressed(tmp_path / "Xfilm", film[:200], encode(film[:100]), syntax)
    reason = refuse(path)
    assert "differ in size" in reason or kind == "RLE"


@pytest.mark.parametrize("cut", [0.3, 0.99])
def test_a_deflated_file_that_is_cut_off_or_damaged_is_refused(tmp_path: Path, cut: float) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = write_dicom(tmp_path / "Xfilm", noise, syntax=uid.DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    path.write_bytes(content[: 400 + int((len(content) - 400) * cut)])
    assert "deflated DICOM data set ends early" in refuse(path)
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    path.write_bytes(content[:start] + b"\x07" + content[start + 1 :])  # no such type of block
    assert "deflated DICOM data set is damaged" in refuse(path)


@pytest.mark.parametrize("rest", [0, 1, 2, 257])
def test_a_deflated_film_of_any_length_is_read_whole(tmp_path: Path, rest: int) -> None:
    """Lengths around the step in which data sets are inflated."""
    stored = np.zeros((2896, 2896), dtype=np.uint16)  # a little below 16 MiB
    stored[:1000] = 4000
    path = tmp_path / "film"
    bare = write_dicom(path, stored, syntax=uid.DeflatedExplicitVRLittleEndian, ImageComments="x")
    content = bare.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    short = (1 << 24) - len(zlib.decompress(content[start:], -zlib.MAX_WBITS))
    comments = "x" * (1 + short + rest & ~1)
    write_dicom(path, stored, syntax=uid.DeflatedExplicitVRLittleEndian, ImageComments=comments)
    assert decode_film(path).pixels.shape == stored.shape


BOMB = """
import resource, sys
from pathlib import Path
from chess_cxr.decode.film import Undecodable, decode_film
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_film(Path(sys.argv[1]))
except Undecodable as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def measure_refusal(path: Path) -> tuple[int, str]:
    """Return KiB that a child's memory grew by while it refused a file, and the reason."""
    command = [sys.executable, "-c", BOMB, str(path)]
    child = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    grown, _, reason = child.stdout.partition(" ")
    return int(grown), reason.strip()


def test_a_deflated_bomb_is_refused_within_its_bound(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "bomb", make_grey(), syntax=uid.DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(content[:start] + 128 * block + packer.flush())
    grown, reason = measure_refusal(path)
    assert "inflates to more than" in reason
    assert grown < 350 << 10  # of two GiB


def test_a_codestream_that_claims_a_huge_image_is_refused_without_allocating(tmp_path: Path) -> None:
    frame = bytearray(encode_j2k(make_grey(64, 64, top=4000)))
    frame[8:16] = struct.pack(">II", 60_000, 60_000)
    frame[24:32] = struct.pack(">II", 60_000, 60_000)
    path = write_compressed(tmp_path / "bomb", make_grey(64, 64, top=4000), bytes(frame), uid.JPEG2000Lossless)
    grown, reason = measure_refusal(path)
    assert "differ in size" in reason
    assert grown < 30 << 10


@pytest.mark.real_films
def test_the_png_bomb_is_refused_without_allocating(real_films: Path) -> None:
    grown, reason = measure_refusal(real_films / "nasty" / "image" / "bomb_60000x60000.png")
    assert "more than 120 megapixels" in reason
    assert grown < 30 << 10
