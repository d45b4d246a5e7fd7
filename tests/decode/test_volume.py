"""NIfTI, MetaImage and the raw films of JSRT."""

import gzip
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.decode.film import decode_film
from film_files import make_grey, refuse, stretch_slowly

KINDS = [".nii", ".nii.gz", ".mha"]


def write_volume(path: Path, pixels: np.ndarray, spacing: tuple[float, ...] = (0.2, 0.2), packed: bool = False) -> Path:
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(pixels)
    image.SetSpacing(spacing[: pixels.ndim] + (1.0,) * (pixels.ndim - len(spacing)))
    itk.WriteImage(image, str(path), packed)
    return path


def test_a_gzip_file_of_many_members_is_read_whole(tmp_path: Path) -> None:
    content = write_volume(tmp_path / "film.nii", make_grey()).read_bytes()
    parts = [content[start : start + 5000] for start in range(0, len(content), 5000)]
    (tmp_path / "film.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    found, expected = (decode_film(tmp_path / name).pixels for name in ("film.nii.gz", "film.nii"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("slices", [False, True])
def test_a_film_in_a_volume_file_is_read_upright(tmp_path: Path, kind: str, dtype: type, slices: bool) -> None:
    stored = make_grey(top=255 if dtype is np.uint8 else 4000).astype(dtype)
    path = write_volume(tmp_path / f"film{kind}", stored[None] if slices else stored, packed=kind == ".mha")
    film = decode_film(path)
    expected = stored / np.float32(255) if dtype is np.uint8 else stretch_slowly(stored)
    np.testing.assert_allclose(film.pixels, expected, atol=1e-6)
    assert film.spacing_mm == pytest.approx(0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_of_a_volume_file_says_what_it_is(tmp_path: Path, kind: str) -> None:
    stored = make_grey(top=4000)
    path = write_volume(tmp_path / f"film{kind}", stored)
    renamed = path.rename(tmp_path / "film.png")
    np.testing.assert_allclose(decode_film(renamed).pixels, stretch_slowly(stored), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_spacing_that_is_uneven_or_has_no_unit_is_unknown(tmp_path: Path, kind: str) -> None:
    uneven = write_volume(tmp_path / f"uneven{kind}", make_grey(), (0.1, 0.3))
    assert math.isnan(decode_film(uneven).spacing_mm)
    content = write_volume(tmp_path / f"film{kind}", make_grey()).read_bytes()
    if kind == ".mha":
        lines = content.split(b"\n")
        content = b"\n".join(line for line in lines if not line.startswith(b"ElementSpacing"))
    else:
        head = bytearray(gzip.decompress(content) if kind == ".nii.gz" else content)
        head[123] = 0
        content = gzip.compress(head) if kind == ".nii.gz" else bytes(head)
    (tmp_path / "bare").write_bytes(content)
    assert math.isnan(decode_film(tmp_path / "bare").spacing_mm)


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_of_many_slices_is_refused(tmp_path: Path, kind: str) -> None:
    volume = np.stack([make_grey()] * 3)
    assert "many slices" in refuse(write_volume(tmp_path / f"Xfilm{kind}", volume))


@pytest.mark.parametrize("kind", [*KINDS, ".packed.mha"])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_a_volume_file_that_ends_early_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = write_volume(tmp_path / f"Xfilm{kind}", noise, packed="packed" in kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert any(word in refuse(path) for word in ("early", "damaged", "not in the file"))


def test_a_claim_of_too_many_pixels_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "Xfilm.mha", make_grey())
    path.write_bytes(path.read_bytes().replace(b"DimSize = 64 48", b"DimSize = 60000 60000"))
    assert "120 megapixels" in refuse(path)
    content = bytearray(write_volume(tmp_path / "Xfilm.nii", make_grey()).read_bytes())
    content[42:46] = b"\x30\x75\x30\x75"  # 30,000 twice
    (tmp_path / "Xgz").write_bytes(gzip.compress(content + bytes(1 << 24)))
    assert "120 megapixels" in refuse(tmp_path / "Xgz")


@pytest.mark.parametrize("named", [b"other.raw", b"/etc/hostname", b"LIST"])
def test_a_header_that_points_to_another_file_is_refused(tmp_path: Path, named: bytes) -> None:
    path = write_volume(tmp_path / "Xfilm.mha", make_grey())
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL", b"ElementDataFile = " + named))
    assert "not in the file itself" in refuse(path)


@pytest.mark.parametrize(
    ("order", "dtype", "scale"),
    [(order, dtype, (-0.5, 100)) for order in "<>" for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")]
    + [("<", dtype, scale) for dtype in ("u1", "i2") for scale in [(0, 0), (1, 0), (math.nan, 3), (3, math.inf)]],
)
def test_nifti_is_read_as_simpleitk_reads_it(
    tmp_path: Path, order: str, dtype: str, scale: tuple[float, float]
) -> None:
    itk = pytest.importorskip("SimpleITK")
    stored = make_grey(top=120).astype(dtype)
    content = bytearray(write_volume(tmp_path / "film.nii", stored).read_bytes())
    struct.pack_into("<2f", content, 112, *scale)
    (tmp_path / "film.nii").write_bytes(content)
    theirs = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / "film.nii")))
    if order == ">":
        for start, count, size in NIFTI_FIELDS:
            content[start : start + count * size] = swap(content[start : start + count * size], size)
        content[352:] = swap(content[352:], stored.itemsize)
    (tmp_path / "film").write_bytes(content)
    expected = theirs / np.float32(255) if theirs.dtype == np.uint8 else stretch_slowly(theirs)
    if dtype == "u1" and math.isnan(scale[0]):  # ITK adds the intercept all the same; nifti1.h has no scale then
        expected = stored / np.float32(255)
    film = decode_film(tmp_path / "film")
    np.testing.assert_allclose(film.pixels, expected, atol=1e-6)
    assert film.spacing_mm == pytest.approx(0.2)


# nifti1.h: start, count and size of the fields from sizeof_hdr to srow_z
NIFTI_FIELDS = [(0, 1, 4), (32, 1, 4), (36, 1, 2), (40, 8, 2), (56, 3, 4), (68, 4, 2), (76, 8, 4), (108, 3, 4)]
NIFTI_FIELDS += [(120, 1, 2), (124, 4, 4), (140, 2, 4), (252, 2, 2), (256, 6, 4), (280, 12, 4)]


def swap(content: bytearray, size: int) -> bytes:
    return np.frombuffer(bytes(content), f"u{size}").byteswap().tobytes()


@pytest.mark.parametrize(("unit", "spacing"), [(1, 200.0), (2, 0.2), (3, 0.0002), (10, 0.2), (0, math.nan)])
def test_the_unit_of_a_nifti_file_counts(tmp_path: Path, unit: int, spacing: float) -> None:
    content = bytearray(write_volume(tmp_path / "film.nii", make_grey()).read_bytes())
    content[123] = unit
    (tmp_path / "film.nii").write_bytes(content)
    assert decode_film(tmp_path / "film.nii").spacing_mm == pytest.approx(spacing, nan_ok=True)


KILLED = """
import os, signal, sys
from pathlib import Path
import SimpleITK
from chess_cxr.decode.film import decode_film
SimpleITK.ImageFileReader.Execute = lambda reader: os.kill(os.getpid(), signal.SIGKILL)
decode_film(Path(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files in memory")
def test_a_child_killed_in_the_middle_leaves_nothing_of_the_film(tmp_path: Path) -> None:
    path, folder = write_volume(tmp_path / "film.mha", make_grey()), tmp_path / "scratch"
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    child = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_files_in_memory_are_all_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = write_volume(tmp_path / f"film{kind}", make_grey())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    opened = len(os.listdir("/proc/self/fd"))
    assert decode_film(path).pixels.shape == (48, 64)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_without_files_in_memory_a_temporary_file_serves_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = write_volume(tmp_path / "film.mha", make_grey(top=4000)), tmp_path / "scratch"
    expected = decode_film(path).pixels
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delattr(os, "memfd_create")
    assert np.array_equal(decode_film(path).pixels, expected)
    assert list(folder.iterdir()) == []


WITHOUT_ITK = """
import sys
from pathlib import Path
sys.modules["SimpleITK"] = None
from chess_cxr.decode.film import Undecodable, decode_film
try:
    decode_film(Path(sys.argv[1]))
except Undecodable as error:
    print(error)
"""


def test_without_simpleitk_the_reason_says_what_to_install(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "film.mha", make_grey())
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_ITK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'chess-cxr[volumes]'" in child.stdout


@pytest.mark.parametrize("kind", [".nii", ".nii.gz"])
def test_nifti_is_read_without_simpleitk(tmp_path: Path, kind: str) -> None:
    path = write_volume(tmp_path / f"film{kind}", make_grey())
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_ITK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout == ""


# ---------------------------------------------------------------- JSRT


def draw_jsrt() -> np.ndarray:
    y, x = np.mgrid[:2048, :2048]
    return (3000 - x // 2 - y // 4 + (x * y) % 7).astype(np.uint16)


@pytest.mark.parametrize("name", ["JPCLN001.IMG", "jpcnn001.img"])
def test_a_raw_jsrt_film_is_read_with_air_dark(tmp_path: Path, name: str) -> None:
    raw = draw_jsrt()
    (tmp_path / name).write_bytes(raw.astype(">u2").tobytes())
    film = decode_film(tmp_path / name)
    ordered = np.sort(raw.ravel())
    low, high = (int(ordered[math.ceil(share * raw.size) - 1]) for share in (0.005, 0.995))
    np.testing.assert_allclose(film.pixels, 1 - np.clip((raw - float(low)) / (high - low), 0, 1), atol=1e-6)
    assert film.spacing_mm == 0.175


def test_only_name_and_size_together_make_a_jsrt_film(tmp_path: Path) -> None:
    content = draw_jsrt().astype(">u2").tobytes()
    for name, data in (("Xfilm.raw", content), ("Xfilm.img", content[:-2]), ("Xfilm.IMG", content + b"\0\0")):
        (tmp_path / name).write_bytes(data)
        assert "not a DICOM" in refuse(tmp_path / name)
    (tmp_path / "Xlittle.img").write_bytes(draw_jsrt().astype("<u2").tobytes())
    assert "more than 12 bits" in refuse(tmp_path / "Xlittle.img")
