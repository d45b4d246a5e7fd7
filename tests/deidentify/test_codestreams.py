import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless, RLELossless

from chess_cxr.deidentify.codestreams import COMPRESSED, strip_frame
from chess_cxr.deidentify.film import deidentify_dicom
from chess_cxr.records import SourceFilm, Undecodable
from dicom_films import WORD, build_film, draw_pixels, find_canaries, write_film

KEY = b"a key of more than sixteen bytes"
TALK = WORD.encode()


def write_jpeg(**options: object) -> bytes:
    written = io.BytesIO()
    Image.fromarray(draw_pixels(64, 64, 8)).save(written, "JPEG", quality=95, **options)
    return written.getvalue()


def write_jpeg_2000(**options: object) -> bytes:
    written = io.BytesIO()
    Image.fromarray(draw_pixels(64, 64, 8)).save(written, "JPEG2000", **options)
    return written.getvalue()


def write_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">HH", marker, len(body) + 2) + body


def read_pixels(frame: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(frame)) as image:
        return np.asarray(image)


def gossip(frame: bytes) -> bytes:
    """A JPEG with words in comments, application segments, a thumbnail, before the scan and after the end."""
    exif = write_segment(0xFFE1, b"Exif\0\0" + TALK)
    jfif = write_segment(0xFFE0, b"JFIF\0\1\1\0\0\1\0\1\3\1" + TALK)
    many = b"".join(write_segment(0xFFE0 + number, TALK) for number in range(16))
    scan = frame.index(b"\xff\xda")
    head = frame[:2] + jfif + exif + many + write_segment(0xFFFE, TALK)
    return head + frame[2:scan] + write_segment(0xFFFE, TALK) + b"\xff\xff" + frame[scan:] + TALK


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"comment": TALK}], ids=str
)
def test_a_jpeg_keeps_its_pixels_and_loses_every_word(options: dict[str, object]) -> None:
    frame = write_jpeg(**options)
    stripped = strip_frame(gossip(frame), JPEGBaseline8Bit, 64 * 64)
    assert find_canaries(gossip(frame))
    assert find_canaries(stripped) == []
    assert np.array_equal(read_pixels(stripped), read_pixels(frame))
    assert strip_frame(stripped, JPEGBaseline8Bit, 64 * 64) == stripped


def test_the_colour_transform_of_a_jpeg_stays() -> None:
    adobe = write_segment(0xFFEE, b"Adobe\0\x64\0\0\0\0\0" + TALK)
    stripped = strip_frame(b"\xff\xd8" + adobe + write_jpeg()[2:], JPEGBaseline8Bit, 64 * 64)
    assert write_segment(0xFFEE, b"Adobe\0\x64\0\0\0\0\0") in stripped
    assert find_canaries(stripped) == []


@pytest.mark.parametrize("tiles", [None, (32, 32)])
def test_a_jpeg_2000_keeps_its_pixels_and_loses_every_word(tiles: tuple[int, int] | None) -> None:
    frame = write_jpeg_2000(no_jp2=True, tile_size=tiles, comment=WORD)
    assert find_canaries(frame)
    talking = put_words_into_first_tile(frame) + TALK
    stripped = strip_frame(talking, JPEG2000, 64 * 64)
    assert find_canaries(stripped) == []
    assert np.array_equal(read_pixels(stripped), draw_pixels(64, 64, 8))
    assert np.array_equal(read_pixels(put_words_into_first_tile(frame)), draw_pixels(64, 64, 8))


def put_words_into_first_tile(frame: bytes) -> bytes:
    """Write a comment and an unknown marker into the header of the first tile-part, whose length counts them."""
    at = frame.index(b"\xff\x90\x00\x0a")
    words = write_segment(0xFF64, b"\0\1" + TALK)
    (length,) = struct.unpack_from(">I", frame, at + 6)
    longer = struct.pack(">I", length + len(words))
    return frame[: at + 6] + longer + frame[at + 10 : at + 12] + words + frame[at + 12 :]


def test_a_last_tile_part_of_unknown_length_ends_where_the_image_does() -> None:
    frame = write_jpeg_2000(no_jp2=True)
    at = frame.index(b"\xff\x90\x00\x0a")
    open_end = frame[: at + 6] + bytes(4) + frame[at + 10 :]
    stripped = strip_frame(open_end + TALK + b"\xff\xd9", JPEG2000, 64 * 64)
    assert find_canaries(stripped) == []
    assert np.array_equal(read_pixels(stripped), draw_pixels(64, 64, 8))


def test_a_jp2_file_is_reduced_to_its_codestream() -> None:
    frame = write_jpeg_2000()
    assert frame[4:8] == b"jP  "
    box = struct.pack(">I4s", 8 + 16 + len(TALK), b"uuid") + bytes(16) + TALK
    at = frame.index(b"jp2c") - 4
    stripped = strip_frame(frame[:at] + box + frame[at:] + box, JPEG2000, 64 * 64)
    assert stripped.startswith(b"\xff\x4f\xff\x51")
    assert find_canaries(stripped) == []
    assert np.array_equal(read_pixels(stripped), draw_pixels(64, 64, 8))


@pytest.mark.real_films
@pytest.mark.parametrize("name", ["RG2_JPLL.dcm", "RG2_JLSL.dcm", "RG1_JLSN.dcm", "RG3_J2KR.dcm"])
def test_words_in_real_compressed_films_do_not_reach_the_copy(real_films: Path, name: str) -> None:
    source = pydicom.dcmread(real_films / "dicom" / name)
    frame = get_frame(source.PixelData, 0, number_of_frames=1)
    if name.startswith("RG3"):
        siz = 4 + int.from_bytes(frame[4:6], "big")
        talking = frame[:siz] + write_segment(0xFF64, b"\0\1" + TALK) + frame[siz:] + TALK
    else:
        talking = frame[:2] + write_segment(0xFFFE, TALK) + write_segment(0xFFE5, TALK) + frame[2:] + TALK
    pixels = source.pixel_array
    source.PixelData = encapsulate([talking])
    written = io.BytesIO()
    source.save_as(written)
    copied = deidentify_dicom(written.getvalue(), SourceFilm(Path(name), name), KEY).content
    assert find_canaries(written.getvalue())
    assert find_canaries(copied) == []
    assert np.array_equal(pydicom.dcmread(io.BytesIO(copied)).pixel_array, pixels)


@pytest.mark.parametrize("frames", [1, 3])
def test_rle_frames_keep_their_pixels_and_lose_what_stands_around_the_segments(frames: int) -> None:
    film = build_film()
    pixels = np.stack([draw_pixels() + number for number in range(frames)])
    film.NumberOfFrames, film.PixelData = frames, pixels.tobytes()
    write_film(film)
    film.compress(RLELossless, encoding_plugin="pydicom")
    parts = []
    for number in range(frames):
        frame = get_frame(film.PixelData, number, number_of_frames=frames)
        count, first, second, *_ = struct.unpack_from("<16I", frame)
        assert count == 2
        head = struct.pack("<16I", 2, first + 10, second + 20, *[0] * 12, 0x51585A59)
        parts.append(head + TALK + b"\0" + frame[64:second] + TALK + b"\0" + frame[second:] + TALK + b"\0")
    film.PixelData = encapsulate(parts)
    content = write_film(film, RLELossless)
    copied = deidentify_dicom(content, SourceFilm(Path("f"), "f"), KEY).content
    assert find_canaries(content)
    assert find_canaries(copied) == []
    assert b"YZXQ" not in copied
    read = pydicom.dcmread(io.BytesIO(copied))
    assert np.array_equal(read.pixel_array.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("syntax", sorted(COMPRESSED))
@pytest.mark.parametrize(
    "frame",
    [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe0\xff\xff", b"\xff\x4f\xff\x51\0\0", bytes(64)]
    + [b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\1abcd" + b"\0" * 8, b"\xff" * 100]
    + [struct.pack("<16I", 15, *range(64, 79)), struct.pack("<2I", 1, 64) + bytes(56) + b"\x7f"],
    ids=range(12),
)
def test_a_broken_frame_is_refused_in_every_transfer_syntax(syntax: str, frame: bytes) -> None:
    with pytest.raises(Undecodable):
        strip_frame(frame, syntax, 64 * 64)


def test_cut_frames_are_refused_wherever_they_are_cut() -> None:
    for syntax, frame in ((JPEGBaseline8Bit, write_jpeg()), (JPEG2000, write_jpeg_2000(no_jp2=True))):
        for end in range(2, len(frame) - 1, 97):
            with pytest.raises(Undecodable):
                strip_frame(frame[:end], syntax, 64 * 64)


def test_frames_of_another_format_than_the_header_says_are_refused() -> None:
    with pytest.raises(Undecodable, match="not of its transfer syntax"):
        strip_frame(write_jpeg(), JPEG2000, 64 * 64)
    for syntax in (JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless):
        with pytest.raises(Undecodable, match="not of its transfer syntax"):
            strip_frame(write_jpeg_2000(no_jp2=True), syntax, 64 * 64)
