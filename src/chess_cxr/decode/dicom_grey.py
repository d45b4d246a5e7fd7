"""Map stored values to grey in [0, 1]: Modality LUT and VOI LUT modules of PS3.3, palettes and padding.

All mappings are computed on a table of at most 65,536 stored values, then applied to millions of pixels at once.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut

from chess_cxr.decode.decoded import count_levels, find_window, stretch
from chess_cxr.decode.dicom_pixels import PixelModule, StoredPixels
from chess_cxr.records import Undecodable

_LUMINANCE = np.array([[0.299, 0.587, 0.114]], dtype=np.float32)  # ITU-R BT.601, as Pillow's "L"
# PS3.3 C.7.6.3.1.2: black and white of YBR_PARTIAL_422 and YBR_PARTIAL_420
_PARTIAL_BLACK, _PARTIAL_WHITE = 16 / 255, 235 / 255


def map_to_grey(stored: StoredPixels, module: PixelModule, dataset: pydicom.Dataset) -> np.ndarray:
    """Return the frame as float32 [H, W] in [0, 1], bone bright.

    Grey frames go through Modality LUT or rescale (PS3.3 C.11.1), then the first VOI LUT or window (C.11.2).  Without a
    valid one, 8 bits are kept and more are stretched between their percentiles.  MONOCHROME1 (C.7.6.3.1.2) is
    inverted.  Padding (C.7.5.1.1.2) becomes air.
    """
    if stored.is_rgb:
        return _weigh_colours(stored.pixels, stored.bits)
    index_HW, value_N = _index_values(stored, module)
    if stored.is_luminance:
        table_N = _map_luminance(value_N, stored.bits, module.photometric)
    elif module.photometric == "PALETTE COLOR":
        table_N = _map_palette(value_N, dataset)
    else:
        table_N = _map_grey(index_HW, value_N, module, dataset)
    return np.asarray(cv2.LUT(index_HW, table_N.astype(np.float32)))


# ---------------------------------------------------------------- stored values


def _index_values(stored: StoredPixels, module: PixelModule) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame as indices, uint8 or uint16 [H, W], and the stored value of each of 256 or 65,536 indices.

    Bits above Bits Stored, in which old devices kept overlays, are masked; the sign is extended from the highest stored
    bit (PS3.5 8.1.1).  If 32 bits hold more than 65,536 levels, the lowest bits are dropped.
    """
    pixels = np.ascontiguousarray(stored.pixels)
    if pixels.dtype.itemsize <= 2:
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return native, find_values(np.arange(1 << (8 * native.dtype.itemsize), dtype=np.int64), stored, module.signed)
    value_HW = find_values(pixels.astype(np.int64), stored, module.signed)
    lowest = int(value_HW.min())
    dropped = max(0, int(value_HW.max() - lowest).bit_length() - 16)
    index_HW = ((value_HW - lowest) >> dropped).astype(np.uint16)
    return index_HW, lowest + (np.arange(1 << 16, dtype=np.int64) << dropped)


def find_values(container: np.ndarray, stored: StoredPixels, signed: bool) -> np.ndarray:
    """Return the stored values, int64, in containers of unsigned bits."""
    top = 1 << stored.bits
    if stored.overshoots and not signed:
        return np.asarray(np.minimum(container, top - 1))
    value: np.ndarray = (container >> stored.shift) & (top - 1)
    return value - top * (value >= top // 2) if signed else value


def find_padding(value_N: np.ndarray, module: PixelModule, dataset: pydicom.Dataset) -> np.ndarray:
    """Return which stored values are padding, one value or a range before any LUT (PS3.3 C.7.5.1.1.2)."""
    value, limit = (read_number(dataset, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(len(value_N), dtype=bool)
    # Some files write US for signed pixels, or SS for unsigned ones
    wrapped = [_wrap(int(end), module) for end in (value, value if limit is None else limit)]
    return (value_N >= min(wrapped)) & (value_N <= max(wrapped))


def _wrap(value: int, module: PixelModule) -> int:
    value %= 1 << module.allocated
    return value - (1 << module.allocated) if module.signed and value >> (module.allocated - 1) else value


# ---------------------------------------------------------------- tables


def _map_grey(index_HW: np.ndarray, value_N: np.ndarray, module: PixelModule, dataset: pydicom.Dataset) -> np.ndarray:
    padding_N = find_padding(value_N, module, dataset)
    modality_N = apply_modality(value_N, dataset)
    table_N = apply_voi(modality_N, dataset)
    counts_N = count_levels(index_HW) if table_N is None or padding_N.any() else None
    if counts_N is not None:
        counts_N[padding_N] = 0
        if not counts_N.any():
            raise Undecodable("blank image")
    if table_N is None and module.stored == 8 and not module.signed and np.array_equal(modality_N, value_N):
        table_N = value_N / 255  # eight bits without a window are meant for a screen, like a PNG
    if table_N is None:
        assert counts_N is not None
        seen = counts_N > 0
        table_N = stretch(modality_N, *find_window(modality_N[seen], counts_N[seen]))
    table_N = np.clip(table_N.astype(np.float32), 0, 1)
    if module.photometric == "MONOCHROME1":
        table_N = 1 - table_N
    return np.where(padding_N, np.float32(0), table_N)


def _map_luminance(value_N: np.ndarray, bits: int, photometric: str) -> np.ndarray:
    """Map luminance of a colour image to grey (PS3.3 C.7.6.3.1.2); windows apply to grey images only."""
    table_N = value_N / ((1 << bits) - 1)
    if photometric.startswith("YBR_PARTIAL"):
        table_N = (table_N - _PARTIAL_BLACK) / (_PARTIAL_WHITE - _PARTIAL_BLACK)
    return np.asarray(np.clip(table_N, 0, 1))


def _map_palette(value_N: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Map values to the luminance of their palette colours (PS3.3 C.7.6.3.1.5, C.7.9; segmented: C.7.9.2)."""
    descriptor = dataset.RedPaletteColorLookupTableDescriptor
    entries, first = int(descriptor[0]) or 1 << 16, int(descriptor[1])
    # Values off the table map to its ends; pydicom would wrap those that do not fit the type of the entries.
    used_N = np.clip(value_N, first, first + entries - 1)
    colour_NC = apply_color_lut(used_N, dataset)
    top = np.iinfo(colour_NC.dtype).max
    return np.asarray(np.clip(colour_NC[:, :3].astype(np.float64) @ _LUMINANCE[0] / top, 0, 1))


def _weigh_colours(pixels_HWC: np.ndarray, bits: int) -> np.ndarray:
    """Convert RGB (PS3.3 C.7.6.3.1.2) to luminance."""
    grey = cv2.transform(np.ascontiguousarray(pixels_HWC).astype(np.float32), _LUMINANCE / ((1 << bits) - 1))
    return np.clip(grey, 0, 1, out=grey)


# ---------------------------------------------------------------- Modality LUT and VOI LUT


def apply_modality(value_N: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Apply Modality LUT Sequence (PS3.3 C.11.1.1) or Rescale Slope and Intercept; float64."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(value_N, dataset.ModalityLUTSequence[0], dataset)
    source = find_functional_group(dataset, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = read_number(source, "RescaleSlope"), read_number(source, "RescaleIntercept")
    # Archives hold files with a slope of zero, which would make the film blank.
    return value_N * (slope or 1.0) + (intercept or 0.0)


def apply_voi(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Apply the first VOI LUT (PS3.3 C.11.2.1.1), else the first window (C.11.2.1.2); on [0, 1].

    Returns None without a valid one, such as for a width of zero or an unknown function.
    """
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0], dataset, normalised=True)
    source = find_functional_group(dataset, "FrameVOILUTSequence", "WindowCenter")
    center, width = read_number(source, "WindowCenter"), read_number(source, "WindowWidth")
    if center is None or width is None:
        return None
    function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
    return _apply_window(values, center, width, function)


def _apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray | None:
    """Apply Window Center (0028,1050) and Width (0028,1051) by VOI LUT Function (0028,1056); on [0, 1].

    LINEAR: PS3.3 C.11.2.1.2.1.  SIGMOID: C.11.2.1.3.1.  LINEAR_EXACT: C.11.2.1.3.2.
    """
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function != "LINEAR" or width < 1:
        return None
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(
    values: np.ndarray, item: pydicom.Dataset, dataset: pydicom.Dataset, normalised: bool = False
) -> np.ndarray:
    """Look values up in LUT Data (0028,3006) by LUT Descriptor (0028,3002) (PS3.3 C.11.1.1.1, C.11.2.1.1).

    normalised: scale to the range of the entries.  Not left to pydicom 3.0, which wraps the index of 8-bit tables and
    trusts devices that declare 16 bits an entry and fill 12.
    """
    entries, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    if first >= 1 << 15 and float(values.min()) < 0:
        first -= 1 << 16  # written as US despite signed values
    lut: np.ndarray
    if isinstance(item.LUTData, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        lut = np.frombuffer(item.LUTData, dtype=f"{order}u2" if len(item.LUTData) >= 2 * entries else "u1")
    else:
        lut = np.atleast_1d(np.asarray(item.LUTData))
    lut = lut[:entries].astype(np.float64)
    if len(lut) < entries or lut.max() <= 0:
        raise Undecodable("DICOM lookup table is damaged")
    found: np.ndarray = lut[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)]
    return found / lut.max() if normalised else found


# ---------------------------------------------------------------- reading numbers


def find_functional_group(dataset: pydicom.Dataset, sequence: str, keyword: str) -> pydicom.Dataset:
    """Return the holder of an attribute of the first frame: the data set or a functional group (PS3.3 C.7.6.16)."""
    if keyword in dataset:
        return dataset
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(dataset.get(groups) or [])[:1]:
            for item in list(group.get(sequence) or [])[:1]:
                if keyword in item:
                    return item
    return dataset


def read_number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the first value of an attribute, None if it is missing or no finite number."""
    try:
        value = dataset.get(keyword)
        first = value if isinstance(value, (str, int, float)) else next(iter(value or ()), None)
        number = float(first) if first is not None else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
