"""The whole ingest, as its users run it, over films that hold canaries wherever an archive may hold identifiers."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_films import CANARIES, DAY, DIGITS, WORD, build_film, find_canaries, plant_canaries, write_film
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from chess_cxr.ingest.dicom_profile import VITAL
from chess_cxr.sources.phantom import draw_exposure, render_film
from chess_cxr.sources.phantom_anatomy import draw_anatomy
from chess_cxr.store import open_store

KEY = "a key of more than sixteen bytes"
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
    for number in range(2):
        film.PixelData = draw_chest(number).tobytes()
        (deep / f"{WORD}{number}.dcm").write_bytes(write_film(film, ImplementationVersionName=WORD))
    film.Rows = 255 * 256
    (deep / f"{WORD}-broken.dcm").write_bytes(write_film(film))
    (deep / f"{WORD}-text.dcm").write_text(f"{WORD} {DIGITS} {DAY}")
    words = PngInfo()
    words.add_text("Comment", f"{WORD} {DIGITS}")
    picture = Image.fromarray((draw_chest(2) >> 4).astype(np.uint8))
    picture.save(deep / f"{WORD}.png", pnginfo=words)
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(deep / f"{WORD}.jpg", comment=f"{WORD} {DIGITS}".encode())
    return folder


def write_table(folder: Path, table: Path) -> None:
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["path", "name", "case", "exam", "date", "maker", "projection", "years", "gender", "note", "sick"]
        )
        for path in sorted(folder.rglob("*.*")):
            row = [path.relative_to(folder), path.name, WORD, f"1.2.{DIGITS}", DAY, WORD, WORD, WORD, WORD, WORD, 1]
            writer.writerow(row)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CHESS_CXR_ID_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "chess_cxr", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("described", ["by the tree", "by a table"])
def test_no_canary_reaches_store_quarantine_or_output(archive: Path, tmp_path: Path, described: str) -> None:
    out = tmp_path / "out" / "s.lance"
    out.parent.mkdir()
    words: list[object] = ["ingest", archive, "--out", out, "--workers", 1]
    if described == "by a table":
        write_table(archive, tmp_path / "films.csv")
        fields = {"uid": "name", "patient": "case", "study": "exam", "study_date": "date", "manufacturer": "maker"}
        fields |= {"view": "projection", "age": "years", "sex": "gender", "labels": "sick"}
        words += ["--table", tmp_path / "films.csv", "--columns", *(f"{name}={text}" for name, text in fields.items())]
    done = run(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout
    assert find_canaries((done.stdout + done.stderr).encode()) == []
    store = open_store(out)
    assert len(store) == 4, done.stdout
    quarantine = (out.parent / "s.quarantine.csv").read_text()
    assert quarantine.count("\n") == 3
    for column in store.films.columns:
        for value in store.films[column]:
            assert find_canaries(value if isinstance(value, bytes) else str(value).encode()) == [], column
            assert not isinstance(value, float) or not np.isclose(value, float(DIGITS)), column
    for path in out.parent.rglob("*"):
        assert find_canaries(str(path.relative_to(out.parent)).encode()) == []
        if path.is_file():
            assert find_canaries(path.read_bytes()) == [], path


def test_the_archive_of_this_test_holds_every_canary(archive: Path) -> None:
    names = "".join(str(path) for path in archive.rglob("*")).encode()
    assert find_canaries(names) == [CANARIES[0], DIGITS, DAY]
    assert all(find_canaries(path.read_bytes()) for path in archive.rglob("*.*") if path.is_file())
