import io
import struct
import warnings
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from chess_cxr.deidentify.film import MAX_READS, deidentify_dicom
from chess_cxr.deidentify.identity import hash_id, hash_uid, shift_day
from chess_cxr.deidentify.profile import EMPTY, EMPTY_IF_UNKNOWN, KEPT, VITAL, Items
from chess_cxr.records import SourceFilm, Undecodable
from dicom_films import (
    CANARIES,
    DIGITS,
    SYNTAXES,
    WORD,
    build_film,
    draw_pixels,
    find_canaries,
    plant_canaries,
    write_film,
)

KEY = b"a key of more than sixteen bytes"
FILM = SourceFilm(Path("film.dcm"), "film.dcm")
NEEDED = VITAL | {"SOPClassUID", "PixelData", "BurnedInAnnotation"}


@pytest.fixture(scope="module")
def planted() -> Dataset:
    film = build_film()
    plant_canaries(film, spared=set(NEEDED))
    return film


def deidentify(content: bytes, film: SourceFilm = FILM, allow_burned_in: bool = False) -> Dataset:
    return pydicom.dcmread(io.BytesIO(deidentify_dicom(content, film, KEY, allow_burned_in).content))


def copy(film: Dataset, syntax: str = ExplicitVRLittleEndian, allow_burned_in: bool = False) -> Dataset:
    return deidentify(write_film(film, syntax), allow_burned_in=allow_burned_in)


def refuse(content: bytes, film: SourceFilm = FILM) -> str:
    with pytest.raises(Undecodable) as caught:
        deidentify_dicom(content, film, KEY)
    return str(caught.value)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_no_canary_of_any_attribute_of_the_dictionary_stands_in_the_copy(planted: Dataset, syntax: str) -> None:
    planted.PixelData = draw_pixels().astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    content = b"Zyxqvkjwh " * 12 + b"\0" * 8 + write_film(planted, syntax)[128:]
    assert len(planted) > 3900
    assert find_canaries(content) == list(CANARIES)
    copied = deidentify_dicom(content, FILM, KEY)
    assert find_canaries(copied.content) == []
    read = pydicom.dcmread(io.BytesIO(copied.content))
    assert np.array_equal(read.pixel_array, draw_pixels())
    assert read.ViewCodeSequence[0].CodeMeaning == "antero-posterior"
    assert read.VOILUTSequence[0].LUTDescriptor == [4096, 0, 12]
    assert read.ReferencedImageSequence[0].ReferencedSOPInstanceUID == hash_uid(KEY, f"1.2.{DIGITS}")


@pytest.mark.parametrize("name", sorted(VITAL | {"SOPClassUID"}))
def test_a_canary_in_what_the_picture_needs_is_refused_or_left_out(name: str) -> None:
    film = build_film()
    vr = dictionary_VR(tag_for_keyword(name)).split(" or ")[0]
    if vr in ("US", "SS"):
        film.add_new(tag_for_keyword(name), "LO", WORD)
    elif vr == "SQ":
        item = Dataset()
        item.LUTExplanation = WORD
        film.add_new(tag_for_keyword(name), "SQ", Sequence([item]))
    else:
        with pydicom.config.disable_value_validation():
            film.add_new(
                tag_for_keyword(name), vr, {"DS": DIGITS, "IS": DIGITS, "OW": WORD.encode() + b"\0"}.get(vr, WORD)
            )
    content = write_film(film)
    assert find_canaries(content)
    try:
        copied = deidentify_dicom(content, FILM, KEY).content
    except Undecodable as error:
        copied = str(error).encode()
    assert find_canaries(copied) == []


def test_words_around_and_behind_the_data_set_do_not_reach_the_copy() -> None:
    meta = {
        "SourceApplicationEntityTitle": WORD,
        "SendingApplicationEntityTitle": WORD,
        "ImplementationVersionName": WORD,
        "PrivateInformationCreatorUID": f"1.2.{DIGITS}",
        "PrivateInformation": WORD.encode() + b"\0",
    }
    content = write_film(build_film(), **meta)
    content = (
        WORD.encode().ljust(128, b"\0") + content[128:] + b"\xfc\xff\xfc\xffOB\0\0\x0a\0\0\0" + WORD.encode() + b"\0"
    )
    copied = deidentify_dicom(content, FILM, KEY).content
    assert find_canaries(copied) == []
    assert copied[:132] == bytes(128) + b"DICM"
    read = pydicom.dcmread(io.BytesIO(copied))
    assert {element.keyword for element in read.file_meta} == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    }
    assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID


@pytest.mark.parametrize("tail", [b"", bytes(512), WORD.encode(), b"\xfc\xff\xfc\xff" + b"OB\0\0\x04\0\0\0" + b"ZYXQ"])
def test_bytes_behind_the_pixels_are_cut_off(tail: bytes) -> None:
    film = build_film()
    film.PixelData = film.PixelData + WORD.encode() + b"\0"
    content = write_film(film) + tail
    copied = deidentify_dicom(content, FILM, KEY).content
    assert find_canaries(copied) == []
    assert pydicom.dcmread(io.BytesIO(copied)).PixelData == build_film().PixelData


def test_only_attributes_of_the_allow_list_are_in_a_copy(planted: Dataset) -> None:
    added = {"PatientID", "PatientName", "PatientIdentityRemoved", "DeidentificationMethod", "PixelData", *EMPTY}
    added |= {"DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified", *EMPTY_IF_UNKNOWN}
    copied = copy(planted)
    assert {element.keyword for element in copied} <= set(KEPT) | added
    assert not any(element.tag.is_private for element in copied)


def test_the_allow_list_keeps_nothing_that_the_standards_profile_removes() -> None:
    """But for what two options keep: dates, moved, and patient characteristics (PS3.15 E.3.6, E.3.7)."""
    selector = pytest.importorskip("dicomanonymizer.dicomfields_selector")
    table = selector.dicom_anonymization_database_selector("dicomfields_2026c")
    by_option = {"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"}
    by_option |= {"PatientSex", "PatientAge"}
    uids = {keyword_for_tag(tag) for tag in [*table["U_TAGS"], *table["X_Z_U_STAR_TAGS"]]}
    treated = {keyword_for_tag(tag) for tag in table["ALL_TAGS"] if len(tag) == 2}
    assert {"PatientName", "StudyDescription", "DeviceSerialNumber"} <= treated
    assert (set(KEPT) & treated) - by_option <= uids
    for name in set(KEPT) & uids:
        assert dictionary_VR(tag_for_keyword(name)) == "UI" or isinstance(KEPT[name], Items)


def test_the_copy_says_what_was_done_to_it() -> None:
    copied = copy(build_film())
    assert copied.PatientIdentityRemoved == "YES"
    assert copied.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [(item.CodeValue, item.CodingSchemeDesignator) for item in copied.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113108", "DCM"), ("113107", "DCM")]
    without = copy(build_film(StudyDate=""))
    assert without.LongitudinalTemporalInformationModified == "REMOVED"
    assert "113107" not in [item.CodeValue for item in without.DeidentificationMethodCodeSequence]


def test_identifiers_are_those_of_a_store_with_the_same_key() -> None:
    copied = deidentify_dicom(write_film(build_film()), FILM, KEY)
    read = pydicom.dcmread(io.BytesIO(copied.content))
    assert copied.patient == read.PatientID == hash_id(KEY, "patient", "MRN-1")
    assert copied.study == hash_id(KEY, "study", "1.2.3.2")
    assert copied.instance == hash_id(KEY, "uid", "1.2.3.1")
    assert read.SOPInstanceUID == hash_uid(KEY, "1.2.3.1")
    assert read.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1"


def test_films_of_unknown_patients_are_patients_of_their_own() -> None:
    content = write_film(build_film(PatientID=""))
    one, other = (deidentify_dicom(content, SourceFilm(Path(name), name), KEY) for name in ("1", "2"))
    assert one.patient != other.patient
    named = deidentify_dicom(content, SourceFilm(Path("1"), "1", patient="MRN-1"), KEY)
    assert named.patient == hash_id(KEY, "patient", "MRN-1")


def test_dates_of_a_patient_move_together_and_their_differences_are_exact() -> None:
    days = ["19991231", "20000101", "20200229", "20200301"]
    moved = [copy(build_film(StudyDate=day)).StudyDate for day in days]
    assert [int(date[:4]) < 1950 for date in moved] == [True] * 4
    ordinals = [pydicom.valuerep.DA(date).toordinal() for date in moved]
    expected = [shift_day(KEY, "MRN-1", day) for day in days]
    assert [b - a for a, b in pairwise(ordinals)] == [b - a for a, b in pairwise(expected)] == [1, 7364, 1]
    other = copy(build_film(StudyDate=days[0], PatientID="MRN-2")).StudyDate
    assert other != moved[0]


def test_times_are_left_out() -> None:
    copied = copy(build_film(AcquisitionDateTime="20200131101112.5", AcquisitionTime="101112", SeriesTime="101112"))
    assert copied.StudyTime == ""
    assert "AcquisitionTime" not in copied
    assert "SeriesTime" not in copied
    assert copied.AcquisitionDateTime == copied.StudyDate


@pytest.mark.parametrize(
    ("age", "kept"),
    [("034Y", "034Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("101Y", "090Y"), ("62", "062Y"), ("003D", "003D")]
    + [("018M", "018M"), ("999Y", None), ("OLD", None), ("34Y^Doe", None)],
)
def test_ages_above_89_become_90(age: str, kept: str | None) -> None:
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        assert copy(build_film(PatientAge=age)).get("PatientAge") == kept


def test_numbers_are_rounded_and_those_that_could_be_an_identifier_are_left_out() -> None:
    film = build_film(KVP="120.12345678", Exposure="907418263", SeriesNumber="12", InstanceNumber="907418263")
    film.RescaleSlope, film.RescaleIntercept, film.PixelSpacing = "0.1234567", "-1024.5", ["0.143", "0.143"]
    film.WindowCenter, film.WindowWidth = "907418263", "100"
    copied = copy(film)
    assert str(copied.KVP) == "120.12"
    assert "Exposure" not in copied
    assert "WindowCenter" not in copied
    assert "WindowWidth" not in copied
    assert (copied.SeriesNumber, copied.InstanceNumber) == (12, None)
    assert str(copied.RescaleSlope) == "0.1234567"
    assert str(copied.RescaleIntercept) == "-1024.5"
    assert list(copied.PixelSpacing) == [0.143, 0.143]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [0, 1])
def test_signed_and_unsigned_attributes_keep_their_values_in_every_transfer_syntax(syntax: str, signed: int) -> None:
    film = build_film(PixelRepresentation=signed)
    film.PixelPaddingValue = -5 if signed else 65_000
    film.add_new(0x00281101, "US", [256, 0, 16])
    copied = copy(film, syntax)
    assert copied.PixelPaddingValue == (-5 if signed else 65_000)
    assert copied.file_meta.TransferSyntaxUID == syntax


def test_a_lookup_table_with_another_length_than_it_says_is_refused() -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [16, 0, 12])
    item.add_new(0x00283006, "OW", bytes(40))
    assert refuse(write_film(build_film(VOILUTSequence=Sequence([item])))) == (
        "DICOM image description holds a value that cannot be kept"
    )


def test_burned_in_words_are_refused_unless_asked_for() -> None:
    declared = build_film(BurnedInAnnotation="YES")
    capture = build_film(SOPClassUID=SecondaryCaptureImageStorage)
    colour = build_film(SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB", bits=8)
    colour.PixelData = colour.PixelData * 3
    reasons = [refuse(write_film(film)) for film in (declared, capture, colour)]
    assert [reason.split(",")[0] for reason in reasons] == [
        "burned-in annotation is declared",
        "secondary capture",
        "colour image",
    ]
    for film in (declared, capture, colour):
        assert copy(film, allow_burned_in=True).PixelData == film.PixelData
    clean = build_film(SOPClassUID=SecondaryCaptureImageStorage, BurnedInAnnotation="NO")
    assert copy(clean).BurnedInAnnotation == "NO"


@pytest.mark.parametrize(
    "sop_class",
    ["1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.2", "1.2.3", ""],
    ids=["encapsulated PDF", "structured report", "CT", "private", "none"],
)
def test_what_is_no_radiograph_is_refused(sop_class: str) -> None:
    assert refuse(write_film(build_film(SOPClassUID=sop_class))) == "DICOM object is not a radiograph"


@pytest.mark.parametrize("name", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_film_without_its_identifiers_is_refused(name: str) -> None:
    film = build_film()
    del film[name]
    assert refuse(write_film(film)) == "DICOM without study, series or instance UID"


@pytest.mark.parametrize(
    "name", ["Rows", "BitsStored", "PixelRepresentation", "PhotometricInterpretation", "PixelData"]
)
def test_a_film_that_does_not_describe_its_pixels_is_refused(name: str) -> None:
    film = build_film()
    del film[name]
    assert refuse(write_film(film)) in ("DICOM image description is incomplete", "DICOM without pixel data")


def test_overlays_in_the_unused_bits_of_pixels_are_cleared_and_the_pixels_stay() -> None:
    pixels = draw_pixels()
    film = build_film(pixels | np.uint16(0x8000))
    film.add_new(0x60000102, "US", 15)
    copied = copy(film)
    assert np.array_equal(np.frombuffer(copied.PixelData, "<u2").reshape(pixels.shape), pixels)
    assert not [element for element in copied if element.tag.group == 0x6000]


def test_the_unused_bits_of_signed_pixels_become_their_sign() -> None:
    pixels = np.array([[-2048, -1], [0, 2047]] * 400, "<i2").reshape(40, 40)
    film = build_film(pixels.view("<u2") & np.uint16(0x0FFF) | np.uint16(0x5000), PixelRepresentation=1)
    assert np.array_equal(np.frombuffer(copy(film).PixelData, "<i2").reshape(40, 40), pixels)
    swapped = build_film(pixels.astype(">i2").view(">u2"), PixelRepresentation=1)
    assert copy(swapped, ExplicitVRBigEndian).PixelData == pixels.astype(">i2").tobytes()


def test_a_deflated_film_is_copied_and_a_deflate_bomb_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_film(build_film(), DeflatedExplicitVRLittleEndian)
    copied = deidentify(content)
    assert copied.PixelData == build_film().PixelData
    assert copied.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    start = 144 + int.from_bytes(content[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-15)
    assert refuse(content[:start] + content[start:-20]) == "deflated DICOM data set ends early"
    monkeypatch.setattr("chess_cxr.decode.dicom.MAX_INFLATED_BYTES", 1 << 20)
    bomb = squeeze.compress(bytes(1 << 22)) + squeeze.flush()
    assert refuse(content[:start] + bomb) == "DICOM data set inflates to more than 1 MiB"


def test_millions_of_tiny_elements_are_refused_before_they_fill_the_memory() -> None:
    tiny = struct.pack("<HHL", 0x0011, 0x1000, 0) * (2 * MAX_READS)
    content = write_film(build_film(), ImplicitVRLittleEndian)
    start = 144 + int.from_bytes(content[140:144], "little")
    assert refuse(content[:start] + tiny + content[start:]) == "DICOM with too many elements"


def test_sequences_nested_without_end_do_not_stop_the_run() -> None:
    nest = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = write_film(build_film())
    assert "damaged" in refuse(content + nest * 20_000)


def test_a_file_without_preamble_and_meta_group_is_copied() -> None:
    content = write_film(build_film(), ImplicitVRLittleEndian)
    start = 144 + int.from_bytes(content[140:144], "little")
    copied = deidentify(content[start:])
    assert copied.PixelData == build_film().PixelData
    assert copied.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


@pytest.mark.real_films
def test_real_films_keep_every_pixel_and_lose_every_identifier(real_films: Path) -> None:
    for path in sorted((real_films / "dicom").glob("*.dcm")):
        content = path.read_bytes()
        source = pydicom.dcmread(path)
        copied = deidentify(content, allow_burned_in=True)
        assert np.array_equal(copied.pixel_array, source.pixel_array), path.name
        assert copied.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
        written = deidentify_dicom(content, FILM, KEY, True).content
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "SOPInstanceUID", "AccessionNumber", "StudyDate"):
            text = source.get_item(name).value.strip(b" \0") if name in source else b""
            assert not text or text not in written, name


@pytest.mark.real_films
def test_hostile_files_end_as_a_copy_or_a_reason_without_a_word_of_theirs(
    real_films: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for path in sorted((real_films / "nasty").rglob("*.dcm")):
        # As a radiograph, so that what comes after the check of the SOP Class is tried too.
        content = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.1\0")
        try:
            ends.append(len(deidentify_dicom(content, FILM, KEY, True).content))
        except Undecodable as error:
            assert "FUZZ" not in str(error)
            ends.append(str(error))
    assert len(ends) == 82
    assert sum(isinstance(end, int) for end in ends) > 30
    assert capfd.readouterr() == ("", "")
