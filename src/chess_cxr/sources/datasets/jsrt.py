"""Read JSRT, its bone-suppressed copy BSE-JSRT, and NODE21."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import DataSet, Fields, Release, Row, Table, keep_one_a_film
from chess_cxr.sources.datasets.release import find_entry, index_files, locate_films

_FILM = re.compile(r"JPC(LN|NN)\d{3}", re.IGNORECASE)
_RECORD = re.compile(r"(?=JPC(?:LN|NN)\d{3}\.IMG)", re.IGNORECASE)
_NODULE_COLUMNS = ("film", "subtlety", "size_mm", "age", "sex", "x", "y", "state", "location", "diagnosis")
_STATES = ("malignant", "benign", "non-nodule")
_OTHER_COLUMNS = ("film", "age", "sex", "state")

# ---------------------------------------------------------------- JSRT


def _read_clinical(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read tab-separated records without header, each from the name of a film on; some copies have no line ends."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = []
    for number, record in enumerate(filter(str.strip, _RECORD.split(text)), start=1):
        values = [value.strip() for value in re.sub(r"[\r\n]+", "\t", record).rstrip().split("\t")]
        if len(values) != len(columns):
            raise UsageError(
                f"record {number} of {path} has {len(values)} columns, but {len(columns)} are published: "
                f"{', '.join(columns)}"
            )
        if values[columns.index("state")].lower() not in _STATES:
            raise UsageError(f"record {number} of {path} is neither {', '.join(_STATES[:-1])} nor {_STATES[-1]}")
        rows.append((PurePosixPath(values[0]).stem.upper(), *values[1:]))
    return pd.DataFrame(rows, columns=list(columns))


def read_nodules(path: Path) -> pd.DataFrame:
    """Read CLNDAT_EN.txt."""
    return _read_clinical(path, _NODULE_COLUMNS)


def read_others(path: Path) -> pd.DataFrame:
    """Read CNNDAT_EN.TXT, films without nodule."""
    return _read_clinical(path, _OTHER_COLUMNS)


def _build_jsrt(release: Release) -> pd.DataFrame:
    told = pd.concat(release.tables.values(), ignore_index=True)
    films = index_files(release.root, (".img",))
    films = {name: path for name, path in films.items() if _FILM.match(name)}
    frame = locate_films(told, "film", films, ".img", ".", add_unlisted=True).fillna("")
    state = frame["state"].str.lower()
    frame["nodule"] = [_tell_nodule(film) for film in frame["film"]]
    frame["malignant"] = state.map({"malignant": "1", "benign": "0"}).fillna("")
    for degree in "12345":
        known = frame["subtlety"].isin(list("12345"))
        frame[f"subtlety {degree}"] = (frame["subtlety"] == degree).astype(int).astype(str).where(known, "")
    return frame


def _tell_nodule(film: str) -> str:
    found = _FILM.match(film)
    return "" if found is None else str(int(found[1].upper() == "LN"))


_CLINICAL = ("", "Clinical_Information/", "Clinical/")
JSRT = DataSet(
    name="jsrt",
    title="JSRT",
    films="247",
    licence="free for research and teaching with citation; JSRT's terms of use",
    access="register at the Japanese Society of Radiological Technology",
    url="http://db.jsrt.or.jp/eng.php",
    folders=("JSRT", "All247images"),
    marks=(*(f"{folder}CLNDAT_EN.txt" for folder in _CLINICAL), "Nodule154images"),
    tables={
        "nodules": Table(tuple(f"{folder}CLNDAT_EN.txt" for folder in _CLINICAL), _NODULE_COLUMNS, read=read_nodules),
        "others": Table(
            tuple(f"{folder}CNNDAT_EN.txt" for folder in _CLINICAL), _OTHER_COLUMNS, needed=False, read=read_others
        ),
    },
    build=_build_jsrt,
    fields=Fields(
        uid="film",
        paths=("path",),
        patient=lambda row: row["film"].upper(),
        age="age",
        sex="sex",
        view=lambda row: "PA",
    ),
    labels={"Nodule": "nodule", "Malignant": "malignant"} | {f"Subtlety {n}": f"subtlety {n}" for n in "12345"},
)

# ---------------------------------------------------------------- BSE-JSRT


def _build_bse_jsrt(release: Release) -> pd.DataFrame:
    rows = []
    for folder, suppressed in (("JSRT", "0"), ("BSE_JSRT", "1")):
        if find_entry(release.root, folder) is None:
            raise UsageError(f"BSE-JSRT needs the folders JSRT and BSE_JSRT in {release.root}; {folder} is missing")
        files = index_files(release.root, (".png",), (folder,))
        for name, path in sorted(files.items()):
            if found := _FILM.match(name):
                film = found[0].upper()
                rows.append((f"{folder}/{film}.png", film, path, suppressed, _tell_nodule(film)))
    return pd.DataFrame(rows, columns=["uid", "film", "path", "suppressed", "nodule"])


BSE_JSRT = DataSet(
    name="bse-jsrt",
    title="BSE-JSRT (bone-suppressed JSRT)",
    films="482 (241 pairs)",
    licence="CC0 as its publisher states; the films are JSRT's, under JSRT's terms",
    access="Kaggle account",
    url="https://www.kaggle.com/datasets/hmchuong/xray-bone-shadow-supression",
    folders=("xray-bone-shadow-supression", "bse-jsrt"),
    marks=("BSE_JSRT",),
    build=_build_bse_jsrt,
    fields=Fields(uid="uid", paths=("path",), patient="film", study="film", view=lambda row: "PA"),
    labels={"Bone suppressed": "suppressed", "Nodule": "nodule"},
)

# ---------------------------------------------------------------- NODE21


def _build_node21(release: Release) -> pd.DataFrame:
    return keep_one_a_film(release.tables["boxes"], "img_name", ("label",), "NODE21")


def _find_film(folder: str) -> Callable[[Row], str]:
    return lambda row: f"{folder}{row['img_name']}" if row["img_name"] else ""


NODE21 = DataSet(
    name="node21",
    title="NODE21",
    films="4,882",
    licence="see its Zenodo record; the films are those of JSRT, PadChest, ChestX-ray14 and Open-i, under their terms",
    access="Zenodo record of the NODE21 challenge",
    url="https://node21.grand-challenge.org/Data/",
    folders=("cxr_images/proccessed_data", "proccessed_data", "processed_data", "node21"),
    marks=("metadata.csv",),
    tables={
        "boxes": Table(
            ("metadata.csv",), ("height", "img_name", "label", "width", "x", "y"), optional=("",), drop=("",)
        )
    },
    build=_build_node21,
    fields=Fields(uid="img_name", paths=(_find_film("images/"), _find_film(""))),
    labels={"Nodule": "label"},
)
