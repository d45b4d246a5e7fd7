import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pydicom
import pytest

from chess_cxr.deidentify import copies as dicom_copies
from chess_cxr.deidentify.copies import check_apart
from chess_cxr.deidentify.identity import hash_id, hash_uid
from chess_cxr.deidentify.options import DeidentifyOptions
from chess_cxr.files.listing import list_location
from chess_cxr.records import ChessError, SourceFilm, UsageError
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import WORKER_DIED, build_ingest_pool
from dicom_films import DIGITS, WORD, build_film, find_canaries, write_film
from places import HELPERS
from shared_child import deidentify_files

KEY = b"a key of more than sixteen bytes"
OPTIONS = DeidentifyOptions(KEY)


def write_films(folder: Path, count: int, patients: int = 3) -> list[SourceFilm]:
    folder.mkdir(parents=True)
    for number in range(count):
        film = build_film(PatientID=f"MRN-{number % patients}", SOPInstanceUID=f"1.2.3.1.{number}")
        film.StudyInstanceUID = f"1.2.3.2.{number % patients}"
        (folder / f"{number:02d}.dcm").write_bytes(write_film(film))
    return list_films(folder)


def list_films(folder: Path) -> list[SourceFilm]:
    return [SourceFilm(path, name) for path, name in list_location(folder)]


def read_report(out: Path) -> list[dict[str, str]]:
    with open(out / "report.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_film_has_its_copy_where_its_hashes_say_and_a_row_in_the_report(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 7)
    steps = []
    summary = deidentify_files(films, tmp_path / "out", OPTIONS, on_film=lambda: steps.append(1))
    assert (summary.copied, summary.refused, len(steps)) == (7, {}, 7)
    assert summary.as_text().startswith("7 films copied in")
    rows = read_report(tmp_path / "out")
    for number, row in enumerate(rows):
        names = (("patient", f"MRN-{number % 3}"), ("study", f"1.2.3.2.{number % 3}"), ("uid", f"1.2.3.1.{number}"))
        assert row["copy"] == "/".join(hash_id(KEY, kind, text) for kind, text in names) + ".dcm"
        assert row["uid"] == hash_id(KEY, "uid", f"{number:02d}.dcm")
        assert pydicom.dcmread(tmp_path / "out" / row["copy"]).SOPInstanceUID == hash_uid(KEY, f"1.2.3.1.{number}")
    assert set(read_tree(tmp_path / "out")) == {"report.csv", *(row["copy"] for row in rows)}


@pytest.mark.parametrize(
    "build", [lambda: build_ingest_pool(2), lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn"))]
)
def test_copies_are_the_same_in_an_executor_and_without(tmp_path: Path, build: Callable[[], Executor]) -> None:
    films = write_films(tmp_path / "raw", 20)
    (tmp_path / "raw" / "05.dcm").write_bytes(b"text")
    dicom_copies.deidentify_files(films, tmp_path / "one", OPTIONS)
    with build() as pool:
        deidentify_files(iter(films), tmp_path / "other", replace(OPTIONS, in_flight=8), pool)
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "other")


def test_what_is_no_film_is_in_the_report_with_its_reason(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 2)
    (tmp_path / "raw" / "empty").write_bytes(b"")
    (tmp_path / "raw" / "text.dcm").write_bytes(b"no DICOM")
    (tmp_path / "raw" / "burned.dcm").write_bytes(write_film(build_film(BurnedInAnnotation="YES")))
    os.mkfifo(tmp_path / "raw" / "pipe")
    films = list_films(tmp_path / "raw") + [SourceFilm(tmp_path / "gone", "gone"), SourceFilm(tmp_path / "raw", "raw")]
    films.append(SourceFilm(tmp_path / "raw" / "pipe", "pipe"))
    summary = deidentify_files(films, tmp_path / "out", OPTIONS)
    assert summary.copied == 2
    assert summary.refused == {
        "burned-in annotation is declared": 1,
        "empty file": 1,
        "not a DICOM file": 1,
        "file not found": 1,
        "not a regular file": 2,
    }
    assert [row["reason"] for row in read_report(tmp_path / "out") if row["status"] == "refused"]
    assert "6 refused: 2 not a regular file, 1 burned-in" in summary.as_text()
    allowed = deidentify_files(films, tmp_path / "more", replace(OPTIONS, allow_burned_in=True))
    assert allowed.copied == 3


def test_a_film_twice_has_one_copy_and_another_film_of_its_uid_is_refused(tmp_path: Path) -> None:
    write_films(tmp_path / "raw", 1)
    (tmp_path / "raw" / "again.dcm").write_bytes((tmp_path / "raw" / "00.dcm").read_bytes())
    other = build_film(PatientID="MRN-0", SOPInstanceUID="1.2.3.1.0", StudyInstanceUID="1.2.3.2.0", KVP="99")
    (tmp_path / "raw" / "other.dcm").write_bytes(write_film(other))
    summary = deidentify_files(list_films(tmp_path / "raw"), tmp_path / "out", OPTIONS)
    assert (summary.copied, summary.refused) == (2, {"another film has the same SOP Instance UID": 1})
    assert len({row["copy"] for row in read_report(tmp_path / "out") if row["copy"]}) == 1


def test_names_of_files_and_folders_reach_neither_copies_nor_report_nor_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / WORD / f"{WORD}^{DIGITS}"
    films = write_films(raw, 2)
    films.append(SourceFilm(raw / f"{WORD}.dcm", f"{WORD}.dcm"))
    (raw / f"{WORD}.txt").write_text(WORD)
    films.append(SourceFilm(raw / f"{WORD}.txt", f"{WORD}.txt", patient=WORD))
    # its child is started here, so that all it prints would be seen
    summary = dicom_copies.deidentify_files(films, tmp_path / "out", OPTIONS)
    assert (summary.copied, sum(summary.refused.values())) == (2, 2)
    said = capfd.readouterr()
    assert find_canaries((summary.as_text() + said.out + said.err).encode()) == []
    for name, content in read_tree(tmp_path / "out").items():
        assert find_canaries(name.encode() + content) == []


def test_a_film_that_crashes_hangs_or_takes_all_memory_is_refused_and_the_others_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    monkeypatch.syspath_prepend(str(HELPERS))
    import odd_paths

    films = write_films(tmp_path / "raw", 4)
    large = build_film(Rows=8000, Columns=8000, SOPInstanceUID="1.2.3.1.99")
    large.PixelData = bytes(2 * 8000 * 8000)
    (tmp_path / "large.dcm").write_bytes(write_film(large))
    films[1] = SourceFilm(odd_paths.PathThatKillsItsReader(), "kills")
    films[2] = SourceFilm(odd_paths.PathThatNeverAnswers(), "hangs")
    films.append(SourceFilm(tmp_path / "large.dcm", "large"))
    options = replace(OPTIONS, limits=Limits(film_seconds=2, film_gib=0.1))
    with build_ingest_pool(1) as pool:
        deidentify_files(films, tmp_path / "out", options, pool)
    reasons = [row["reason"] for row in read_report(tmp_path / "out")]
    assert reasons[:4] == ["", WORKER_DIED, "not decoded within 2 seconds", ""]
    assert reasons[4] in ("not enough memory to read it", "file cannot be read (MemoryError)", WORKER_DIED)
    assert len(read_tree(tmp_path / "out")) == 3
    with pytest.raises(UsageError, match="limits must be above 0"):
        deidentify_files(films, tmp_path / "more", replace(OPTIONS, limits=Limits(film_seconds=0)))


class _Killed(BaseException):
    """What ends a run where a signal would."""


def stop_after(films: list[SourceFilm], count: int) -> Iterator[SourceFilm]:
    for number, film in enumerate(films):
        if number == count:
            raise _Killed
        yield film


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 9)
    deidentify_files(films, tmp_path / "whole", OPTIONS)
    with pytest.raises(_Killed):
        deidentify_files(stop_after(films, 5), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "report.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    assert len(before) == 5
    summary = deidentify_files(films, tmp_path / "out", OPTIONS)
    assert summary.copied == 9
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


def test_a_torn_row_and_a_lost_copy_are_done_again(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 6)
    deidentify_files(films, tmp_path / "whole", OPTIONS)
    for damage in ("torn", "lost"):
        out = tmp_path / damage
        with pytest.raises(_Killed):
            deidentify_files(stop_after(films, 4), out, OPTIONS)
        report = out / ".partial" / "report.csv"
        if damage == "torn":
            report.write_bytes(report.read_bytes()[:-9])
        else:
            (out / report.read_text().splitlines()[2].split(",")[3]).unlink()
        (out / ".partial" / "film.dcm.1-2").write_bytes(b"half a copy")
        assert deidentify_files(films, out, OPTIONS).copied == 6
        assert read_tree(out) == read_tree(tmp_path / "whole")


KILL = """
import sys, time
from pathlib import Path
from chess_cxr.deidentify.copies import deidentify_files
from chess_cxr.deidentify.options import DeidentifyOptions
from chess_cxr.records import SourceFilm
films = [SourceFilm(path, path.name) for path in sorted(Path(sys.argv[1]).iterdir())]
deidentify_files(films, Path(sys.argv[2]), DeidentifyOptions(sys.argv[3].encode()), on_film=lambda: time.sleep(0.05))
"""


def test_a_killed_process_leaves_no_half_copy_and_can_be_continued(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 40)
    deidentify_files(films, tmp_path / "whole", OPTIONS)
    child = subprocess.Popen([sys.executable, "-c", KILL, tmp_path / "raw", tmp_path / "out", KEY.decode()])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("*.dcm"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ChessError, match="another run is writing"):
        deidentify_files(films, tmp_path / "out", OPTIONS)
    child.kill()
    assert child.wait() != 0
    whole = read_tree(tmp_path / "whole")
    for path in (tmp_path / "out").glob("[0-9a-f]*/*/*.dcm"):
        assert path.read_bytes() == whole[str(path.relative_to(tmp_path / "out"))]
    assert deidentify_files(films, tmp_path / "out", OPTIONS).copied == 40
    assert read_tree(tmp_path / "out") == whole


def test_a_listing_that_fails_midway_takes_no_copy_away(tmp_path: Path) -> None:
    def list_some() -> Iterator[SourceFilm]:
        yield from films[:4]
        raise UsageError("no permission to list the rest")

    films = write_films(tmp_path / "raw", 6)
    with pytest.raises(UsageError, match="no permission to list the rest"):
        deidentify_files(list_some(), tmp_path / "out", OPTIONS)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 4
    assert deidentify_files(films, tmp_path / "out", OPTIONS).copied == 6


def test_a_run_is_only_continued_with_its_own_key_options_and_films(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 5)
    with pytest.raises(_Killed):
        deidentify_files(stop_after(films, 3), tmp_path / "out", OPTIONS)
    before = read_tree(tmp_path / "out")
    for other in (replace(OPTIONS, id_key=KEY[::-1]), replace(OPTIONS, allow_burned_in=True)):
        with pytest.raises(UsageError, match="begun with another key or other options"):
            deidentify_files(films, tmp_path / "out", other)
    for wrong in (films[1:], films[:2]):
        with pytest.raises(UsageError, match="begun with other films"):
            deidentify_files(wrong, tmp_path / "out", OPTIONS)
    assert read_tree(tmp_path / "out") == before
    assert KEY not in b"".join(before.values())


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    deidentify_files(films, tmp_path / "done", OPTIONS)
    before = read_tree(tmp_path)
    for out in ("full", "file", "done"):
        with pytest.raises(UsageError, match=r"not empty|exists already"):
            deidentify_files(films, tmp_path / out, OPTIONS)
    assert read_tree(tmp_path) == before


def test_no_film_is_wrong_use_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no film"):
        deidentify_files([], tmp_path / "out", OPTIONS)
    with pytest.raises(UsageError, match="in_flight"):
        deidentify_files([], tmp_path / "out", replace(OPTIONS, in_flight=0))
    assert not (tmp_path / "out").exists()


def test_copies_and_films_must_lie_apart(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for out in (tmp_path / "raw", tmp_path / "raw" / "out", tmp_path):
        with pytest.raises(UsageError, match="within each other"):
            check_apart(out, [tmp_path / "raw"])
    check_apart(tmp_path / "out", [tmp_path / "raw", "s3://bucket/raw"])


def test_a_disk_that_takes_no_more_is_one_clear_line_and_the_run_can_go_on(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 3)
    with pytest.raises(_Killed):
        deidentify_files(stop_after(films, 1), tmp_path / "out", OPTIONS)
    child = subprocess.run(
        [sys.executable, "-c", FULL + KILL, tmp_path / "raw", tmp_path / "out", KEY.decode()],
        capture_output=True,
        text=True,
    )
    assert f"cannot write below {tmp_path / 'out'} (File too large)" in child.stderr.splitlines()[-1]
    assert deidentify_files(films, tmp_path / "out", OPTIONS).copied == 3


FULL = """
import os, resource, signal, sys
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # Python would leave the first half of a module's bytecode, for all to read
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""


class LostPool(ThreadPoolExecutor):
    """An executor whose second task never comes back."""

    given = 0

    def submit(self, *arguments: object, **named: object) -> Future[object]:
        self.given += 1
        if self.given < 2:
            return super().submit(*arguments, **named)
        lost: Future[object] = Future()
        lost.set_exception(RuntimeError("worker tcp://10.0.0.1 is gone"))
        return lost


def test_lost_workers_are_one_clear_line_and_the_run_can_go_on(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 20)
    with LostPool(1) as pool, pytest.raises(ChessError, match=r"workers were lost \(RuntimeError\)"):
        deidentify_files(films, tmp_path / "out", OPTIONS, pool)
    assert deidentify_files(films, tmp_path / "out", OPTIONS).copied == 20
