"""What goes wrong around a node, and costs no film: killed processes, lost children, full disks, mute servers."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest

from chess_cxr.serve import send as sending
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.queue import Queue, QueueError, Worker
from chess_cxr.serve.work import FindingsModel, start
from chess_cxr.tasks.answer import FilmAnswer
from chess_cxr.workers.child import NoChild
from chess_cxr.workers.pool import WORKER_DIED
from pacs_node import (
    PACS,
    SHA,
    answer_by_grey,
    count,
    find_port,
    is_absent,
    run_node,
    run_store,
    run_tool,
    wait_until,
    write_radiograph,
)

needs_store = pytest.mark.skipif(is_absent("storescp"), reason="no storescp (Debian: dcmtk)")


class Failing:
    """A model that fails so many times, each time in the same way, before it answers."""

    def __init__(self, times: int, error: Exception | None = None, reason: str = "") -> None:
        self.times, self.error, self.reason, self.calls = times, error, reason, 0

    def __call__(self, path: Path) -> FilmAnswer:
        self.calls += 1
        if self.calls > self.times:
            return answer_by_grey(path)
        if self.error:
            raise self.error
        return FilmAnswer("grey", SHA, SHA, reason=self.reason)


@contextmanager
def run_here(spool: Path, model: Failing, target: str = "", **told: Any) -> Iterator[Queue]:
    """Run a node in this process with a film in its queue."""
    told = {"first_wait": 0.05, "longest_wait": 0.2} | told
    target = target or f"STORE@127.0.0.1:{find_port()}"
    Queue(spool).add("film", write_radiograph(spool.parent / "film.dcm").read_bytes())
    node = start(PacsOptions(spool, target, find_port(), calling=(PACS,), **told), [FindingsModel(SHA, model)])
    try:
        yield node.queue
    finally:
        node.stop()


def test_a_film_that_processes_left_waits_no_longer_when_it_fails(tmp_path: Path) -> None:
    """Twelve processes were killed while they had the film; then the model fails once."""
    spool = tmp_path / "spool"
    Queue(spool).add("film", write_radiograph(tmp_path / "film.dcm").read_bytes())
    for _ in range(12):
        killed = Worker(Queue(spool))
        assert Queue(spool).claim("received", killed)
        killed.close()
    with run_here(spool, Failing(1, RuntimeError()), longest_wait=300.0, tries=30):
        wait_until(lambda: count(spool)["answered"] == 1, 60, spool)


@pytest.mark.parametrize("reason", [WORKER_DIED, "not decoded within 60 seconds"])
def test_a_film_is_not_refused_at_once_because_a_child_was_lost(reason: str, tmp_path: Path) -> None:
    model = Failing(2, reason=reason)
    with run_here(tmp_path / "spool", model) as queue:
        wait_until(lambda: queue.count()["answered"] == 1, 60, tmp_path / "spool")
    assert model.calls == 3


@pytest.mark.parametrize("error", [NoChild("no memory"), QueueError(OSError())])
def test_a_machine_without_memory_or_disk_fails_no_film(error: Exception, tmp_path: Path) -> None:
    with run_here(tmp_path / "spool", Failing(5, error), tries=2) as queue:
        wait_until(lambda: queue.count()["answered"] == 1, 60, tmp_path / "spool")


@needs_store
def test_children_that_are_killed_cost_no_film(tmp_path: Path) -> None:
    """For want of memory, say, or as systemd ends a service; here all of them, again and again."""
    store, spool = find_port(), tmp_path / "spool"
    for number in range(1, 4):
        film = write_radiograph(tmp_path / f"{number}.dcm", number)
        Queue(spool).add(str(number), film.read_bytes())
    told: dict[str, Any] = {"dicom_port": find_port(), "tries": 30, "first_wait": 0.1, "longest_wait": 1.0}
    with run_store(tmp_path / "out", store) as out, run_node(spool, f"STORE@127.0.0.1:{store}", **told) as node:
        for _ in range(12):
            subprocess.run(["pkill", "-KILL", "-P", str(node.pid)], check=False)
            time.sleep(0.7)
        wait_until(lambda: count(spool)["sent"] == 3, 120, spool)
        results = [pydicom.dcmread(path) for path in out.iterdir()]
    reports = {str(result.SOPInstanceUID): str(result) for result in results if result.Modality == "SR"}
    assert len(reports) == 3 and not any(WORKER_DIED in report for report in reports.values())


@needs_store
def test_results_go_by_tls_to_a_server_that_proves_who_it_is(tmp_path: Path) -> None:
    for name, host in (("store", "IP:127.0.0.1"), ("node", "DNS:node"), ("other", "IP:127.0.0.1")):
        run_tool(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-addext", f"subjectAltName={host}", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem",
        )  # fmt: skip
    node = {"tls_certificate": tmp_path / "node.pem", "tls_key": tmp_path / "node.key", "tls_clients": tmp_path / "x"}
    (tmp_path / "x").write_bytes((tmp_path / "node.pem").read_bytes())
    spool, store = tmp_path / "spool", find_port()
    secured = ("+tls", tmp_path / "store.key", tmp_path / "store.pem", "--add-cert-file", tmp_path / "node.pem")
    target = f"STORE@127.0.0.1:{store}"
    with run_store(tmp_path / "out", store, *secured) as out:
        for told in ({}, {"results_tls": tmp_path / "other.pem"}):  # in plain text, or to a stranger
            with run_here(spool, Failing(0), target, **node, **told) as queue:
                wait_until(lambda queue=queue: queue.count()["answered"] == 1, 60, spool)
                time.sleep(3)
                assert not list(out.iterdir())
        with run_here(spool, Failing(0), target, results_tls=tmp_path / "store.pem", **node) as queue:
            wait_until(lambda: queue.count()["sent"] == 1, 60, spool)
        assert [pydicom.dcmread(path).Modality for path in out.iterdir()] == ["SR"]


@needs_store
def test_a_server_that_stops_amid_a_message_holds_no_results_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom waits for the rest of a PDU for ever."""
    monkeypatch.setattr(sending, "STEP_SECONDS", 6.0)
    spool = tmp_path / "spool"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with run_here(spool, Failing(0), f"STORE@127.0.0.1:{port}") as queue:
            connection, _ = mute.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"\x02\0\0\0\1\0amid")
                mute.close()
                with run_store(tmp_path / "out", port) as out:
                    wait_until(lambda: queue.count()["sent"] == 1, 60, spool)
                    assert len(list(out.iterdir())) == 1
