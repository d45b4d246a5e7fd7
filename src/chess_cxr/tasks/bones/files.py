"""Folders with films and the same films without bone, paired by name."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from chess_cxr.files.listing import list_location
from chess_cxr.records import UsageError

# films, and films without bone; upper and lower case are the same
LAYOUTS = (("source", "target"), ("JSRT", "BSE_JSRT"))
_FILMS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".dcm", ".img", ".mha", ".nii", ".nii.gz", "")
_SHOWN = 3  # names in a message

PairKind = Literal["folder", "bse-jsrt", "phantom"]


@dataclass(frozen=True)
class PairFiles:
    """The two files of a pair, and their common name."""

    name: str
    film: Path
    bone_free: Path
    kind: PairKind


def find_pairs(folder: Path) -> list[PairFiles]:
    """List the pairs of a folder, sorted by name.

    The folder holds `source` and `target`, or `JSRT` and `BSE_JSRT` as BSE-JSRT does.  The two files of a pair have the
    same name below these, with any extension.  Raises UsageError if a film has no partner or two, or there is no pair.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name one with source and target, or JSRT and BSE_JSRT, in it")
    children: dict[str, Path] = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        if known := children.get(child.name.lower()):
            raise UsageError(f"{folder} holds both {known.name} and {child.name}; remove one of them")
        children[child.name.lower()] = child
    layouts = [names for names in LAYOUTS if any(name.lower() in children for name in names)]
    if len(layouts) > 1:
        raise UsageError(f"{folder} holds pairs in two layouts; put source and target into a folder of their own")
    for names in layouts:
        films, targets = (children.get(name.lower()) for name in names)
        if films and targets:
            return _pair(films, targets, names)
        raise UsageError(f"{folder} has {names[0] if films else names[1]} but no {names[1] if films else names[0]}")
    raise UsageError(f"{folder} holds no pairs: it needs the folders source and target, or JSRT and BSE_JSRT")


def _index(folder: Path) -> dict[str, Path]:
    """Index the films below a folder by their lower-case names, without hidden files and links out of it."""
    found: dict[str, Path] = {}
    for location, relative in list_location(folder, _may_be_film):
        name = unicodedata.normalize("NFC", _strip(relative)).lower()  # file systems differ in how they spell é
        if name in found:
            raise UsageError(f"{folder} holds two films named {_strip(relative)}; remove one of them")
        found[name] = Path(location)
    return found


def _may_be_film(name: str) -> bool:
    suffixes = PurePosixPath(name.lower()).suffixes
    return not suffixes or suffixes[-1] in _FILMS or "".join(suffixes[-2:]) in _FILMS or suffixes[-1][1:].isdigit()


def _strip(relative: str) -> str:
    path = PurePosixPath(relative)
    name = path.name
    for ending in sorted(_FILMS, key=len, reverse=True):
        if ending and name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return str(path.with_name(name or path.name))


def _pair(film_folder: Path, target_folder: Path, names: tuple[str, str]) -> list[PairFiles]:
    films, targets = _index(film_folder), _index(target_folder)
    if not films and not targets:
        raise UsageError(f"the folders {names[0]} and {names[1]} hold no film")
    for whose, one, other in ((names[0], films, targets), (names[1], targets, films)):
        if alone := sorted(set(one) - set(other)):
            shown = ", ".join(one[name].name for name in alone[:_SHOWN]) + (", …" if len(alone) > _SHOWN else "")
            raise UsageError(f"{len(alone)} of {len(one)} films of {whose} have no partner: {shown}")
    kind: PairKind = "bse-jsrt" if names[0] == "JSRT" else "folder"
    return [
        # sub-folders may repeat a name, so the path tells pairs apart
        PairFiles(_strip(films[name].relative_to(film_folder).as_posix()), films[name], targets[name], kind)
        for name in sorted(films)
    ]
