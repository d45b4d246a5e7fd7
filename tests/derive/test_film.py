import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from chess_cxr.decode.film import decode_film
from chess_cxr.derive.film import KINDS, write_derived_film
from chess_cxr.derive.grey import build_grey_scale, change_values
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.sources.phantom.film import write_phantom_films
from dicom_files import write_dicom

REAL = (
    "966_fixed",
    "RG1_J2KI",
    "RG1_JLSN",
    "RG2_JLSL",
    "RG2_JPLL",
    "RG3_J2KR",
    "siim_850819",
    "siim_850819_fake_MONOCHROME1",
)
RADIOGRAPH = {
    "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": "1.2.3.1", "StudyInstanceUID": "1.2.3.2",
    "SeriesInstanceUID": "1.2.3.3", "FrameOfReferenceUID": "1.2.3.4", "PatientName": "Doe^Jane", "PatientID": "MRN-1",
    "Modality": "CR", "Manufacturer": "Maker", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
}  # fmt: skip
SUPPRESSED, NODULE = "bone-suppressed", "synthetic nodule"


def draw_change(shape: tuple[int, ...], strength: float = -0.15) -> np.ndarray:
    """A round change that fades out, exactly 0 beyond a third of the film."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return (strength * np.clip(1 - 9 * (y**2 + x**2), 0, 1)).astype(np.float32)


def draw_ramp(height: int = 64, width: int = 80, top: int = 4095) -> np.ndarray:
    ramp = np.linspace(0, top, height * width).reshape(height, width)
    return ramp[:, ::-1].astype(np.uint16 if top > 255 else np.uint8)


def write_radiograph(path: Path, stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: object) -> Path:
    """Write a computed radiograph that names its series and its maker."""
    return write_dicom(path, stored, syntax, **(RADIOGRAPH | tags))


def read_stored(path: Path) -> np.ndarray:
    """What pydicom's own decoders say is stored, without any window or rescale.

    Decoders of lossy JPEG may differ by a level (ISO 10918-2): it is Pillow's there, on libjpeg as ours is.
    """
    film = pydicom.dcmread(path)
    if film.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        film.pixel_array_options(decoding_plugin="pillow")
    return film.pixel_array.astype(np.int64)


def list_greys(film: pydicom.Dataset) -> np.ndarray:
    """The grey of each stored value of a film with a LINEAR window (PS3.3 C.11.2.1.2.1), or of 8 bits without one."""
    grey = np.arange(2**film.BitsStored) / 255
    if "WindowCenter" in film:
        modality = np.arange(2**film.BitsStored) * float(film.get("RescaleSlope", 1)) + film.get("RescaleIntercept", 0)
        center, width = (float(np.atleast_1d(film[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        grey = np.clip((modality - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return 1 - grey if film.PhotometricInterpretation == "MONOCHROME1" else grey


def check_derived(source: Path, derived: Path, change: np.ndarray) -> None:
    """The derived film shows film + change to half a level, and holds the same values to the bit where nothing is."""
    film, made = pydicom.dcmread(source), pydicom.dcmread(derived)
    before, after = decode_film(source).pixels, decode_film(derived).pixels
    greys = list_greys(made)
    level = np.abs(np.diff(greys)).max()
    wanted = np.clip(before + change, greys.min(), greys.max())
    assert np.abs(after - wanted).max() <= level / 2 + 1e-6
    assert np.abs(change).max() > 10 * level
    stored, kept = read_stored(derived), read_stored(source)
    np.testing.assert_array_equal(stored[change == 0], kept[change == 0])
    assert (stored != kept).any()
    for name in ("BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation", "Rows", "Columns"):
        assert made[name].value == film[name].value


# ---------------------------------------------------------------- pixels


@pytest.mark.real_films
@pytest.mark.parametrize("name", REAL)
def test_a_real_film_is_changed_where_asked_and_nowhere_else(real_films: Path, tmp_path: Path, name: str) -> None:
    source = real_films / "dicom" / f"{name}.dcm"
    change = draw_change(decode_film(source).pixels.shape)
    derived = write_derived_film(source, change, tmp_path, kind=SUPPRESSED)
    assert derived == tmp_path / f"{name}.dcm"
    check_derived(source, derived, change)


def test_phantoms_of_either_polarity_and_compressed_ones_are_changed_alike(tmp_path: Path) -> None:
    write_phantom_films(tmp_path / "in", 2, 4, seed=3, size=96)
    seen = set()
    for source in sorted((tmp_path / "in").rglob("*.dcm")):
        film = pydicom.dcmread(source)
        seen |= {film.PhotometricInterpretation, film.file_meta.TransferSyntaxUID}
        for strength in (-0.3, 0.3):
            change = draw_change((96, 96), strength)
            derived = write_derived_film(source, change, tmp_path / "out", kind=NODULE)
            check_derived(source, derived, change)
            assert pydicom.dcmread(derived).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert seen == {"MONOCHROME1", "MONOCHROME2", ExplicitVRLittleEndian, JPEG2000Lossless}


@pytest.mark.parametrize("dark_bone", [False, True])
def test_values_are_those_that_a_search_through_all_of_them_finds(dark_bone: bool) -> None:
    rng = np.random.default_rng(4)
    grey = np.clip(np.linspace(-0.4, 1.3, 60).astype(np.float32), 0, 1)
    grey = np.repeat(grey, 2)  # two values for each grey
    grey = 1 - grey if dark_bone else grey
    is_film = np.ones(len(grey), bool)
    is_film[[0, 50, 51]] = False
    values = rng.integers(0, len(grey), (20, 30)).astype(np.uint8)
    change = rng.choice([0, -0.3, 0.004, 0.01, 0.9], (20, 30)).astype(np.float32)
    found = change_values(values, change, grey, build_grey_scale(grey, is_film))
    for old, added, new in zip(values.ravel().tolist(), change.ravel(), found.ravel().tolist(), strict=True):
        if added == 0 or not is_film[old]:
            assert new == old
            continue
        target = min(max(float(grey[old] + added), 0.0), 1.0)
        gap = {value: abs(float(grey[value]) - target) for value in range(len(grey)) if is_film[value]}
        assert gap[new] <= min(gap.values()) + 1e-6
        alike = [value for value in gap if grey[value] == grey[new]]
        assert abs(new - old) == min(abs(value - old) for value in alike)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 2000, "WindowWidth": 1000},
        {"WindowCenter": [-500, 7], "WindowWidth": [900, 8], "RescaleSlope": "0.5", "RescaleIntercept": "-1024"},
        {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
        {"BitsStored": 16, "WindowCenter": 1500, "WindowWidth": 2500},
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2000, "WindowWidth": 3000},
    ],
)
def test_every_kind_of_window_is_turned_around(tmp_path: Path, syntax: str, tags: dict[str, object]) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp(), syntax, **tags)
    change = draw_change((64, 80), 0.2)
    derived = write_derived_film(source, change, tmp_path / "out", kind=NODULE)
    wanted = np.clip(decode_film(source).pixels + change, 0, 1)
    np.testing.assert_allclose(decode_film(derived).pixels, wanted, atol=1.1e-3)
    np.testing.assert_array_equal(read_stored(derived)[change == 0], read_stored(source)[change == 0])


def test_lookup_tables_are_turned_around_too(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 16])
    table.add_new(0x00283006, "OW", (65_535 * np.linspace(0, 1, 4096) ** 2).astype("<u2").tobytes())
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp(), VOILUTSequence=Sequence([table]))
    change = draw_change((64, 80), -0.2)
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED)
    wanted = np.clip(decode_film(source).pixels + change, 0, 1)
    np.testing.assert_allclose(decode_film(derived).pixels, wanted, atol=3e-4)


def test_signed_values_keep_their_sign(tmp_path: Path) -> None:
    stored = draw_ramp().astype(np.int16) - 2048
    source = write_radiograph(tmp_path / "a.dcm", stored, WindowCenter=-300, WindowWidth=3000)
    change = draw_change((64, 80), -0.4)
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED)
    np.testing.assert_allclose(
        decode_film(derived).pixels, np.clip(decode_film(source).pixels + change, 0, 1), atol=2e-4
    )
    assert read_stored(derived).min() < 0
    np.testing.assert_array_equal(read_stored(derived)[change == 0], stored[change == 0])


def test_a_film_without_a_window_keeps_the_percentiles_of_its_source(tmp_path: Path) -> None:
    stored = draw_ramp()
    source = write_radiograph(tmp_path / "a.dcm", stored, RescaleSlope="2", RescaleIntercept="-50", WindowWidth=0)
    change = np.full(stored.shape, -0.5, np.float32)  # own percentiles would hide this change
    change[:8] = 0
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED)
    wanted = np.clip(decode_film(source).pixels + change, 0, 1)
    np.testing.assert_allclose(decode_film(derived).pixels, wanted, atol=2e-4)
    np.testing.assert_array_equal(read_stored(derived)[:8], stored[:8])
    film = pydicom.dcmread(derived)
    ordered = np.sort(stored.ravel()).astype(int)
    low, high = (2 * ordered[int(np.ceil(share * stored.size)) - 1] - 50 for share in (0.005, 0.995))
    assert (film.WindowCenter, film.WindowWidth) == ((low + high + 1) / 2, high - low + 1)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_is_no_part_of_the_film_and_stays(tmp_path: Path, syntax: str) -> None:
    stored = draw_ramp() // 2 + 1000
    stored[20:40, 30:50] = 1234
    stored[stored == 1235] = 1236
    source = write_radiograph(
        tmp_path / "a.dcm", stored, syntax, WindowCenter=2000, WindowWidth=2400, PixelPaddingValue=1234
    )
    change = np.full(stored.shape, -0.05, np.float32)
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED)
    np.testing.assert_array_equal(read_stored(derived) == 1234, stored == 1234)


@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_bits_that_are_no_part_of_the_value_are_left_behind(tmp_path: Path, high_bit: int) -> None:
    """Old devices kept overlays in them; an overlay whose bits are gone goes too."""
    ramp = draw_ramp()
    overlay = 1 << 15 if high_bit == 11 else 1
    stored = (ramp << (high_bit - 11)) | (overlay * (ramp % 7 == 0)).astype(np.uint16)
    source = write_radiograph(tmp_path / "a.dcm", stored, WindowCenter=2000, WindowWidth=3000)
    film = pydicom.dcmread(source)
    film.HighBit = high_bit
    film.add_new(0x60000010, "US", 64)
    film.add_new(0x60000011, "US", 80)
    film.add_new(0x60000102, "US", 15)
    film.save_as(source)
    change = draw_change((64, 80))
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED)
    made = pydicom.dcmread(derived)
    assert made.HighBit == 11 and 0x60000010 not in made and 0x60000102 not in made
    raw = np.frombuffer(made.PixelData, "<u2").reshape(ramp.shape)
    np.testing.assert_array_equal(raw[change == 0], ramp[change == 0])
    wanted = np.clip(decode_film(source).pixels + change, 0, 1)
    np.testing.assert_allclose(decode_film(derived).pixels, wanted, atol=2e-4)


@pytest.mark.real_films
def test_a_source_compressed_with_loss_is_said_to_be(real_films: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.dcm"
    film = pydicom.dcmread(real_films / "dicom" / "siim_850819.dcm")
    for name in ("LossyImageCompression", "LossyImageCompressionMethod"):
        del film[name]
    film.save_as(source)
    made = pydicom.dcmread(write_derived_film(source, np.zeros((1024, 1024), "f"), tmp_path / "out", kind=SUPPRESSED))
    assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert 5 < made.LossyImageCompressionRatio < 20
    plain = write_radiograph(tmp_path / "b.dcm", draw_ramp())
    made = pydicom.dcmread(write_derived_film(plain, np.zeros((64, 80), "f"), tmp_path / "out", kind=SUPPRESSED))
    assert "LossyImageCompression" not in made


# ---------------------------------------------------------------- header


def derive(tmp_path: Path, kind: str = SUPPRESSED, seed: int | None = 1, **tags: object) -> pydicom.Dataset:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp(), **tags)
    return pydicom.dcmread(write_derived_film(source, draw_change((64, 80)), tmp_path / "out", kind=kind, seed=seed))


def test_the_film_stands_beside_its_source_and_says_what_it_is(tmp_path: Path) -> None:
    made = derive(tmp_path, SeriesDescription="Chest PA", DerivationDescription="Cropped", BurnedInAnnotation="NO")
    assert (made.PatientName, made.PatientID, made.Manufacturer) == ("Doe^Jane", "MRN-1", "Maker")
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID) == ("1.2.3.2", "1.2.3.4")
    assert made.SOPInstanceUID != "1.2.3.1" and made.SeriesInstanceUID != "1.2.3.3"
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert made.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
    assert made.SeriesDescription == "Chest PA bone-suppressed (derived, chess-cxr)"
    assert made.DerivationDescription.startswith("Bone-suppressed") and made.DerivationDescription.endswith("Cropped")
    assert made.ContentQualification == "RESEARCH" and made.BurnedInAnnotation == "NO"
    (reference,) = made.SourceImageSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (made.SOPClassUID, "1.2.3.1")
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert made.DerivationCodeSequence[0].CodeValue == "113062"
    (equipment,) = made.ContributingEquipmentSequence
    assert (equipment.Manufacturer, equipment.PurposeOfReferenceCodeSequence[0].CodeValue) == ("chess-cxr", "109102")
    assert "SYNTHETIC" not in str(made) and "SyntheticData" not in made


def test_a_synthetic_film_says_so_wherever_somebody_may_look(tmp_path: Path) -> None:
    made = derive(tmp_path, NODULE, SeriesDescription="x" * 64, ImageComments="kept")
    assert made.SyntheticData == "YES" and made.ImageType == ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"]
    for name in ("SeriesDescription", "DerivationDescription", "ImageComments"):
        assert "SYNTHETIC" in made[name].value
    assert len(made.SeriesDescription) <= 64 and made.ImageComments.endswith("kept")
    assert "SYNTHETIC" in made.ContributingEquipmentSequence[0].ContributionDescription
    assert made.DerivationCodeSequence[0].CodeValue == "113042"


def test_nothing_of_the_source_is_kept_that_is_untrue_now(tmp_path: Path) -> None:
    inner = Dataset()
    inner.CodeValue = "kept"
    inner.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "hidden")
    film = pydicom.dcmread(write_radiograph(tmp_path / "b.dcm", draw_ramp()))
    film.ViewCodeSequence = Sequence([inner])
    film.private_block(0x0019, "MAKER", create=True).add_new(1, "LO", "hidden")
    film.IconImageSequence, film.InstanceCreationDate = Sequence([Dataset()]), "20200101"
    film.add_new(0x00280107, "US", 9)  # Largest Image Pixel Value
    film.save_as(tmp_path / "b.dcm")
    derived = write_derived_film(tmp_path / "b.dcm", draw_change((64, 80)), tmp_path / "out", kind=SUPPRESSED)
    assert b"hidden" not in derived.read_bytes()
    made = pydicom.dcmread(derived)
    assert made.ViewCodeSequence[0].CodeValue == "kept"
    assert not {"IconImageSequence", "InstanceCreationDate", "LargestImagePixelValue"} & set(made.dir())


def test_one_seed_gives_one_file_and_no_seed_or_another_gives_others(tmp_path: Path) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp())
    change = draw_change((64, 80))

    def write(seed: int | None, strength: float = 1.0) -> Path:
        return write_derived_film(source, change * np.float32(strength), tmp_path / "out", kind=NODULE, seed=seed)

    assert write(5).read_bytes() == write(5).read_bytes()
    made = [pydicom.dcmread(write(*given)) for given in ((5,), (6,), (None,), (None,), (5, 2.0))]
    assert len({film.SOPInstanceUID for film in made}) == 5
    assert made[0].SeriesInstanceUID == made[4].SeriesInstanceUID


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("kind", KINDS)
def test_a_checker_of_others_finds_no_fault_that_the_source_had_not(tmp_path: Path, kind: str) -> None:
    def find_faults(path: Path) -> set[str]:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
        return {line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")}

    write_phantom_films(tmp_path / "in", 1, 4, seed=3, size=64)
    for source in (tmp_path / "in").rglob("*.dcm"):
        derived = write_derived_film(source, draw_change((64, 64)), tmp_path / "out", kind=kind)
        unknown = [fault for fault in find_faults(derived) - find_faults(source) if "(0x0008,0x001c)" not in fault]
        assert unknown == []  # (0008,001C) Synthetic Data is younger than the checker
        broken = pydicom.dcmread(derived)
        del broken.SourceImageSequence[0].ReferencedSOPClassUID
        broken.save_as(tmp_path / "broken.dcm")
        assert len(find_faults(tmp_path / "broken.dcm")) > len(find_faults(derived))  # it does look


@pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="no dcm2pnm (Debian: dcmtk)")
def test_another_toolkit_shows_the_same_film(tmp_path: Path) -> None:
    write_phantom_films(tmp_path / "in", 1, 3, seed=3, size=64)
    for source in sorted((tmp_path / "in").rglob("*.dcm")):
        derived = write_derived_film(source, draw_change((64, 64)), tmp_path / "out", kind=SUPPRESSED)
        subprocess.run(["dcm2pnm", "+on", "+Wi", "1", str(derived), str(tmp_path / "a.png")], check=True, timeout=60)
        shown = np.asarray(Image.open(tmp_path / "a.png").convert("L")) / 255
        np.testing.assert_allclose(shown, decode_film(derived).pixels, atol=1.6 / 255)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 12])
def test_text_is_white_on_black_in_a_corner_only_if_asked_for(tmp_path: Path, photometric: str, bits: int) -> None:
    stored = draw_ramp(400, 500, 2**bits - 1)
    window = {} if bits == 8 else {"WindowCenter": 2048, "WindowWidth": 3000}
    source = write_radiograph(tmp_path / "a.dcm", stored, PhotometricInterpretation=photometric, **window)
    none = np.zeros(stored.shape, np.float32)
    plain = write_derived_film(source, none, tmp_path / "out", kind=SUPPRESSED)
    np.testing.assert_array_equal(read_stored(plain), stored)
    text = KINDS[SUPPRESSED].text
    written = write_derived_film(source, none, tmp_path / "out", kind=SUPPRESSED, text=text)
    assert "BurnedInAnnotation" not in pydicom.dcmread(written)  # PS3.3: of the patient's identity, and this names none
    shown, rows = decode_film(written).pixels, np.flatnonzero((read_stored(written) != stored).any(1))
    plate = shown[-18:, :170]
    assert {0.0, 1.0} == set(np.unique(plate).tolist()) and 0.05 < plate.mean() < 0.5
    # The window's own ends: a viewer that takes all values for its window shows no other film for them
    assert np.unique(read_stored(written)[-18:, :170]).tolist() == ([0, 255] if bits == 8 else [548, 3547])
    assert rows.min() > 360
    letter_rows = np.flatnonzero((shown[rows.min() :, :150] == 1).any(1) & (shown[rows.min() :, :150] == 0).any(1))
    assert len(letter_rows) >= 10


@pytest.mark.parametrize("side", [512, 1024, 3000])
def test_letters_do_not_run_together(tmp_path: Path, side: int) -> None:
    Image.fromarray(np.full((side, side), 99, np.uint8)).save(tmp_path / "a.png")
    none = np.zeros((side, side), np.float32)
    text = KINDS[SUPPRESSED].text
    written = write_derived_film(tmp_path / "a.png", none, tmp_path / "out", kind=SUPPRESSED, text=text)
    with Image.open(written) as picture:
        parts, _ = cv2.connectedComponents((np.asarray(picture) == 255).astype(np.uint8))
    assert parts - 1 >= 0.75 * len(text.replace(" ", ""))


def test_text_that_could_not_be_read_is_refused(tmp_path: Path) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp(64, 80))
    for text in ("BONE-SUPPRESSED, DERIVED", "Knochen gelöscht", "two\nlines", "x" * 65):
        with pytest.raises((UsageError, Undecodable), match="text"):
            write_derived_film(source, np.zeros((64, 80), "f"), tmp_path / "out", kind=SUPPRESSED, text=text)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".tif", "TIFF"), (".jpg", "JPEG")])
def test_an_image_of_8_bits_gives_png_of_8_bits(tmp_path: Path, suffix: str, kind: str) -> None:
    source = tmp_path / f"Doe_Jane{suffix}"
    Image.fromarray(draw_ramp(top=255)).save(source, kind)
    change = draw_change((64, 80))
    derived = write_derived_film(source, change, tmp_path / "out", kind=SUPPRESSED, model="abc")
    film = decode_film(source).pixels
    np.testing.assert_allclose(decode_film(derived).pixels, np.clip(film + change, 0, 1), atol=0.5001 / 255)
    with Image.open(derived) as image:
        assert (image.mode, image.format) == ("L", "PNG")
        np.testing.assert_array_equal(np.asarray(image)[change == 0], np.rint(film * 255)[change == 0])
        assert (
            image.info["chess-cxr"]
            == f"bone-suppressed, derived from {hashlib.sha256(source.read_bytes()).hexdigest()}"
        )
        assert image.info["Model"] == "abc"
    assert b"Jane" not in derived.read_bytes()


def write_jsrt(path: Path, stored: np.ndarray) -> None:
    path.write_bytes(np.pad(stored, ((0, 2048 - 64), (0, 2048 - 80)), mode="reflect").astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("name", "write", "air_is_bright"),
    [
        ("a.png", lambda path, stored: Image.fromarray(stored).save(path), False),
        ("a.tif", lambda path, stored: Image.fromarray(stored).save(path), False),
        ("b.tif", lambda path, stored: Image.fromarray(stored).save(path, tiffinfo={262: 0}), True),
        ("JPCLN001.IMG", write_jsrt, True),
    ],
)
def test_an_image_of_16_bits_keeps_depth_polarity_and_what_is_not_changed(
    tmp_path: Path, name: str, write: Callable[[Path, np.ndarray], None], air_is_bright: bool
) -> None:
    source = tmp_path / name
    write(source, draw_ramp())
    film = decode_film(source).pixels
    change = draw_change(film.shape, 0.1)
    derived = write_derived_film(source, change, tmp_path / "out", kind=NODULE)
    assert derived.suffix == ".png"
    plain = write_derived_film(source, np.zeros_like(change), tmp_path / "out", kind=NODULE)
    with Image.open(derived) as image, Image.open(plain) as same:
        assert (
            image.mode == "I;16" and "SYNTHETIC" in image.info["chess-cxr"] and "SYNTHETIC" in image.info["Description"]
        )
        after, before = np.asarray(image).astype(int), np.asarray(same).astype(int)
    np.testing.assert_array_equal(before[:64, :80], draw_ramp())
    np.testing.assert_array_equal(after[change == 0], before[change == 0])
    inside = (film > 0.05) & (film < 0.85) & (change > 0)
    low, high = np.percentile(before, (0.5, 99.5), method="inverted_cdf")
    added = (after - before)[inside] / (high - low) * (-1 if air_is_bright else 1)
    np.testing.assert_allclose(added, change[inside], atol=0.51 / (high - low))


# ---------------------------------------------------------------- refusals and files


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 2, "PixelData": bytes(2 * 2 * 64 * 80)}, "several frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsAllocated": 8, "BitsStored": 8}, "colour"),
        ({"SOPInstanceUID": ""}, "UID"),
        ({"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTSequence": "up and down"}, "not monotonic"),
    ],
)
def test_what_cannot_be_derived_from_is_refused_in_one_line(
    tmp_path: Path, tags: dict[str, object], reason: str
) -> None:
    if "VOILUTSequence" in tags:
        table = Dataset()
        table.add_new(0x00283002, "US", [4096, 0, 16])
        table.add_new(0x00283006, "OW", (np.abs(np.arange(4096) - 2000) + 1).astype("<u2").tobytes())
        tags = tags | {"VOILUTSequence": Sequence([table])}
    pixels = np.zeros((64, 80, 3), np.uint8) if "SamplesPerPixel" in tags else draw_ramp()
    source = write_radiograph(tmp_path / "a.dcm", pixels, **({"PlanarConfiguration": 0} | tags))
    check_refusal(source, tmp_path / "out", reason)


def check_refusal(source: Path, out: Path, reason: str) -> None:
    with pytest.raises(ChessError, match=reason) as caught:
        write_derived_film(source, np.zeros((64, 80), np.float32), out, kind=SUPPRESSED)
    said = str(caught.value)
    assert "\n" not in said and "Doe" not in said and "MRN" not in said
    assert not out.exists()


def test_big_endian_volumes_and_what_is_no_film_are_refused_in_one_line(tmp_path: Path) -> None:
    check_refusal(
        write_radiograph(tmp_path / "a.dcm", draw_ramp(), ExplicitVRBigEndian), tmp_path / "out", "big-endian"
    )
    (tmp_path / "b.mha").write_bytes(b"ObjectType = Image\nNDims = 2\n")
    check_refusal(tmp_path / "b.mha", tmp_path / "out", "MetaImage")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    check_refusal(tmp_path / "c.png", tmp_path / "out", "damaged")
    check_refusal(tmp_path / "absent.dcm", tmp_path / "out", "not found")
    deep = Image.fromarray(np.linspace(0, 90_000, 64 * 80).reshape(64, 80).astype(np.int32))
    deep.save(tmp_path / "d.tif")
    check_refusal(tmp_path / "d.tif", tmp_path / "out", "16 bits")


@pytest.mark.real_films
def test_hostile_files_give_a_film_or_one_line(real_films: Path, tmp_path: Path) -> None:
    given = sorted((real_films / "nasty").rglob("*.dcm"))
    written = 0
    for source in given:
        try:
            shape = decode_film(source).pixels.shape
        except Undecodable:
            shape = (64, 80)
        try:
            write_derived_film(source, np.zeros(shape, np.float32), tmp_path / "out", kind=SUPPRESSED)
            written += 1
        except ChessError as error:
            assert "\n" not in str(error) and source.name not in str(error)
    assert len(given) > 20 and len(list((tmp_path / "out").iterdir())) == written > 0


@pytest.mark.parametrize(
    "change",
    [np.zeros((80, 64), np.float32), np.zeros((64, 80), np.int16), np.full((64, 80), np.nan), np.zeros((1, 64, 80))],
)
def test_a_change_that_does_not_fit_is_refused(tmp_path: Path, change: np.ndarray) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp())
    Image.fromarray(draw_ramp()).save(tmp_path / "a.png")
    for given in (source, tmp_path / "a.png"):
        with pytest.raises(UsageError, match="change"):
            write_derived_film(given, change, tmp_path / "out", kind=SUPPRESSED)


def test_no_file_is_ever_overwritten_and_names_stay_inside(tmp_path: Path) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp())
    before = source.read_bytes()
    (tmp_path / "a-2.dcm").symlink_to(tmp_path / "nowhere")
    change = draw_change((64, 80))
    names = [write_derived_film(source, change, tmp_path, kind=SUPPRESSED).name for _ in range(2)]
    assert names == ["a-3.dcm", "a-4.dcm"]
    assert source.read_bytes() == before and not (tmp_path / "nowhere").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "sub").mkdir()
    long = write_radiograph(tmp_path / "sub" / f"{'ü' * 120}.dcm", draw_ramp())
    made = [write_derived_film(long, change, tmp_path / "out", kind=SUPPRESSED) for _ in range(2)]
    assert [path.name for path in made] == [f"{'ü' * 100}.dcm", f"{'ü' * 100}-2.dcm"]
    assert all(path.parent == tmp_path / "out" for path in made)


def test_an_out_that_is_a_file_is_named(tmp_path: Path) -> None:
    source = write_radiograph(tmp_path / "a.dcm", draw_ramp())
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="is not a folder"):
        write_derived_film(source, np.zeros((64, 80), "f"), tmp_path / "out", kind=SUPPRESSED)
    with pytest.raises(UsageError, match="kind"):
        write_derived_film(source, np.zeros((64, 80), "f"), tmp_path, kind="other")  # type: ignore[arg-type]
