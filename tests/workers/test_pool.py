"""Films through decoding processes: in order, within limits, past crashes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions, encode_film_file, encode_in_child, encode_in_order
from chess_cxr.ingest.options import QualityOptions
from chess_cxr.records import ChessError, SourceFilm
from chess_cxr.workers.child import STARTS, Limits, drop_child, get_child
from chess_cxr.workers.pool import FILMS_A_TASK, WORKER_DIED, build_ingest_pool, build_pool
from dicom_films import build_film, write_film
from places import HELPERS

OPTIONS = EncodeOptions(quality=QualityOptions(quarantine_not_chest=False))  # ramps are no chest films
LIMITS = Limits()


class CountingExecutor(ThreadPoolExecutor):
    """An executor that knows how many tasks it was given."""

    given = 0

    def submit(self, *arguments: object, **named: object) -> Future[list[EncodedFilm]]:
        self.given += 1
        return super().submit(*arguments, **named)


@pytest.fixture
def odd_paths(monkeypatch: pytest.MonkeyPatch):
    """The module of odd paths, which decoding processes started from now on can import too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(HELPERS))
    import odd_paths

    return odd_paths


def write_films(folder: Path, count: int, side: int = 64) -> list[SourceFilm]:
    """Write films with a grey ramp of their own, each as wide as its number plus `side`."""
    films = []
    for number in range(count):
        ramp = np.linspace(0, 255, side * (side + number)).reshape(side, side + number).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(ramp).save(path)
        films.append(SourceFilm(path=path, uid=path.name))
    return films


def list_widths(pairs: Iterator[tuple[SourceFilm, EncodedFilm]]) -> list[tuple[str, int]]:
    return [(film.uid, encoded.width) for film, encoded in pairs]


@pytest.mark.parametrize("build", [lambda: None, lambda: build_ingest_pool(3), lambda: build_pool(2)])
def test_films_come_out_in_the_order_they_went_in(tmp_path: Path, build) -> None:
    films = write_films(tmp_path, 20)
    expected = [(film.uid, 64 + number) for number, film in enumerate(films)]
    pool = build()
    assert list_widths(encode_in_order(films, OPTIONS, LIMITS, pool, 16)) == expected
    if pool:
        pool.shutdown()


def test_no_more_films_are_under_way_than_asked_for(tmp_path: Path) -> None:
    films = write_films(tmp_path, 60)
    with CountingExecutor(2) as pool:
        for done, _ in enumerate(encode_in_order(iter(films), OPTIONS, LIMITS, pool, 24)):
            assert pool.given * FILMS_A_TASK - done <= 24 + FILMS_A_TASK
    assert pool.given == -(-60 // FILMS_A_TASK)


def test_the_spacing_grows_as_the_film_shrinks(real_films: Path) -> None:
    path = real_films / "dicom" / "siim_850819.dcm"
    encoded = encode_film_file(path, EncodeOptions(longest_side=256))
    assert (encoded.height, encoded.width) == (256, 256)
    assert encoded.spacing_mm == pytest.approx(0.168 * 4)
    assert encode_film_file(path, EncodeOptions(longest_side=4096)).spacing_mm == pytest.approx(0.168)


def test_a_film_that_kills_its_process_is_named_and_no_other_film_is_lost(tmp_path: Path, odd_paths) -> None:
    films = write_films(tmp_path, 9)
    films[4] = SourceFilm(path=odd_paths.PathThatKillsItsReader(), uid=films[4].uid)
    with build_ingest_pool(1) as pool:
        pairs = list(encode_in_order(films, OPTIONS, LIMITS, pool, 3))
    assert [film.uid for film, _ in pairs] == [film.uid for film in films]
    assert [encoded.reason for _, encoded in pairs] == ["", "", "", "", WORKER_DIED, "", "", "", ""]


def test_a_film_that_takes_too_long_is_left_out_and_the_next_is_read(tmp_path: Path, odd_paths) -> None:
    films = write_films(tmp_path, 3)
    films[1] = SourceFilm(path=odd_paths.PathThatNeverAnswers(), uid=films[1].uid)
    with build_ingest_pool(1) as pool:
        pairs = list(encode_in_order(films, OPTIONS, Limits(film_seconds=1), pool, 8))
    assert [encoded.reason for _, encoded in pairs] == ["", "not decoded within 1 seconds", ""]


def test_a_film_that_takes_more_memory_than_allowed_is_left_out_and_the_next_is_read(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(np.arange(8000 * 8000, dtype=np.uint32).astype(np.uint16).reshape(8000, 8000)).save(large)
    small = write_films(tmp_path, 1)[0]
    with build_ingest_pool(1) as pool:
        films = [SourceFilm(large, "large"), small]
        (_, refused), (_, read) = encode_in_order(films, OPTIONS, Limits(film_gib=0.1), pool, 8)
    assert refused.reason in ("not enough memory to decode it", WORKER_DIED)
    assert read.reason == ""


BUSY_OWNER = """
import sys
from pathlib import Path
from odd_paths import PathThatNeverAnswers
from chess_cxr.workers.child import get_child, Limits
from chess_cxr.ingest.encoding import EncodeOptions, encode_film_file
child = get_child(encode_film_file, Limits(film_seconds=1))
child.limits = Limits(film_seconds=600)
print(child._process.pid, flush=True)
child.ask(PathThatNeverAnswers(), EncodeOptions())
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_decoding_process_outlives_a_killed_owner_by_seconds_only(odd_paths) -> None:
    owner = subprocess.Popen([sys.executable, "-c", BUSY_OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    time.sleep(0.5)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert is_running(child)
    until = time.monotonic() + 30
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_running(child)


IDLE_OWNER = """
import threading, time
from chess_cxr.workers.child import get_child, Limits
from odd_paths import leave_thread
child = get_child(leave_thread, Limits())
child.ask()
print(child._process.pid, flush=True)
time.sleep(600)
"""


def test_a_child_does_not_outlive_its_owner_because_of_a_thread_that_its_task_left(odd_paths) -> None:
    """Such as that of an association, which would keep a DICOM node busy."""
    owner = subprocess.Popen([sys.executable, "-c", IDLE_OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 30
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_running(child)


def test_an_executor_that_loses_its_workers_is_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    films = write_films(tmp_path, 40)
    with build_pool(1) as pool:
        pairs = encode_in_order(films, OPTIONS, LIMITS, pool, 8)
        assert next(pairs)[0].uid == "0.png"
        kill_workers(pool)
        with pytest.raises(
            ChessError, match=r"the workers were lost \(BrokenProcessPool\); run the same command again"
        ):
            list(pairs)


def kill_workers(pool: ProcessPoolExecutor) -> None:
    for process in list(pool._processes.values()):
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_what_a_film_says_of_itself_travels_with_it(real_films: Path) -> None:
    encoded = encode_in_child(real_films / "dicom" / "siim_850819.dcm", OPTIONS, LIMITS)
    assert (encoded.header.sex, encoded.view, encoded.height) == ("M", "PA", 512)
    assert encoded.pixel_hash
    assert encoded.perceptual_hash


def test_a_child_that_was_killed_while_idle_costs_no_film(tmp_path: Path) -> None:
    film = write_films(tmp_path, 1)[0]
    assert encode_in_child(film.path, OPTIONS, LIMITS).reason == ""
    idle = get_child(encode_film_file, LIMITS)
    idle._process.kill()
    idle._process.wait()
    assert encode_in_child(film.path, OPTIONS, LIMITS).reason == ""


def test_a_film_whose_child_was_killed_for_others_is_tried_once_more(tmp_path: Path) -> None:
    (film,) = write_films(tmp_path, 1)
    child = get_child(encode_film_file, LIMITS)
    os.kill(child._process.pid, signal.SIGSTOP)
    threading.Timer(0.5, child.kill).start()  # while the film is under way
    assert encode_in_child(film.path, OPTIONS, LIMITS).reason == ""
    assert get_child(encode_film_file, LIMITS) is not child


def test_no_code_from_the_folder_one_stands_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = write_films(tmp_path, 1)[0]
    (tmp_path / "cv2.py").write_text("open('RUN', 'w').close()")
    monkeypatch.chdir(tmp_path)
    drop_child()
    assert encode_in_child(film.path, OPTIONS, LIMITS).reason == ""
    assert not (tmp_path / "RUN").exists()


DIE_WHILE_STARTING = """
import os, signal, sys
from pathlib import Path
if "chess_cxr.workers.child" in sys.orig_argv:
    deaths = Path(__file__).with_name("deaths")
    left = int(deaths.read_text())
    deaths.write_text(str(left - 1))
    if left > 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("deaths", "fails"), [(STARTS - 1, False), (STARTS, True)])
def test_a_child_that_is_killed_while_it_starts_is_started_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, fails: bool
) -> None:
    film = write_films(tmp_path, 1)[0]
    (tmp_path / "sitecustomize.py").write_text(DIE_WHILE_STARTING)
    (tmp_path / "deaths").write_text(str(deaths))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    drop_child()
    if fails:
        with pytest.raises(ChessError, match="cannot be started; is there memory left"):
            encode_in_child(film.path, OPTIONS, LIMITS)
    else:
        assert encode_in_child(film.path, OPTIONS, LIMITS).reason == ""
        assert (tmp_path / "deaths").read_text() == "-1"


class _Stopped(BaseException):
    """What ends a run as Ctrl-C does."""


def test_an_error_ends_the_children_at_once_and_no_film_is_blamed(tmp_path: Path, odd_paths) -> None:
    films = [SourceFilm(odd_paths.PathThatNeverAnswers(), str(number)) for number in range(20)]
    with pytest.raises(_Stopped), build_ingest_pool(2) as pool:
        futures = [pool.submit(encode_in_child, film.path, OPTIONS, LIMITS) for film in films]
        time.sleep(2)  # the children are at the first two, or still starting
        assert not any(future.done() for future in futures)
        started = time.monotonic()
        raise _Stopped
    assert time.monotonic() - started < 2
    assert sum(future.cancelled() for future in futures) == 18
    for future in futures[:2]:
        with pytest.raises(ChessError, match="the run was ended"):
            future.result()


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_films(tmp_path: Path) -> None:
    first, second = write_films(tmp_path, 2)
    child = get_child(encode_film_file, LIMITS)
    usual = signal.signal(signal.SIGALRM, interrupt)
    os.kill(child._process.pid, signal.SIGSTOP)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(_Stopped):
            encode_in_child(first.path, OPTIONS, LIMITS)
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert encode_in_child(second.path, OPTIONS, LIMITS).width == 65
    assert not is_running(child._process.pid)


def interrupt(number: int, frame: object) -> None:
    raise _Stopped


def start_command(command: str, folder: Path, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a command with two workers; return it and its two children as soon as they are there."""
    words = [sys.executable, "-m", "chess_cxr", command, str(folder), "--out", str(out), "--workers", "2"]
    environment = os.environ | {"CHESS_CXR_ID_KEY": "a key of more than sixteen bytes"}
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    until = time.monotonic() + 60
    while len(children := list_children(started.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    return started, children


def list_children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def link_films(film: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        os.link(film, folder / f"{number:04d}.dcm")
    return folder


@pytest.mark.parametrize(
    ("seconds", "command"),
    [
        (0.1, "deidentify"),
        (2.5, "ingest"),
        pytest.param(0.1, "ingest", marks=pytest.mark.long),
        pytest.param(2.5, "deidentify", marks=pytest.mark.long),
    ],
)
def test_ctrl_c_ends_a_command_at_once_though_its_films_hang(tmp_path: Path, command: str, seconds: float) -> None:
    (tmp_path / "film").write_bytes(write_film(build_film()))
    folder = link_films(tmp_path / "film", tmp_path / "films", 3000)
    started, children = start_command(command, folder, tmp_path / "out.lance")
    time.sleep(seconds)
    for child in children:
        os.kill(child, signal.SIGSTOP)  # a decoder that never returns
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    asked = time.monotonic()
    alive: list[int] = []
    try:
        said = started.communicate(timeout=30)
    finally:
        for process in filter(is_running, (started.pid, *children)):
            os.kill(process, signal.SIGKILL)
            alive.append(process)
    assert said == ("", "chess-cxr: interrupted\n")
    assert time.monotonic() - asked < 3
    assert started.returncode == 130
    assert not alive


@pytest.mark.parametrize("command", ["ingest", pytest.param("deidentify", marks=pytest.mark.long)])
def test_no_child_outlives_a_command_that_is_killed(tmp_path: Path, command: str) -> None:
    (tmp_path / "film").write_bytes(write_film(build_film()))
    folder = link_films(tmp_path / "film", tmp_path / "films", 3000)
    started, children = start_command(command, folder, tmp_path / "out.lance")
    time.sleep(1.5)
    started.kill()
    started.communicate()
    until = time.monotonic() + 10
    while any(map(is_running, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, children))
