"""DICOM films made for tests, among them one that holds canaries wherever the standard lets words or numbers stand."""

import io
import struct

import numpy as np
from pydicom import config
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

WORD = "ZYXQVKJWH"
DIGITS = "907418263"
DAY = "19870613"
CANARIES = (WORD.lower(), DIGITS, DAY, "061327.9418", "zyxqv^kjwh")
_VALUES = {
    "AE": WORD, "AS": "987Y", "CS": WORD, "DA": DAY, "DS": DIGITS, "DT": f"{DAY}061327.9418", "IS": DIGITS,
    "LO": WORD, "LT": WORD, "OB": WORD.encode() + b"\0", "OW": WORD.encode() + b"\0", "PN": "Zyxqv^Kjwh", "SH": WORD,
    "ST": WORD, "TM": "061327.9418", "UC": WORD, "UI": f"1.2.{DIGITS}.{DAY}", "UN": WORD.encode() + b"\0",
    "UR": f"http://{WORD}", "UT": WORD, "OB or OW": WORD.encode() + b"\0",
}  # fmt: skip


def draw_pixels(height: int = 48, width: int = 40, bits: int = 12) -> np.ndarray:
    """A grey ramp with noise, of `bits` bits."""
    noise = np.random.default_rng(7).integers(0, 9, (height, width))
    ramp = np.linspace(0, 2**bits - 10, height * width).reshape(height, width)
    return (ramp + noise).astype("<u1" if bits <= 8 else "<u2")


def build_film(pixels: np.ndarray | None = None, bits: int = 12, **changes: object) -> Dataset:
    """A whole computed radiograph of patient "MRN-1"."""
    pixels = draw_pixels(bits=bits) if pixels is None else pixels
    film = Dataset()
    film.SOPClassUID = ComputedRadiographyImageStorage
    film.SOPInstanceUID, film.StudyInstanceUID, film.SeriesInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    film.PatientID, film.PatientName, film.PatientAge, film.PatientSex = "MRN-1", "Doe^Jane", "034Y", "F"
    film.StudyDate, film.StudyTime, film.Modality = "20200131", "101112", "CR"
    film.Rows, film.Columns, film.SamplesPerPixel = pixels.shape[0], pixels.shape[1], 1
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 if bits <= 8 else 16, bits, bits - 1
    film.PixelRepresentation, film.PhotometricInterpretation = 0, "MONOCHROME2"
    film.add_new(0x7FE00010, "OB" if bits <= 8 else "OW", pixels.tobytes())
    for name, value in changes.items():
        setattr(film, name, value)
    return film


def write_film(film: Dataset, syntax: str = ExplicitVRLittleEndian, **meta: object) -> bytes:
    """The content of a file of any transfer syntax that pydicom can write."""
    written = io.BytesIO()
    with config.disable_value_validation():
        film.file_meta = FileMetaDataset()
        film.file_meta.MediaStorageSOPClassUID = film.get("SOPClassUID") or "1.2.3"
        film.file_meta.MediaStorageSOPInstanceUID = film.get("SOPInstanceUID") or "1.2.3"
        film.file_meta.TransferSyntaxUID = syntax
        for name, value in meta.items():
            setattr(film.file_meta, name, value)
        film.save_as(written, enforce_file_format=True)
    return written.getvalue()


def plant_canaries(film: Dataset, spared: set[str]) -> None:
    """Put a canary into every attribute of the data dictionary that can hold one, but for those in `spared`."""
    with config.disable_value_validation():
        for tag, (vr, vm, _, _, keyword) in DicomDictionary.items():
            if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or keyword in spared or keyword == "SpecificCharacterSet":
                continue
            if vr == "SQ":
                film.add_new(tag, "SQ", Sequence([_nest(3)]))
            elif vr in _VALUES and vm != "0":
                # As many values as the attribute has, or the number of them alone would keep them out.
                many = vm.isdigit() and int(vm) > 1 and isinstance(_VALUES[vr], str)
                film.add(DataElement(tag, vr.split(" or ")[0], [_VALUES[vr]] * int(vm) if many else _VALUES[vr]))
        _plant_in_kept_sequences(film)
        _plant_elsewhere(film)


def _nest(depth: int) -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientID, item.TextValue = _VALUES["PN"], WORD, WORD
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = WORD, WORD, WORD
    item.private_block(0x0011, WORD, create=True).add_new(1, "LO", WORD)
    if depth > 1:
        item.ConceptCodeSequence = Sequence([_nest(depth - 1)])
        item.PatientOrientationCodeSequence = Sequence([_nest(depth - 1)])
    return item


def _plant_in_kept_sequences(film: Dataset) -> None:
    """Canaries beside what may stay in sequences that may stay."""
    reference, view, lut = _nest(2), _nest(2), _nest(2)
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = film.SOPClassUID, f"1.2.{DIGITS}"
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "R-10206", "SRT", WORD
    lut.add_new(0x00283002, "US", [4096, 0, 12])
    lut.add_new(0x00283006, "OW", struct.pack("<4096H", *range(4096)))
    lut.LUTExplanation = WORD
    film.ReferencedImageSequence = Sequence([reference])
    film.ViewCodeSequence = Sequence([view])
    film.VOILUTSequence = Sequence([lut])


def _plant_elsewhere(film: Dataset) -> None:
    """Canaries in overlays, curves, private groups and after the pixels."""
    word = WORD.encode() + b"\0"
    film.add_new(0x50003000, "OW", word)
    film.add_new(0x50000030, "SH", WORD)
    film.add_new(0x60003000, "OW", word)
    film.add_new(0x60000022, "LO", WORD)
    film.add_new(0x601E1500, "LO", WORD)
    film.add_new(0xFFFCFFFC, "OB", word)
    block = film.private_block(0x0019, f"{WORD} MAKER", create=True)
    for number, (vr, value) in enumerate(_VALUES.items()):
        if " " not in vr:
            block.add_new(number, vr, value)
    block.add_new(0x80, "SQ", Sequence([_nest(3)]))


def find_canaries(content: bytes) -> list[str]:
    """The canaries that stand in `content`, in any of the usual encodings and in upper or lower case."""
    lower = content.lower()
    return [
        canary
        for canary in CANARIES
        if any(canary.encode(encoding) in lower for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
    ]


SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
