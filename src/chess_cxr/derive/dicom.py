"""Derive a DICOM film of the same patient and study from a DICOM film and a change of its grey, bytes in and bytes out.

This is not de-identification: the derived film belongs to the patient of its source.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from chess_cxr.decode.decoded import count_levels, find_window
from chess_cxr.decode.dicom import decode_dicom, read_dataset
from chess_cxr.decode.dicom_grey import apply_modality, apply_voi, find_padding, find_values, map_to_grey
from chess_cxr.decode.dicom_pixels import PixelModule, StoredPixels, decode_stored, read_pixel_module
from chess_cxr.deidentify.film import write_dicom
from chess_cxr.deidentify.values import build_code
from chess_cxr.derive.grey import change_film
from chess_cxr.records import Undecodable, UsageError

Kind = Literal["bone-suppressed", "synthetic nodule"]
SOFTWARE = "chess-cxr"
# PS3.16 CID 7202, CID 7005 and, for each kind, CID 7203
_SOURCE = ("121322", "DCM", "Source image for image processing operation")
_PROCESSING = ("109102", "DCM", "Processing Equipment")
_LO, _ST = 64, 1024  # greatest lengths of values, PS3.5 6.2
# Attributes that describe the source's pixels or instance and would be untrue of the derived film
_UNTRUE = (
    "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelDataProviderURL", "IconImageSequence",
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "HistogramSequence", "DigitalSignaturesSequence", "MACParametersSequence", "InstanceCreationDate",
    "InstanceCreationTime", "InstanceCreatorUID", "SOPInstanceStatus", "SOPAuthorizationDateTime",
    "SOPAuthorizationComment", "AuthorizationEquipmentCertificationNumber", "SeriesDate", "SeriesTime", "SeriesNumber",
    "DataSetTrailingPadding",
)  # fmt: skip
# PS3.3 C.7.6.1.1.5.1, by the last number of the transfer syntax
_LOSSY_METHODS = {
    "50": "ISO_10918_1", "51": "ISO_10918_1", "81": "ISO_14495_1", "91": "ISO_15444_1", "203": "ISO_15444_15",
}  # fmt: skip


@dataclass(frozen=True)
class KindWords:
    """Names of a kind of derived film: description, code of CID 7203, series, and text to burn in."""

    description: str
    code: tuple[str, str, str]
    series: str
    text: str


KINDS: dict[Kind, KindWords] = {
    "bone-suppressed": KindWords(
        "Bone-suppressed: a network's estimate of ribs and clavicles was subtracted. For research, not for diagnosis.",
        ("113062", "DCM", "Pixel by pixel subtraction"),
        "bone-suppressed",
        "BONE-SUPPRESSED, DERIVED",
    ),
    "synthetic nodule": KindWords(
        "SYNTHETIC: a nodule that the patient does not have was added by a program. Not for diagnosis.",
        ("113042", "DCM", "Pixel by pixel addition"),
        "SYNTHETIC nodule",
        "SYNTHETIC NODULE, DERIVED",
    ),
}


@dataclass(frozen=True)
class Derivation:
    """Derivation of a film.  text: burned in unless empty.  model: name of the weights, for the description.

    seed: makes UIDs, and so the whole file, reproducible; None gives new UIDs and notes the time.
    """

    kind: Kind
    text: str = ""
    model: str = ""
    seed: int | None = None


def derive_dicom(content: bytes, change_HW: np.ndarray, derivation: Derivation) -> bytes:
    """Return a DICOM file whose decoded film is clip(film + change, 0, 1), to the nearest stored value.

    change_HW: float32 of the size of the whole decoded film, on its grey from air 0 to bone 1.
    Stored values stay where the change is 0 and on padding; depth, sign, photometric interpretation, rescale and
    windows stay too.  A film without a valid window, which is shown between its percentiles, gets them as its window.
    A window may reach beyond the values of the depth; the darkest or brightest value then stands for the rest.
    The file is Explicit VR Little Endian.  Raises `Undecodable` unless the film is grey, single-frame and of 8 or 16
    bits.
    """
    dataset = read_dataset(content)
    module = read_pixel_module(dataset)
    _check_supported(dataset, module)
    stored = decode_stored(dataset, module)
    if stored.is_rgb or stored.is_luminance:
        raise Undecodable("cannot derive from a colour film: only grey films are supported")
    compressed_bytes = len(dataset.PixelData)
    index_HW = find_values(stored.pixels.astype(np.int32), stored, module.signed) - _find_lowest(stored, module)
    index_HW = index_HW.astype(np.uint16)
    _fix_window(dataset, module, stored, index_HW)
    grey_N, is_film_N = _build_table(dataset, module, stored)
    if change_HW.shape != index_HW.shape:
        raise UsageError(f"a change of {_size(change_HW)} does not fit a film of {_size(index_HW)}")
    derived_HW = change_film(index_HW, change_HW, grey_N, derivation.text, is_film_N)
    if stored.overshoots:
        _note_loss(dataset, module.frame_bytes / max(1, compressed_bytes))
    _store_pixels(dataset, module, derived_HW, _find_lowest(stored, module))
    _describe(dataset, derivation)
    written = write_dicom(dataset, ExplicitVRLittleEndian)
    _check_alike(written, grey_N[derived_HW])
    return written


def _size(image_HW: np.ndarray) -> str:
    return " x ".join(str(side) for side in image_HW.shape[::-1]) + " pixels"


def _check_supported(dataset: Dataset, module: PixelModule) -> None:
    if module.frames > 1:
        raise Undecodable("cannot derive from a film of several frames: only single frames are supported")
    if module.photometric not in ("MONOCHROME1", "MONOCHROME2") or module.samples != 1:
        raise Undecodable("cannot derive from a colour film: only grey films are supported")
    if module.allocated not in (8, 16):
        raise Undecodable("cannot derive from a film of 32 bits: only 8 and 16 bits are supported")
    if not dataset.original_encoding[1]:
        raise Undecodable("cannot derive from big-endian DICOM: convert it to little endian first (dcmconv +te)")


# ---------------------------------------------------------------- pixels


def _find_lowest(stored: StoredPixels, module: PixelModule) -> int:
    return -(1 << (stored.bits - 1)) if module.signed else 0


def _list_stored(stored: StoredPixels, module: PixelModule) -> np.ndarray:
    """Return every value that the film could hold, ascending, int64."""
    lowest = _find_lowest(stored, module)
    return np.arange(lowest, lowest + (1 << stored.bits), dtype=np.int64)


def _fix_window(dataset: Dataset, module: PixelModule, stored: StoredPixels, index_HW: np.ndarray) -> None:
    """Give a film without a valid window its percentiles as one, since the derived film would have others.

    Window Center and Width of a LINEAR function (PS3.3 C.11.2.1.2.1) map the same values to 0 and 1.
    """
    value_N = _list_stored(stored, module)
    modality_N = apply_modality(value_N, dataset)
    if apply_voi(modality_N, dataset) is not None:
        return
    if module.stored == 8 and not module.signed and np.array_equal(modality_N, value_N):
        return  # shown as it is
    counts_N = count_levels(index_HW)[: len(value_N)]
    counts_N[find_padding(value_N, module, dataset)] = 0
    seen = counts_N > 0
    low, high = find_window(modality_N[seen], counts_N[seen])
    dataset.WindowCenter = format_number_as_ds((low + high + 1) / 2)
    dataset.WindowWidth = format_number_as_ds(high - low + 1)
    for name in ("VOILUTFunction", "WindowCenterWidthExplanation"):
        if name in dataset:
            del dataset[name]
    dataset.WindowCenterWidthExplanation = "0.5 to 99.5 % of source"


def _build_table(dataset: Dataset, module: PixelModule, stored: StoredPixels) -> tuple[np.ndarray, np.ndarray]:
    """Return the grey of each possible stored value, float32, and whether the value is film and not padding."""
    value_N = _list_stored(stored, module)
    is_film_N = ~find_padding(value_N, module, dataset)
    ramp = (value_N & ((1 << stored.bits) - 1)).astype("<u2")[None]
    grey_N = map_to_grey(StoredPixels(ramp, stored.bits), module, dataset)[0]
    return grey_N, is_film_N


def _store_pixels(dataset: Dataset, module: PixelModule, index_HW: np.ndarray, lowest: int) -> None:
    """Store the values in the lowest bits of their containers, sign extended (PS3.5 8.1.1).

    This erases overlays in the higher bits, so attributes that refer to them are removed.
    """
    value_HW = (index_HW.astype(np.int32) + lowest).astype("<u2" if module.allocated == 16 else "u1")
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0010) in dataset and (group, 0x3000) not in dataset:
            for tag in [tag for tag in dataset.keys() if tag.group == group]:  # noqa: SIM118
                del dataset[tag]
    dataset.HighBit = module.stored - 1
    content = value_HW.tobytes()
    dataset.add_new(0x7FE00010, "OW" if module.allocated == 16 else "OB", content + b"\0" * (len(content) % 2))


def _note_loss(dataset: Dataset, ratio: float) -> None:
    """Declare earlier lossy compression if the source does not (PS3.3 C.7.6.1.1.5)."""
    if str(dataset.get("LossyImageCompression") or "") == "01":
        return
    dataset.LossyImageCompression = "01"
    method = _LOSSY_METHODS.get(dataset.file_meta.TransferSyntaxUID.rsplit(".", 1)[-1])
    if method:
        dataset.LossyImageCompressionMethod = method
        dataset.LossyImageCompressionRatio = f"{ratio:.4g}"


def _check_alike(written: bytes, grey_HW: np.ndarray) -> None:
    """Decode the file as its users will; refuse to return a film that looks different than intended."""
    seen_HW = decode_dicom(written).pixels
    if seen_HW.shape != grey_HW.shape or float(np.abs(seen_HW - grey_HW).max()) > 1e-4:
        raise Undecodable(
            "the derived film would not look as it should: its header does not define its greys well enough"
        )


# ---------------------------------------------------------------- header


def _describe(dataset: Dataset, derivation: Derivation) -> None:
    """Describe the derivation (PS3.3 C.7.6.1.1.3, C.7.6.1.1.4, C.12.1.1.1, C.7.5.2)."""
    words = KINDS[derivation.kind]
    source = dataset.get("SOPClassUID"), dataset.get("SOPInstanceUID")
    if not all(source) or not dataset.get("StudyInstanceUID"):
        raise Undecodable("DICOM without SOP Class, SOP Instance or Study Instance UID: nothing can refer to it")
    _renew_uids(dataset, derivation)
    _drop_untrue(dataset)
    dataset.ImageType = _derive_image_type(dataset, derivation.kind)
    dataset.SeriesNumber = None
    dataset.SeriesDescription = _join_series(str(dataset.get("SeriesDescription") or ""), words.series)
    by = f"{SOFTWARE} {version(SOFTWARE)}" + (f", model {derivation.model}" if derivation.model else "")
    earlier = str(dataset.get("DerivationDescription") or "")
    dataset.DerivationDescription = f"{words.description} By {by}. {earlier}".strip()[:_ST]
    codes = [*_list_items(dataset, "DerivationCodeSequence"), build_code(*words.code)]
    dataset.DerivationCodeSequence = Sequence(codes)
    dataset.SourceImageSequence = Sequence([_refer_to(*source)])
    dataset.ContributingEquipmentSequence = Sequence(
        [*_list_items(dataset, "ContributingEquipmentSequence"), _describe_software(words, derivation)]
    )
    dataset.ContentQualification = "RESEARCH"
    if derivation.kind == "synthetic nodule":
        dataset.SyntheticData = "YES"
        dataset.ImageComments = f"{words.description} {dataset.get('ImageComments') or ''}".strip()


def _renew_uids(dataset: Dataset, derivation: Derivation) -> None:
    if derivation.seed is None:
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        return
    told = [SOFTWARE, derivation.kind, derivation.model, derivation.text, str(derivation.seed)]
    series = [*told, str(dataset.get("StudyInstanceUID")), str(dataset.get("SeriesInstanceUID"))]
    instance = [*told, str(dataset.SOPInstanceUID), hashlib.sha256(dataset.PixelData).hexdigest()]
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*series, "series"])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*instance, "instance"])


def _drop_untrue(dataset: Dataset) -> None:
    """Remove attributes that are true only of the source's pixels, and private elements."""
    pixels = dataset["PixelData"]
    for name in _UNTRUE:
        if name in dataset:
            del dataset[name]
    dataset.add(pixels)
    for owner in _walk(dataset):
        for tag in [tag for tag in owner.keys() if tag.is_private]:  # noqa: SIM118
            del owner[tag]


def _walk(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the data set and the items of its sequences; convert no other element, lest pydicom judge it."""
    yield dataset
    for tag in list(dataset.keys()):
        vr = dataset.get_item(tag).VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        if vr == "SQ" and not tag.is_private:
            for item in dataset[tag].value or ():
                yield from _walk(item)


def _derive_image_type(dataset: Dataset, kind: Kind) -> list[str]:
    old = dataset.get("ImageType") or []
    old = [old] if isinstance(old, str) else [str(value) for value in old]
    if kind == "synthetic nodule":
        return ["DERIVED", "SECONDARY", *(old[2:3] or [""]), "SYNTHETIC"]
    return ["DERIVED", "SECONDARY", *old[2:3]]


def _join_series(old: str, kind: str) -> str:
    told = f"{kind} (derived, {SOFTWARE})"
    return f"{old[: _LO - len(told) - 1].strip()} {told}".strip()


def _list_items(dataset: Dataset, name: str) -> list[Dataset]:
    return list(dataset.get(name) or ())


def _refer_to(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    item.PurposeOfReferenceCodeSequence = Sequence([build_code(*_SOURCE)])
    return item


def _describe_software(words: KindWords, derivation: Derivation) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([build_code(*_PROCESSING)])
    item.Manufacturer, item.SoftwareVersions = SOFTWARE, version(SOFTWARE)
    if derivation.model:
        item.ManufacturerModelName = derivation.model[:_LO]
    item.ContributionDescription = words.description
    if derivation.seed is None:
        item.ContributionDateTime = time.strftime("%Y%m%d%H%M%S")
    return item
