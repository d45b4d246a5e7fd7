"""Check writers: write a small file of each kind, read it back, compare.  `device` does so for encoders."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from chess_cxr.derive.film import write_derived_film
from chess_cxr.doctor.check import Finding, Request, Step
from chess_cxr.doctor.codecs import LOSSY_LEVELS, SYNTAXES, Format, decode, draw_picture, write_dicom
from chess_cxr.doctor.requirements import advise_reinstall
from chess_cxr.film_jpeg import decode_stored, encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.sources.phantom.film import write_phantom_films
from chess_cxr.store import StoredFilm, open_store, write_store

_PHANTOM_FILMS = 4  # of one patient: the last is compressed with JPEG 2000
_PHANTOM_SIDE = 64


def list_steps(request: Request) -> Iterator[Step]:
    """List the writers that need no torch."""
    tried: dict[str, tuple[Callable[[Path], Finding], str]] = {
        "film JPEG": (try_film_jpeg, "simplejpeg"),
        "store": (try_store, "pylance"),
        "derived DICOM": (try_derived_dicom, "pydicom"),
        "derived PNG": (try_derived_png, "pillow"),
        "generated DICOM": (try_generated_films, "imagecodecs"),
    }
    for name, (attempt, package) in tried.items():
        yield Step(name, partial(_in_folder, attempt, request), "writers", advise_reinstall(package))


def _in_folder(attempt: Callable[[Path], Finding], request: Request) -> Finding:
    with request.open_folder() as folder:
        return attempt(folder)


def try_film_jpeg(folder: Path) -> Finding:
    """Encode and decode a film as stores do."""
    film_HW = draw_picture(8) / 255
    jpeg, *shape = encode_film(film_HW, max(film_HW.shape))
    found_HW = decode_stored(jpeg)
    if found_HW.shape != tuple(shape) or shape != list(film_HW.shape):
        return Finding("broken", f"comes back as {found_HW.shape}", advise_reinstall("simplejpeg"))
    return _judge(found_HW / 255, film_HW, LOSSY_LEVELS, "simplejpeg")


def try_store(folder: Path) -> Finding:
    """Write a store of three films, open it, and compare films and fields."""
    film_HW = draw_picture(8) / 255
    films = []
    for number, split in enumerate(("train", "val", "test")):
        record = ImageRecord(uid=f"{number:032x}", patient=f"p{number}", split=split, labels={"finding": float(number)})
        films.append(StoredFilm(record, *encode_film(np.roll(film_HW, number, axis=1), max(film_HW.shape))))
    path = folder / "films.lance"
    write_store(path, films, ["finding"], "made by chess-cxr doctor (SYNTHETIC)")
    store = open_store(path)
    told = store.films[["uid", "split", "finding"]].to_numpy().tolist()
    expected = [[film.record.uid, film.record.split, film.record.labels["finding"]] for film in films]
    if told != expected or store.read_jpegs([2, 0, 1]) != [films[row].jpeg for row in (2, 0, 1)]:
        return Finding("broken", "films or fields come back other than written", advise_reinstall("pylance"))
    return Finding("ok", f"{len(store)} films to the bit")


def try_derived_dicom(folder: Path) -> Finding:
    """Write a derived DICOM film, as `predict` does with a bone model, and compare it with the request."""
    return _derive(write_dicom(folder / "film.dcm", draw_picture(16), SYNTAXES[1], None), folder / "out", "pydicom")


def try_derived_png(folder: Path) -> Finding:
    """Write a derived PNG, and compare it with the request."""
    path = Format("PNG", "PNG", 8, "pillow").write(folder / "film.png", draw_picture(8))
    return _derive(path, folder / "out", "pillow")


def _derive(source: Path, out: Path, package: str) -> Finding:
    film_HW = decode(source)
    change_HW = np.zeros(film_HW.shape, np.float32)
    change_HW[10:30, 20:40] = 0.1
    found_HW = decode(write_derived_film(source, change_HW, out, kind="synthetic nodule", seed=0))
    return _judge(found_HW, np.clip(film_HW + change_HW, 0, 1), 0.51, package)


def try_generated_films(folder: Path) -> Finding:
    """Write generated films as `chess-cxr demo` does, with JPEG 2000 among them, and read them."""
    table = write_phantom_films(folder, 1, _PHANTOM_FILMS, seed=0, size=_PHANTOM_SIDE)
    with table.open(newline="", encoding="utf-8") as file:
        films = [decode(folder / row["file"]) for row in csv.DictReader(file)]
    if [film.shape for film in films] != [(_PHANTOM_SIDE, _PHANTOM_SIDE)] * _PHANTOM_FILMS:
        return Finding("broken", "films come back other than written", advise_reinstall("pydicom"))
    return Finding("ok", f"{len(films)} films")


def _judge(found_HW: np.ndarray, expected_HW: np.ndarray, most_levels: float, package: str) -> Finding:
    levels = float(np.abs(found_HW - expected_HW).max() * 255)
    facts = {"largest_difference_of_255": round(levels, 4)}
    if not levels <= most_levels:
        value = f"comes back other than meant, by {levels:.2g} of 255"
        return Finding("broken", value, advise_reinstall(package), facts)
    return Finding("ok", f"within {levels:.1f} of 255 grey levels", facts=facts)
