"""The ingest and the audit of its stores, as their users run them, on films full of canaries.

They stand wherever an archive may hold identifiers.
"""

import base64
import csv
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from chess_cxr.deidentify.profile import VITAL
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import draw_exposure, render_film
from chess_cxr.store import open_store
from command_line import Answer, run
from dicom_films import CANARIES, DAY, DIGITS, WORD, build_film, find_canaries, plant_canaries, write_film

WRITTEN = {"pairs.csv", "patients.csv", "lists.csv", "report.html"}
NEEDED = VITAL | {"SOPClassUID", "PixelData", "BurnedInAnnotation", "Modality", "BodyPartExamined"}
NEEDED |= {"WindowCenter", "WindowWidth"}


def draw_chest(number: int) -> np.ndarray:
    return render_film(draw_anatomy(number), draw_exposure(number), size=256).pixels.astype("<u2")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM films, pictures and broken files, all of whose names, headers and comments are canaries."""
    folder = tmp_path_factory.mktemp("archive") / "films"
    deep = folder / f"{WORD}^{DIGITS}" / DAY
    deep.mkdir(parents=True)
    film = build_film(draw_chest(0), Modality="CR", BodyPartExamined="CHEST")
    plant_canaries(film, spared=set(NEEDED))
    written = write_film(film, ImplementationVersionName=WORD)  # thousands of attributes: seconds each time
    (deep / f"{WORD}0.dcm").write_bytes(written)
    (deep / f"{WORD}1.dcm").write_bytes(change(written, draw_chest(0).tobytes(), draw_chest(1).tobytes()))
    rows = [b"\x28\x00\x10\x00US\x02\x00" + struct.pack("<H", count) for count in (256, 255 * 256)]
    (deep / f"{WORD}-broken.dcm").write_bytes(change(written, *rows))
    (deep / f"{WORD}-text.dcm").write_text(f"{WORD} {DIGITS} {DAY}")
    words = PngInfo()
    words.add_text("Comment", f"{WORD} {DIGITS}")
    picture = Image.fromarray((draw_chest(2) >> 4).astype(np.uint8))
    picture.save(deep / f"{WORD}.png", pnginfo=words)
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(deep / f"{WORD}.jpg", comment=f"{WORD} {DIGITS}".encode())
    return folder


def change(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def write_table(folder: Path, table: Path) -> None:
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["path", "name", "case", "exam", "date", "maker", "projection", "years", "gender", "note", "sick"]
        )
        for path in sorted(folder.rglob("*.*")):
            row = [path.relative_to(folder), path.name, WORD, f"1.2.{DIGITS}", DAY, WORD, WORD, WORD, WORD, WORD, 1]
            writer.writerow(row)


Ingested = dict[str, tuple[Answer, Path]]


@pytest.fixture(scope="module")
def ingested(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """What the ingest said and the store that it wrote: with what the tree tells of the films, and with a table."""
    folder = tmp_path_factory.mktemp("ingested")
    write_table(archive, folder / "films.csv")
    fields = {"uid": "name", "patient": "case", "study": "exam", "study_date": "date", "manufacturer": "maker"}
    fields |= {"view": "projection", "age": "years", "sex": "gender", "labels": "sick"}
    table = ["--table", folder / "films.csv", "--columns", *(f"{name}={text}" for name, text in fields.items())]
    done: Ingested = {}
    for described, words in (("by the tree", []), ("by a table", table)):
        out = folder / described.replace(" ", "_") / "s.lance"
        out.parent.mkdir()
        done[described] = run("ingest", archive, "--out", out, "--workers", 1, *words), out
    return done


def find_in_folder(folder: Path) -> list[tuple[str, str]]:
    """Canaries in the names and bytes of all files of a folder, and in the pictures within its pages."""
    found = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content = path.read_bytes() if path.is_file() else b""
        pictures = [base64.b64decode(text) for text in re.findall(rb"data:image/jpeg;base64,([^\"]+)", content)]
        found += [(name, canary) for part in (name.encode(), content, *pictures) for canary in find_canaries(part)]
    return found


@pytest.mark.parametrize("described", ["by the tree", "by a table"])
def test_no_canary_reaches_store_quarantine_or_output(ingested: Ingested, described: str) -> None:
    done, out = ingested[described]
    assert done.code == 1, done.out + done.err
    assert done.out
    assert find_canaries((done.out + done.err).encode()) == []
    store = open_store(out)
    assert len(store) == 4, done.out
    quarantine = next(out.parent.glob("*quarantine*.csv")).read_text()
    assert quarantine.count("\n") == 3
    for column in store.films.columns:
        for value in store.films[column]:
            assert find_canaries(value if isinstance(value, bytes) else str(value).encode()) == [], column
            assert not isinstance(value, float) or not np.isclose(value, float(DIGITS)), column
    assert find_in_folder(out.parent) == []


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_no_canary_reaches_what_an_audit_of_overlapping_stores_writes(
    ingested: Ingested, tmp_path: Path, form: list[str]
) -> None:
    stores = [out for _, out in ingested.values()]
    uids = open_store(stores[1]).films["uid"]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join([f"name,{WORD},{DIGITS}", *(f"{WORD},{DAY},{uid}" for uid in uids)]))
    (tmp_path / "foreign.txt").write_text(f"{WORD}\n{DIGITS} {DAY}\n")
    lists = ["--training-list", listed, tmp_path / "foreign.txt"]
    done = run("audit", *stores, *lists, "--thorough", "--out", tmp_path / "out" / "audit", *form)
    assert done.code == 1, done.out + done.err
    assert "compare pictures" in done.err and done.out
    assert find_canaries((done.out + done.err).encode()) == []
    assert {path.name for path in (tmp_path / "out" / "audit").iterdir()} == WRITTEN
    for name in WRITTEN - {"report.html"}:
        assert (tmp_path / "out" / "audit" / name).read_text().count("\n") > 1, f"{name} is empty: nothing was tested"
    assert "data:image/jpeg;base64," in (tmp_path / "out" / "audit" / "report.html").read_text()
    assert find_in_folder(tmp_path / "out") == []


def test_the_archive_of_this_test_holds_every_canary(archive: Path) -> None:
    names = "".join(str(path) for path in archive.rglob("*")).encode()
    assert find_canaries(names) == [CANARIES[0], DIGITS, DAY]
    assert {canary for _, canary in find_in_folder(archive)} == {*CANARIES}
    assert all(find_canaries(path.read_bytes()) for path in archive.rglob("*.*") if path.is_file())
