"""Write films as NODE21 publishes its own: images/*.mha, metadata.csv with boxes, and nodules.json.

nodules.json is what NODE21's containers read and write: the corners of each box in pixels, with the number of its film,
in the order of metadata.csv, as third coordinate.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chess_cxr.derive.film import write_new_file

Box = tuple[int, int, int, int]  # x, y, width, height
IMAGES = "images"
_COLUMNS = ("", "height", "img_name", "label", "width", "x", "y")


def encode_mha(film_HW: np.ndarray, spacing_mm: float, comment: str) -> bytes:
    """Return a film in [0, 1] as a MetaImage of 16 bits; spacing_mm: NaN if unknown."""
    height, width = film_HW.shape
    spacing = spacing_mm if math.isfinite(spacing_mm) else 1.0
    header = {
        "ObjectType": "Image",
        "NDims": "2",
        "Comment": comment,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "ElementSpacing": f"{spacing:.9g} {spacing:.9g}",
        "DimSize": f"{width} {height}",
        "ElementType": "MET_USHORT",
        "ElementDataFile": "LOCAL",
    }
    lines = "".join(f"{name} = {value}\n" for name, value in header.items())
    content: bytes = np.rint(np.clip(film_HW, 0, 1) * 65_535).astype("<u2").tobytes()
    return lines.encode() + content


def write_node21_tables(out: Path, films: Sequence[tuple[str, Sequence[Box]]]) -> None:
    """Write metadata.csv and nodules.json of films, each with its file name and boxes."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    boxes = [(number, name, box) for number, (name, found) in enumerate(films) for box in found]
    for row, (_, name, (x, y, width, height)) in enumerate(boxes):
        writer.writerow((row, height, name, 1, width, x, y))
    listed = {
        "type": "Multiple 2D bounding boxes",
        "boxes": [{"corners": _list_corners(box, number)} for number, _, box in boxes],
        "version": {"major": 1, "minor": 0},
    }
    write_new_file(out, "metadata", ".csv", table.getvalue().encode("utf-8", "surrogateescape"))
    write_new_file(out, "nodules", ".json", (json.dumps(listed, indent=1) + "\n").encode())


def _list_corners(box: Box, number: int) -> list[tuple[int, int, int]]:
    x, y, width, height = box
    right, bottom = x + width, y + height
    return [(right, bottom, number), (x, bottom, number), (x, y, number), (right, y, number)]
