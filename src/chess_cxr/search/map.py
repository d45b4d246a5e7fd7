"""Write the map of an archive: a folder with a page that works offline, the films as points, and a Parquet table."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import simplejpeg

from chess_cxr.evaluation.neighbours import find_nearest_of_all
from chess_cxr.files.whole import write_whole_folder
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.report.page import load_template
from chess_cxr.search.archive import build_archive
from chess_cxr.search.layout import Layout, choose_layout, lay_out
from chess_cxr.store import Store

NEIGHBOURS = 15  # that are computed; the page shows the first few
SHOWN_NEIGHBOURS = 8
MOST_COMPARED = 200_000  # films; the search for all neighbours takes the square of their number
THUMBNAIL, SHEET = 96, 16  # pixels a side; thumbnails a side of a sheet
MOST_THUMBNAILS = 50_000
MOST_VALUES = 200  # of a column of categories
LEFT_OUT = ("uid", "patient", "study", "study_day", "height", "width", "spacing_mm")
PAGE = ("map.css", "map.js", "draw.js", "regl-scatterplot.js", "regl-scatterplot.licences.txt")


@dataclass(frozen=True)
class FilmMap:
    """The films of some stores as points: a row a film, in the order of the stores.

    films: uid, store, patient and the columns to colour and filter by.  point_N2: in [-1, 1].  near_NK: rows of the
    nearest films, cosine_NK beside them; without columns above `MOST_COMPARED` films.
    """

    films: pd.DataFrame
    point_N2: np.ndarray
    near_NK: np.ndarray
    cosine_NK: np.ndarray
    layout: str


def build_map(
    stores: Sequence[Store],
    features: Sequence[np.ndarray],
    layout: Layout = "auto",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> FilmMap:
    """Lay the films of some stores out by their features, float32 [N, D] for each store."""
    show = on_progress or (lambda *_: None)
    chosen = choose_layout(layout)
    unit_ND = build_archive(stores[0], np.concatenate(features)).unit_ND
    if not len(unit_ND):
        raise UsageError("there is no film to map")
    count = NEIGHBOURS if len(unit_ND) <= MOST_COMPARED else 0
    near_NK, cosine_NK = find_nearest_of_all(unit_ND, count, lambda done, total: show("find neighbours", done, total))
    show("lay out", 0, 1)
    point_N2 = lay_out(unit_ND, near_NK, cosine_NK, chosen, seed)
    show("lay out", 1, 1)
    return FilmMap(_join_films(stores), point_N2, near_NK, cosine_NK, chosen)


def _join_films(stores: Sequence[Store]) -> pd.DataFrame:
    parts = [store.films.assign(store=store.path.name) for store in stores]
    films = pd.concat(parts, ignore_index=True)
    kept = ("uid", "patient", "study", "study_day")
    return films[[name for name in films.columns if name in kept or films[name].nunique(dropna=False) > 1]]


def write_map(
    film_map: FilmMap, stores: Sequence[Store], out: Path, about: str, thumbnails: bool, show: OnProgress
) -> Path:
    """Write the folder of a map, whole or not at all; return the path of its page.

    about: what is mapped, with what.  thumbnails: whether the page shows films, small, which then lie in the folder.
    """
    films = len(film_map.films)
    if thumbnails and films > MOST_THUMBNAILS:
        raise UsageError(f"{films} films are too many for --thumbnails; a map shows those of up to {MOST_THUMBNAILS}")
    with write_whole_folder(out) as growing:
        for name in PAGE:
            (growing / name).write_bytes(files("chess_cxr.search").joinpath(f"map_page/{name}").read_bytes())
        if thumbnails:
            _write_sheets(stores, growing, show)
        synthetic = all("SYNTHETIC" in store.dataset_name for store in stores)
        described = _describe(film_map, about, thumbnails)
        (growing / "films.js").write_text(f"window.filmMap = {described};\n", "utf-8")
        page = load_template("chess_cxr.search", "map_page/index.html").render(
            about=about,
            thumbnails=thumbnails,
            synthetic=synthetic,
            stores=", ".join(store.path.name for store in stores),
        )
        (growing / "index.html").write_text(page, "utf-8")
        pyarrow.parquet.write_table(tabulate(film_map), growing / "map.parquet")
    return out / "index.html"


def tabulate(film_map: FilmMap) -> pa.Table:
    """Return uid, x, y, neighbours (rows and distances, as embedding-atlas takes them) and the other columns."""
    films = film_map.films.drop(columns=["patient", "study", "study_day"], errors="ignore")
    table = pa.Table.from_pandas(films, preserve_index=False)
    pairs = zip(film_map.near_NK.tolist(), (1 - film_map.cosine_NK).tolist(), strict=True)
    neighbours = [{"ids": ids, "distances": distances} for ids, distances in pairs]
    kind = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    columns = [film_map.point_N2[:, 0], film_map.point_N2[:, 1], pa.array(neighbours, kind)]
    for place, (name, column) in enumerate(zip(("x", "y", "neighbours"), columns, strict=True), 1):
        table = table.add_column(place, name, pa.array(column))
    return table


def _describe(film_map: FilmMap, about: str, thumbnails: bool) -> str:
    """Return the data of the page as JSON; numbers are little-endian arrays in base64, as `file://` allows no fetch."""
    films, point_N2 = film_map.films, film_map.point_N2
    shown = min(SHOWN_NEIGHBOURS, film_map.near_NK.shape[1])
    patient = pd.factorize(films["patient"].where(films["patient"].fillna("") != "", films["uid"]))[0]
    return json.dumps(
        {
            "about": about,
            "films": len(films),
            "layout": film_map.layout,
            "x": _pack(point_N2[:, 0], "<f4"),
            "y": _pack(point_N2[:, 1], "<f4"),
            "uid": "\n".join(films["uid"]),
            "patient": _pack(patient, "<i4"),
            "shown": shown,
            "near": _pack(film_map.near_NK[:, :shown], "<u4"),
            "cosine": _pack(film_map.cosine_NK[:, :shown], "<f4"),
            "columns": [_describe_column(films, name) for name in films.columns if name not in LEFT_OUT],
            "thumbnails": {"side": THUMBNAIL, "sheet": SHEET} if thumbnails else None,
        }
    ).replace("</", "<\\/")


def _describe_column(films: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return a column as numbers, or as codes of its values; an unknown value is NaN, or code 65535."""
    column = films[name]
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    values = sorted(column[(column != "") & column.notna()].unique().tolist(), key=str)
    if is_number and len(values) > 12:
        return {"name": name, "numbers": _pack(column.to_numpy(float), "<f4")}
    if not is_number and len(values) > MOST_VALUES:
        values = sorted(column.value_counts().head(MOST_VALUES).index.tolist(), key=str)
    code_of = {value: code for code, value in enumerate(values)}
    codes = np.array([code_of.get(value, 65535) for value in column.tolist()])
    return {"name": name, "values": [_tell_value(value) for value in values], "codes": _pack(codes, "<u2")}


def _tell_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pack(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode("ascii")


def _write_sheets(stores: Sequence[Store], folder: Path, show: OnProgress) -> None:
    """Write the thumbnails, row by row, in JPEG sheets of `SHEET` x `SHEET`."""
    places = [(store, row) for store in stores for row in range(len(store))]
    (folder / "thumbnails").mkdir()
    for number in range(math.ceil(len(places) / SHEET**2)):
        some = places[number * SHEET**2 : (number + 1) * SHEET**2]
        tall = math.ceil(len(some) / SHEET)
        sheet = np.zeros((tall * THUMBNAIL, SHEET * THUMBNAIL), np.uint8)
        for store in {id(store): store for store, _ in some}.values():
            own = [(place, row) for place, (other, row) in enumerate(some) if other is store]
            for (place, _), film in zip(own, store.read_films([row for _, row in own], THUMBNAIL), strict=True):
                _lay_thumbnail(sheet, place, film)
        content = simplejpeg.encode_jpeg(sheet[..., None], 85, colorspace="GRAY")
        (folder / "thumbnails" / f"{number:04d}.jpg").write_bytes(content)
        show("shrink films", min((number + 1) * SHEET**2, len(places)), len(places))


def _lay_thumbnail(sheet: np.ndarray, place: int, film: np.ndarray) -> None:
    shrink = THUMBNAIL / max(film.shape)
    height, width = (max(1, min(THUMBNAIL, round(side * shrink))) for side in film.shape)
    method = cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR
    top = place // SHEET * THUMBNAIL + (THUMBNAIL - height) // 2
    left = place % SHEET * THUMBNAIL + (THUMBNAIL - width) // 2
    sheet[top : top + height, left : left + width] = cv2.resize(film, (width, height), interpolation=method)
