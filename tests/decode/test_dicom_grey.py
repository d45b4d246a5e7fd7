"""From stored values to grey: each branch of the standard against a slow reading of its text."""

import math
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from chess_cxr.decode.dicom import read_film_header
from chess_cxr.decode.film import decode_film
from dicom_files import write_dicom
from film_files import encode_lossless_jpeg, make_grey, refuse, stretch_slowly, window_slowly


def build_lut(entries: list[int], first: int, bits: int, vr: str = "US") -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(entries), first, bits]
    table.add_new("LUTData", vr, entries if vr == "US" else np.array(entries, f"<u{bits // 8}").tobytes())
    return table


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("bits", [9, 10, 12, 13, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_only_the_stored_bits_count_whatever_stands_above_them(
    tmp_path: Path, bits: int, signed: bool, packed: bool
) -> None:
    top = (1 << bits) - 1
    clean = make_grey(top=top).astype(np.int64)
    values = clean - (1 << (bits - 1)) if signed else clean
    container = values & top
    if bits < 16:  # an old overlay in the bits above, PS3.5 8.1.1
        container[::3, ::5] |= 0xFFFF << bits & 0xFFFF
        container[1::3, 1::5] |= 0x8000
    container = container.astype(np.uint16)
    tags = {"BitsStored": bits, "PixelRepresentation": int(signed)}
    if packed:
        frame = encapsulate([encode_lossless_jpeg(container)])
        tags |= {"PixelData": frame, "syntax": uid.JPEGLosslessSV1}
    pixels = decode_film(write_dicom(tmp_path / "film", container, **tags)).pixels
    np.testing.assert_allclose(pixels, stretch_slowly(values), atol=1e-6)


def test_ringing_of_a_lossy_codec_above_the_stored_bits_is_white_and_not_black(tmp_path: Path) -> None:
    stored = make_grey(top=1023 * 4)  # the stream has two bits more than the header says
    frame = imagecodecs.jpeg8_encode(stored, 100, bitspersample=12)
    path = write_dicom(
        tmp_path / "film",
        stored,
        BitsStored=10,
        syntax=uid.JPEGExtended12Bit,
        PixelData=encapsulate([frame]),
        WindowCenter=512,
        WindowWidth=1024,
    )
    pixels = decode_film(path).pixels
    assert (pixels[stored > 1100] == 1).all()
    np.testing.assert_allclose(pixels[stored < 900], stored[stored < 900] / 1023, atol=0.01)


@pytest.mark.parametrize("is_at_the_top", [True, False])
def test_values_below_a_high_bit_at_the_top_are_found_and_a_wrong_high_bit_does_no_harm(
    tmp_path: Path, is_at_the_top: bool
) -> None:
    stored = make_grey(top=4000)
    kept = stored << 4 if is_at_the_top else stored
    pixels = decode_film(write_dicom(tmp_path / "film", kept, BitsStored=12, HighBit=15)).pixels
    np.testing.assert_allclose(pixels, stretch_slowly(stored), atol=1e-6)


@pytest.mark.parametrize("bits", [20, 32])
@pytest.mark.parametrize("signed", [False, True])
def test_32_bits_are_read_to_65536_levels(tmp_path: Path, bits: int, signed: bool) -> None:
    stored = (make_grey(top=60000).astype(np.int64) << (bits - 16)) - (signed << (bits - 1))
    path = write_dicom(tmp_path / "film", stored.astype(np.int32 if signed else np.uint32), BitsStored=bits)
    np.testing.assert_allclose(decode_film(path).pixels, stretch_slowly(stored), atol=1 / 30000)


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize(
    ("value", "limit", "vr"),
    [(-2000, None, "SS"), (63536, None, "US"), (-2000, -1990, "SS"), (-1990, -2000, "SS")],
)
def test_padding_of_signed_pixels_is_air_even_where_its_tag_is_unsigned(
    tmp_path: Path, value: int, limit: int | None, vr: str
) -> None:
    inside = make_grey(top=2000).astype(np.int16) - 1000
    stored = np.full((48, 96), -2000, dtype=np.int16)
    stored[:, :64] = inside
    path = write_dicom(tmp_path / "film", stored, PhotometricInterpretation="MONOCHROME1", BitsStored=16)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", vr, limit)
    dataset.save_as(path)
    pixels = decode_film(path).pixels
    assert not pixels[:, 64:].any()
    np.testing.assert_allclose(pixels[:, :64], 1 - stretch_slowly(inside), atol=1e-6)


def test_padding_is_compared_before_rescale_and_window(tmp_path: Path) -> None:
    stored = make_grey(top=2000)
    stored[:8] = 2001
    path = write_dicom(
        tmp_path / "film",
        stored,
        PixelPaddingValue=2001,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=1000,
        WindowWidth=3000,
        VOILUTFunction="LINEAR_EXACT",
    )
    pixels = decode_film(path).pixels
    assert not pixels[:8].any()
    slow = [[window_slowly(2 * v - 100, 1000, 3000, "LINEAR_EXACT") for v in row] for row in stored[8:].tolist()]
    np.testing.assert_allclose(pixels[8:], slow, atol=1e-6)


# ---------------------------------------------------------------- Modality LUT and VOI


@pytest.mark.parametrize(("vr", "bits"), [("US", 16), ("OW", 16), ("OW", 8)])
@pytest.mark.parametrize("first", [0, 500, -800])
def test_a_modality_table_of_any_form_is_looked_up_with_its_ends_held(
    tmp_path: Path, vr: str, bits: int, first: int
) -> None:
    signed = first < 0
    stored = make_grey(top=2000).astype(np.int16) - 1000 if signed else make_grey(top=2000)
    entries = [round(math.sqrt(i / 999) * (2**bits - 1)) for i in range(1000)]
    item = build_lut(entries, first & 0xFFFF if vr == "OW" else first, bits, vr)
    path = write_dicom(tmp_path / "film", stored)
    dataset = pydicom.dcmread(path)
    item.add_new("ModalityLUTType", "LO", "US")
    item["LUTDescriptor"].VR = "US" if item.LUTDescriptor[1] >= 0 else "SS"
    dataset.ModalityLUTSequence = [item]
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    dataset.save_as(path)
    slow = np.array(
        [
            [window_slowly(entries[min(max(v - first, 0), 999)], 2 ** (bits - 1), 2**bits, "LINEAR") for v in row]
            for row in stored.tolist()
        ]
    )
    np.testing.assert_allclose(decode_film(path).pixels, slow, atol=1e-6)


def test_a_voi_table_is_looked_up_after_the_modality_table(tmp_path: Path) -> None:
    stored = make_grey(top=2000)
    modality = [2000 - i for i in range(2001)]
    voi = [i * i // 1000 for i in range(2001)]
    path = write_dicom(
        tmp_path / "film",
        stored,
        ModalityLUTSequence=[build_lut(modality, 0, 16)],
        VOILUTSequence=[build_lut(voi, 0, 16), build_lut([0, 1], 0, 16)],
    )
    slow = [[voi[modality[v]] / max(voi) for v in row] for row in stored.tolist()]
    np.testing.assert_allclose(decode_film(path).pixels, slow, atol=1e-6)


def test_a_lookup_table_that_is_too_short_is_refused(tmp_path: Path) -> None:
    item = build_lut(list(range(100)), 0, 16)
    item.LUTDescriptor = [200, 0, 16]
    assert "lookup table" in refuse(write_dicom(tmp_path / "Xfilm", make_grey(top=2000), VOILUTSequence=[item]))


@pytest.mark.parametrize(("center", "width", "function"), [(800, 1, "LINEAR"), (800, 0.5, "LINEAR_EXACT")])
def test_the_narrowest_windows_are_thresholds(tmp_path: Path, center: float, width: float, function: str) -> None:
    stored = make_grey(top=2000)
    path = write_dicom(tmp_path / "film", stored, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    slow = [[window_slowly(v, center, width, function) for v in row] for row in stored.tolist()]
    np.testing.assert_allclose(decode_film(path).pixels, slow, atol=1e-6)


@pytest.mark.parametrize("tags", [{"RescaleSlope": 0}, {"RescaleSlope": None, "RescaleIntercept": None}])
def test_a_rescale_that_says_nothing_changes_nothing(tmp_path: Path, tags: dict[str, float | None]) -> None:
    stored = make_grey(top=2000)
    np.testing.assert_allclose(
        decode_film(write_dicom(tmp_path / "film", stored, **tags)).pixels, stretch_slowly(stored), atol=1e-6
    )


def test_a_window_function_that_nobody_knows_is_left_for_the_percentiles(tmp_path: Path) -> None:
    stored = make_grey(top=2000)
    path = write_dicom(tmp_path / "film", stored, WindowCenter=900, WindowWidth=500, VOILUTFunction="CUBIC")
    np.testing.assert_allclose(decode_film(path).pixels, stretch_slowly(stored), atol=1e-6)


@pytest.mark.parametrize("groups", ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"])
def test_window_rescale_and_spacing_of_an_enhanced_file_are_found_in_its_functional_groups(
    tmp_path: Path, groups: str
) -> None:
    stored = make_grey(top=2000)
    window, rescale, measures, group, other = (Dataset() for _ in range(5))
    window.WindowCenter, window.WindowWidth = 600, 900
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -500
    measures.PixelSpacing = [0.3, 0.3]
    group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [rescale]
    group.PixelMeasuresSequence = [measures]
    other.FrameVOILUTSequence = []
    film = decode_film(write_dicom(tmp_path / "film", stored, **{groups: [group, other]}))
    slow = [[window_slowly(2 * v - 500, 600, 900, "LINEAR") for v in row] for row in stored.tolist()]
    np.testing.assert_allclose(film.pixels, slow, atol=1e-6)
    assert film.spacing_mm == pytest.approx(0.3)


# ---------------------------------------------------------------- palettes


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 20])
def test_a_palette_image_is_read_by_its_colours(tmp_path: Path, bits: int, first: int) -> None:
    stored = make_grey(top=255)
    channels = {
        name: [round(f(i / 199) * (2**bits - 1)) for i in range(200)]
        for name, f in (("Red", lambda t: 1 - t), ("Green", lambda t: t), ("Blue", lambda t: t * t))
    }
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsStored": 8}
    for name, entries in channels.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [200, first, bits]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(entries, f"<u{bits // 8}").tobytes()
    pixels = decode_film(write_dicom(tmp_path / "film", stored.astype(np.uint8), **tags)).pixels
    weights = {"Red": 0.299, "Green": 0.587, "Blue": 0.114}
    slow = [
        [
            sum(weights[name] * channels[name][min(max(v - first, 0), 199)] for name in weights) / (2**bits - 1)
            for v in row
        ]
        for row in stored.tolist()
    ]
    np.testing.assert_allclose(pixels, slow, atol=1e-6)


def test_a_palette_image_without_palette_is_refused(tmp_path: Path) -> None:
    refuse(write_dicom(tmp_path / "Xfilm", make_grey(), PhotometricInterpretation="PALETTE COLOR"))


# ---------------------------------------------------------------- the header


def test_the_header_tells_date_maker_modality_and_what_was_burned_in(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "film",
        make_grey(),
        StudyDate="20240131",
        Manufacturer="Canon Inc. ",
        BurnedInAnnotation="YES",
        Modality="DX",
        BodyPartExamined="CHEST",
    )
    header = decode_film(path).header
    assert (header.study_date, header.manufacturer, header.burned_in) == ("20240131", "Canon Inc.", "YES")
    assert (header.modality, header.body_part, header.frames) == ("DX", "CHEST", 1)


@pytest.mark.parametrize(
    ("text", "date"), [("2024.01.31", "20240131"), ("2024-01-31", "20240131"), ("20241331", ""), ("unknown", "")]
)
def test_a_date_is_one_or_nothing(text: str, date: str) -> None:
    dataset = Dataset()
    dataset.add_new("StudyDate", "LO", text)
    assert read_film_header(dataset).study_date == date


@pytest.mark.parametrize("value", [b"\xff\xfe\x00\x01", b"", b"A\\\\B", b"\x1b$B!!", bytes(300)])
@pytest.mark.parametrize("vr", ["LO", "UN", "IS", "SQ", "US"])
def test_a_header_full_of_nonsense_is_no_error(value: bytes, vr: str) -> None:
    dataset = Dataset()
    for keyword in ("StudyDate", "Manufacturer", "NumberOfFrames", "PatientAge", "PatientID", "BurnedInAnnotation"):
        tag = Tag(keyword)
        dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    header = read_film_header(dataset)
    assert (header.study_date, header.burned_in, header.frames) == ("", "", 1)
    assert math.isnan(header.age_years) or vr == "US"
    assert header.manufacturer == "A" or b"A" not in value or vr != "LO"
