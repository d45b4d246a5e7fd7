"""NIfTI, MetaImage and the raw films of JSRT."""

import gzip
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from film_files import make_grey, refuse, stretch_slowly

from chess_cxr.ingest.decode import decode_film

KINDS = [".nii", ".nii.gz", ".mha"]


def write_volume(path: Path, pixels: np.ndarray, spacing: tuple[float, ...] = (0.2, 0.2), packed: bool = False) -> Path:
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(pixels)
    image.SetSpacing(spacing[: pixels.ndim] + (1.0,) * (pixels.ndim - len(spacing)))
    itk.WriteImage(image, str(path), packed)
    return path


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


WITHOUT_ITK = """
import sys
from pathlib import Path
sys.modules["SimpleITK"] = None
from chess_cxr.ingest.decode import Undecodable, decode_film
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
