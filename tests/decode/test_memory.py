"""Films that need more memory than there is: said to be that, and not to be damaged."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from dicom_files import write_dicom
from film_files import encode_lossless_jpeg, make_grey, refuse, write_image

SIDE = 2200
# Reads a small film of the same kind first, so that the libraries are loaded, and then the large one.
STARVED = """
import json, resource, sys
from pathlib import Path
import cv2
from chess_cxr.decode.film import Undecodable, decode_film
cv2.setNumThreads(1)
large, small = map(Path, sys.argv[1:])
decode_film(small)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
reasons = []
for mebibytes in (*range(0, 150, 6), 2000):
    resource.setrlimit(resource.RLIMIT_AS, (taken + (mebibytes << 20), resource.RLIM_INFINITY))
    try:
        decode_film(large)
        reasons.append("")
        break
    except Undecodable as error:
        reasons.append(str(error))
print(json.dumps(reasons))
"""


def write_film(path: Path, kind: str, side: int) -> Path:
    grey = make_grey(side, side, top=4000)
    rgb = Image.fromarray((grey >> 4).astype(np.uint8)).convert("RGB")
    if kind == "dicom":
        return write_dicom(path, grey, JPEGLosslessSV1, PixelData=encapsulate([encode_lossless_jpeg(grey)]))
    if kind in ("mha", "nii", "nii.gz"):
        itk = pytest.importorskip("SimpleITK")
        path = path.with_name(f"{path.name}.{kind}")
        itk.WriteImage(itk.GetImageFromArray(grey), str(path))
        return path
    if kind == "webp":
        return write_image(path, rgb, "WEBP", lossless=True, method=0)
    if kind == "png":
        return write_image(path, Image.fromarray(grey), "PNG", compress_level=1)
    rows = {278: side} if kind == "tiff in one strip" else {}
    return write_image(path, Image.fromarray(grey), "TIFF", compression="tiff_lzw", tiffinfo=rows)


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.parametrize("kind", ["dicom", "png", "tiff", "tiff in one strip", "webp", "mha", "nii", "nii.gz"])
def test_too_little_memory_is_never_called_damage(tmp_path: Path, kind: str) -> None:
    large, small = write_film(tmp_path / "large", kind, SIDE), write_film(tmp_path / "small", kind, 64)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", STARVED, str(large), str(small)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=one_thread,
    )
    reasons = json.loads(child.stdout)
    assert reasons[-1] == ""
    assert len(reasons) > 4
    assert set(reasons[:-1]) <= {"not enough memory to decode it", "not enough memory to read it"}


@pytest.mark.parametrize("share", [0.001, 0.3, 0.8])
def test_damage_is_still_called_damage(tmp_path: Path, share: float) -> None:
    for kind in ("webp", "tiff"):
        path = write_film(tmp_path / f"X{kind}", kind, 500)
        path.write_bytes(path.read_bytes()[: max(16, int(path.stat().st_size * share))])
        assert "damaged" in refuse(path)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0II*\0"}])
def test_a_webp_of_too_many_pixels_is_refused_before_it_is_opened(tmp_path: Path, options: dict) -> None:
    grey = Image.fromarray(np.zeros((700, 16_383), np.uint8)).convert("RGB")
    path = write_image(tmp_path / "Xfilm", grey, "WEBP", method=0, **options)
    assert "8 times as long" in refuse(path)
    content = bytearray(path.read_bytes())
    sides = {
        b"VP8X": (24, b"\xff\x3f\x00\xff\x3f\x00"),
        b"VP8L": (21, b"\xff\xff\xff\x0f"),
        b"VP8 ": (26, b"\xff\x3f" * 2),
    }
    at, claim = sides[bytes(content[12:16])]
    content[at : at + len(claim)] = claim
    path.write_bytes(content)
    assert "120 megapixels" in refuse(path)
