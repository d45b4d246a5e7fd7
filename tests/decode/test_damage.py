"""Files with any bytes changed are read or refused, and nothing else ever happens."""

import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from chess_cxr.decode.film import Undecodable, decode_film
from dicom_files import NAME, NUMBER, write_dicom
from film_files import make_grey

STORED = make_grey(64, 80, top=4000)
GREY = (STORED >> 4).astype(np.uint8)


def save_image(kind: str) -> Callable[[Path], bytes]:
    def build(path: Path) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(STORED if kind == "PNG16" else GREY).save(buffer, kind.removesuffix("16"))
        return buffer.getvalue()

    return build


def save_dicom(syntax: str, frame: bytes | None = None, stored: np.ndarray = STORED) -> Callable[[Path], bytes]:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.add_new("LUTData", "US", list(range(4096)))
    tags: dict[str, object] = {"PatientAge": "034Y", "StudyDate": "20200101", "ModalityLUTSequence": [table]}
    tags |= {"WindowCenter": [2000, 1], "WindowWidth": [4000, 2], "PixelPaddingValue": 0, "PixelSpacing": [0.1, 0.1]}
    if frame is not None:
        tags["PixelData"] = encapsulate([frame])
    return lambda path: write_dicom(path, stored, syntax=syntax, **tags).read_bytes()


def save_volume(suffix: str) -> Callable[[Path], bytes]:
    def build(path: Path) -> bytes:
        itk = pytest.importorskip("SimpleITK")
        named = path.with_suffix(suffix)
        itk.WriteImage(itk.GetImageFromArray(STORED), str(named))
        return named.read_bytes()

    return build


KINDS = {
    "PNG": save_image("PNG"),
    "PNG of 16 bits": save_image("PNG16"),
    "JPEG": save_image("JPEG"),
    "TIFF": save_image("TIFF"),
    "WebP": save_image("WEBP"),
    "native": save_dicom(uid.ExplicitVRLittleEndian),
    "implicit": save_dicom(uid.ImplicitVRLittleEndian),
    "big endian": save_dicom(uid.ExplicitVRBigEndian),
    "deflated": save_dicom(uid.DeflatedExplicitVRLittleEndian),
    "JPEG in DICOM": save_dicom(uid.JPEGBaseline8Bit, simplejpeg.encode_jpeg(GREY[..., None], 90, "GRAY"), stored=GREY),
    "JPEG lossless": save_dicom(
        uid.JPEGLosslessSV1, imagecodecs.jpeg8_encode(STORED, lossless=True, predictor=1, bitspersample=12)
    ),
    "JPEG-LS": save_dicom(uid.JPEGLSLossless, imagecodecs.jpegls_encode(STORED)),
    "JPEG 2000": save_dicom(uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(STORED, codecformat="j2k", level=0)),
    "HTJ2K": save_dicom(uid.HTJ2KLossless, imagecodecs.htj2k_encode(STORED, reversible=True)),
    "NIfTI": save_volume(".nii"),
    "MetaImage": save_volume(".mha"),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    path = tmp_path_factory.mktemp("damage") / "film"
    content = KINDS[request.param](path)
    path.write_bytes(content)
    decode_film(path)
    return content, path


# Half of the changes hit the first 1,500 bytes, where every format has its headers.
CHANGES = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.integers(0, 1500)), st.integers(0, 255)), min_size=1, max_size=12
)


@given(changes=CHANGES, kept=st.one_of(st.just(1.0), st.floats(0, 1)), at_least=st.sampled_from([0, 16]))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_or_refused(
    whole: tuple[bytes, Path], changes: list[tuple[float | int, int]], kept: float, at_least: int
) -> None:
    content, path = whole
    damaged = bytearray(content)
    for where, value in changes:
        at = where if isinstance(where, int) else int(where * (len(damaged) - 1))
        damaged[min(at, len(damaged) - 1)] = value
    path.write_bytes(damaged[: int(len(damaged) * kept)])
    try:
        pixels = decode_film(path, at_least).pixels
    except Undecodable as error:
        assert NAME not in str(error)
        assert NUMBER not in str(error)
        return
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
