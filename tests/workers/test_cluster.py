"""The same ingest on a real Dask cluster: a scheduler and two workers, each a process of its own."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chess_cxr.deidentify.identity import hash_id
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.records import ChessError, SourceFilm, UsageError
from chess_cxr.store import open_store
from chess_cxr.workers.cluster import connect_cluster
from command_line import Answer, run, run_process

KEY = b"a key of more than sixteen bytes"
# The films below are no chest films, and are to be stored all the same.
KEEP_ALL = QualityOptions(quarantine_not_chest=False)
OPTIONS = IngestOptions(id_key=KEY, longest_side=64, quality=KEEP_ALL)


@dataclass
class Cluster:
    """A scheduler's address and the processes of its workers; `folder` holds what they print."""

    address: str
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def read_logs(self) -> str:
        return "".join(log.read_text() for log in self.folder.glob("*.log"))


@contextlib.contextmanager
def run_cluster(folder: Path) -> Iterator[Cluster]:
    scheduler, address = start_scheduler(folder)
    running = Cluster(address, folder, [start_worker(folder, address, number) for number in range(2)])
    yield running
    for process in (*running.workers, scheduler):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with run_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def dying_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one test's own, which may kill its workers."""
    with run_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def start_scheduler(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    process = start(command + ["--no-dashboard"], folder / "scheduler.log", folder)
    return process, wait_for(folder / "scheduler.log", r"Scheduler at:\s+(tcp://\S+)")


def start_worker(folder: Path, address: str, number: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    log = folder / f"worker{number}.log"
    process = start([*command, "--no-dashboard", "--local-directory", str(folder)], log, folder)
    wait_for(log, r"Registered to:\s+(tcp://\S+)")
    return process


def start(command: list[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder)


def wait_for(log: Path, pattern: str) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := re.search(pattern, log.read_text()):
            return found[1]
        time.sleep(0.05)
    pytest.fail(f"{log.name} never said {pattern}: {log.read_text()}")


def write_films(folder: Path, count: int) -> list[SourceFilm]:
    folder.mkdir()
    films = []
    for number in range(count):
        ramp = np.linspace(number, 255, 600 * 700).reshape(600, 700).astype(np.uint8)
        path = folder / f"SECRET{number}.png"
        Image.fromarray(ramp).save(path)
        films.append(SourceFilm(path=path, uid=path.name))
    films[7].path.write_bytes(b"text")
    return films


@pytest.mark.long
def test_a_worker_killed_in_the_middle_costs_no_film_and_doubles_none(tmp_path: Path, dying_cluster: Cluster) -> None:
    cluster = dying_cluster
    films = write_films(tmp_path / "raw", 120)
    done: list[int] = []

    def kill_one() -> None:
        done.append(1)
        if len(done) == 20:
            cluster.workers[0].kill()

    with connect_cluster(cluster.address) as (executor, threads):
        assert threads == 2
        summary = ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, in_flight=100), executor, kill_one)
    assert len(done) == 120
    assert cluster.workers[0].wait(10) != 0
    assert summary.films == 119
    assert summary.quarantined == {"not a DICOM, PNG, JPEG, TIFF, WebP, NIfTI or MetaImage file": 1}
    expected = [hash_id(KEY, "uid", film.uid) for number, film in enumerate(films) if number != 7]
    assert list(open_store(tmp_path / "s.lance").films["uid"]) == expected
    assert "SECRET" not in cluster.read_logs()


@pytest.mark.long
def test_when_all_workers_are_lost_the_ingest_goes_on_later(tmp_path: Path, dying_cluster: Cluster) -> None:
    cluster = dying_cluster
    films = write_films(tmp_path / "raw", 60)
    done: list[int] = []

    def lose_all() -> None:
        done.append(1)
        if len(done) == 24:
            executor.shutdown(wait=False)

    options = replace(OPTIONS, films_a_commit=8, in_flight=16)
    lost = pytest.raises(ChessError, match=r"the workers were lost \(\w+\); run the same command again")
    with connect_cluster(cluster.address) as (executor, _), lost:
        ingest_films(films, tmp_path / "s.lance", options, executor, lose_all)
    with connect_cluster(cluster.address) as (executor, _):
        summary = ingest_films(films, tmp_path / "s.lance", options, executor)
    assert (summary.films, summary.resumed) == (59, 24)
    assert open_store(tmp_path / "s.lance").films["uid"].is_unique


def test_the_command_takes_a_cluster(tmp_path: Path, cluster: Cluster) -> None:
    write_films(tmp_path / "raw", 12)
    keep_all = "--quality.no-quarantine-not-chest"
    done = run("ingest", tmp_path / "raw", "--out", tmp_path / "s.lance", "--cluster", cluster.address, keep_all)
    assert done.code == 1
    assert "11 films of 11 patients stored" in done.out
    assert len(open_store(tmp_path / "s.lance")) == 11
    assert "SECRET" not in done.out + done.err + cluster.read_logs()


@pytest.mark.parametrize(
    "address", ["elsewhere", "tcp://127.0.0.1", "http://127.0.0.1:8786", "127.0.0.1:99999", "a b:1"]
)
def test_what_is_no_address_is_wrong_use_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="is not the address of a Dask scheduler, such as"), connect_cluster(address):
        pass
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("listens", [False, pytest.param(True, marks=pytest.mark.long)])
def test_where_no_scheduler_answers_one_line_says_so_after_ten_seconds(tmp_path: Path, listens: bool) -> None:
    write_films(tmp_path / "raw", 8)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:  # and says nothing
            other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        started = time.monotonic()
        done = run_process("ingest", tmp_path / "raw", "--out", tmp_path / "s.lance", "--cluster", address)
    assert time.monotonic() - started < 25
    assert done == Answer(1, "", f"chess-cxr: no Dask scheduler answers at {address}\n")


def test_an_address_without_a_scheme_is_tcp(cluster: Cluster) -> None:
    with connect_cluster(cluster.address.removeprefix("tcp://")) as (executor, threads):
        assert (executor.submit(abs, -1).result(), threads) == (1, 2)
