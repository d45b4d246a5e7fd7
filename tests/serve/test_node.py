"""The whole node in its own process: dcmtk sends, the node answers, dcmtk receives; kills, outages, poison."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from tests.serve.test_results import read_findings

from chess_cxr.records import UsageError
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.queue import Queue
from chess_cxr.serve.work import start
from dicom_films import CANARIES, WORD, build_film, plant_canaries, write_film
from pacs_node import (
    BONES,
    NODE,
    PACS,
    SHA,
    answer_by_grey,
    build_model,
    count,
    end,
    find_port,
    find_tool,
    is_absent,
    listens,
    read_film,
    run_node,
    run_store,
    start_node,
    wait_until,
    write_radiograph,
)

pytestmark = pytest.mark.skipif(is_absent("storescp"), reason="no storescp (Debian: dcmtk)")


def send(port: int, *films: Path) -> bool:
    command = [
        find_tool("storescu"),
        "-aet",
        "STORESCU",
        "-aec",
        NODE,
        "--required",
        "127.0.0.1",
        str(port),
        *map(str, films),
    ]
    return subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def read_all(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def list_logged(spool: Path) -> str:
    return (spool.parent / f"{spool.name}.log").read_text()


def test_dcmtk_sends_films_and_gets_their_results(tmp_path: Path) -> None:
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    films = [write_radiograph(tmp_path / "in" / f"{n}.dcm", n) for n in (1, 2)]
    with run_store(tmp_path / "out", store) as out, run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=port):
        assert send(port, *films)
        wait_until(lambda: count(spool)["sent"] == 2)
        assert send(port, *films)  # the same again, from the archive
        time.sleep(1)
        results = read_all(out)
        assert len(results) == len({result.SOPInstanceUID for result in results}) == 6
        assert count(spool) == {"received": 0, "answered": 0, "sent": 2, "failed": 0}
    for film in films:
        uid = pydicom.dcmread(film).SOPInstanceUID
        reports = [
            path
            for path in out.iterdir()
            if (found := pydicom.dcmread(path)).Modality == "SR" and uid in str(found.ContentSequence)
        ]
        assert [read_findings(path) for path in reports] == [answer_by_grey(film).findings]
    assert not [*(spool / "films").iterdir(), *(spool / "results").iterdir()]


def test_results_that_come_back_are_not_answered(tmp_path: Path) -> None:
    """A router may send everything new to the node, its own pictures too."""
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    with run_store(tmp_path / "out", store) as out, run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=port):
        assert send(port, write_radiograph(tmp_path / "film.dcm"))
        wait_until(lambda: count(spool)["sent"] == 1)
        pictures = [path for path in out.iterdir() if pydicom.dcmread(path).Modality != "SR"]
        assert len(pictures) == 2 and send(port, *pictures)
        wait_until(lambda: count(spool)["sent"] == 3)
        assert len(list(out.iterdir())) == 3


def test_while_the_archive_is_down_results_wait_and_then_arrive(tmp_path: Path) -> None:
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    waits: dict[str, Any] = {"dicom_port": port, "first_wait": 0.25, "longest_wait": 1.0, "tries": 2}
    with run_node(spool, f"STORE@127.0.0.1:{store}", **waits):
        assert send(port, *(write_radiograph(tmp_path / f"{n}.dcm", n) for n in (1, 2)))
        wait_until(lambda: list_logged(spool).count("results wait") >= 5)
        assert count(spool) == {"received": 0, "answered": 2, "sent": 0, "failed": 0}
        with run_store(tmp_path / "out", store) as out:
            wait_until(lambda: count(spool)["sent"] == 2)
            assert len(list(out.iterdir())) == 6
    told = [line.rpartition("next try in ")[2] for line in list_logged(spool).splitlines() if "results wait" in line]
    assert told[:4] == ["0 seconds", "0 seconds", "1 seconds", "1 seconds"]  # 0.25, 0.5, 1, 1


def test_a_restart_goes_on_with_what_waits(tmp_path: Path) -> None:
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    node = start_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=port)
    assert send(port, write_radiograph(tmp_path / "film.dcm"))
    wait_until(lambda: count(spool)["answered"] == 1)
    node.kill()
    node.wait()
    with run_store(tmp_path / "out", store) as out, run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=port):
        wait_until(lambda: count(spool)["sent"] == 1)
        assert len(list(out.iterdir())) == 3


@pytest.mark.long
def test_killed_at_random_moments_every_film_gets_its_results_once(tmp_path: Path) -> None:
    """The sender repeats what was not confirmed, as archives do; every confirmed film must be answered."""
    port, store, spool, rng = find_port(), find_port(), tmp_path / "spool", random.Random(3)
    films = [write_radiograph(tmp_path / "in" / f"{n}.dcm", n) for n in range(1, 31)]
    unconfirmed, kills = list(films), 0
    told: dict[str, Any] = {"dicom_port": port, "workers": 2, "tries": 30}
    with run_store(tmp_path / "out", store) as out:
        while unconfirmed or kills < 12:
            node = start_node(spool, f"STORE@127.0.0.1:{store}", 0.02, **told)
            until = time.monotonic() + rng.uniform(0.3, 4)
            while time.monotonic() < until and unconfirmed:
                if send(port, unconfirmed[0]):
                    unconfirmed.pop(0)
            time.sleep(max(0, until - time.monotonic()))
            node.send_signal(signal.SIGKILL)
            kills += node.wait() == -signal.SIGKILL
            wait_until(lambda: not listens(port))
        with run_node(spool, f"STORE@127.0.0.1:{store}", **told):
            wait_until(lambda: count(spool)["sent"] == len(films), 300, spool)
        results = read_all(out)
    assert count(spool) == {"received": 0, "answered": 0, "sent": len(films), "failed": 0}
    assert len({result.SOPInstanceUID for result in results}) == 3 * len(films)
    assert len(results) <= 3 * len(films) + kills  # killed between sending and noting it: the same object again


def test_two_processes_share_one_spool(tmp_path: Path) -> None:
    ports, store, spool = (find_port(), find_port()), find_port(), tmp_path / "spool"
    films = [write_radiograph(tmp_path / f"{n}.dcm", n) for n in range(1, 9)]
    with run_store(tmp_path / "out", store) as out:
        target = f"STORE@127.0.0.1:{store}"
        with run_node(spool, target, 0.2, dicom_port=ports[0]), run_node(spool, target, 0.2, dicom_port=ports[1]):
            assert send(ports[0], *films) and send(ports[1], *films)
            wait_until(lambda: count(spool)["sent"] == len(films))
        assert len(list(out.iterdir())) == 3 * len(films)
    sent = [line for line in list_logged(spool).splitlines() if line.endswith(": sent")]
    assert len(sent) == len(set(sent)) == len(films)


def test_poison_ends_as_failed_with_a_reason_and_harms_nobody(tmp_path: Path) -> None:
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    nested = b""
    for _ in range(4000):  # sequences in sequences
        nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + nested
    deep = write_radiograph(tmp_path / "deep.dcm", 2).read_bytes()
    at = deep.index(b"\x28\x00\x02\x00US")
    (tmp_path / "deep.dcm").write_bytes(deep[:at] + nested + deep[at:])
    short = write_radiograph(tmp_path / "short.dcm", 3, PixelData=b"\0" * 100)
    huge = write_radiograph(tmp_path / "huge.dcm", 4, Rows=60_000, Columns=60_000)
    bare = write_radiograph(tmp_path / "bare.dcm", 5)
    film = pydicom.dcmread(bare)
    film.StudyInstanceUID = ""
    film.save_as(bare)
    with run_store(tmp_path / "out", store) as out, run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=port):
        for path in (short, huge, bare):
            assert send(port, path)
        good = write_radiograph(tmp_path / "good.dcm", 6)
        assert send(port, good)
        Queue(spool).add("deep", (tmp_path / "deep.dcm").read_bytes())  # dcmtk itself does not send it
        wait_until(lambda: (now := count(spool))["sent"] + now["failed"] == 5, 120)
        reasons = {failed.reason for failed in Queue(spool).list_failed()}
        assert "DICOM without SOP Class, SOP Instance, Series or Study Instance UID" in reasons
        assert all(0 < len(reason) < 200 and "\n" not in reason for reason in reasons)
        reports = [result for result in read_all(out) if result.Modality == "SR"]
        assert any(pydicom.dcmread(good).SOPInstanceUID in str(report.ContentSequence) for report in reports)
        refused = [
            report for report in reports if "Quality Finding" in str(report) and "Probability" not in str(report)
        ]
        assert len(refused) >= 2  # short and huge: refused, with the reason in the report


def test_no_canary_gets_into_a_log(tmp_path: Path) -> None:
    """A film with a canary in every attribute; the log holds everything down to DEBUG."""
    port, store, spool = find_port(), find_port(), tmp_path / "spool"
    (tmp_path / WORD).mkdir()
    for number, spared in enumerate([{"SOPClassUID", "SOPInstanceUID"}, set(build_film().dir()), set()]):
        film = build_film(SOPInstanceUID=f"1.2.907418263.{number}")
        plant_canaries(film, spared | {"SOPClassUID", "SOPInstanceUID", "TransferSyntaxUID", "PixelData"})
        (tmp_path / WORD / f"{number}.dcm").write_bytes(write_film(film))
    films = sorted((tmp_path / WORD).iterdir())
    named = write_radiograph(tmp_path / WORD / "named.dcm", 7, PatientName=WORD, PatientID=WORD, AccessionNumber=WORD)
    with run_node(spool, f"{WORD[:8]}@127.0.0.1:{store}", dicom_port=port, first_wait=0.1, longest_wait=0.2):
        for film in (*films, named):
            send(port, film)
        Queue(spool).add(WORD, films[0].read_bytes()[:3000])
        wait_until(lambda: count(spool)["received"] == 0 and count(spool)["answered"] > 0, 120)
        wait_until(lambda: "results wait" in list_logged(spool))
        with run_store(tmp_path / "out", store):
            wait_until(lambda: count(spool)["answered"] == 0, 120)
    logged = list_logged(spool).lower().replace(WORD[:8].lower() + " cannot", "")
    reasons = " ".join(failed.reason for failed in Queue(spool).list_failed()).lower()
    database = b"".join(path.read_bytes() for path in spool.glob("queue.sqlite*")).lower()
    assert reasons and "answered" in logged
    for canary in (*CANARIES, "1.2.3.", "1.2.826.0.1.7", ".dcm", "named"):
        assert canary not in logged and canary not in reasons, canary
        if canary != ".dcm":
            assert canary.encode() not in database, canary


def test_an_error_in_a_model_is_tried_again_and_then_fails(tmp_path: Path) -> None:
    """In this process, so that the model can be made to fail."""
    calls: list[Path] = []

    def answer(path: Path) -> Any:
        calls.append(path)
        if len(calls) < 3:
            raise RuntimeError(f"cannot read {path} of DOE^JANE")
        return answer_by_grey(path)

    for tries, state in ((3, "answered"), (2, "failed")):
        calls.clear()
        options = PacsOptions(
            tmp_path / str(tries), f"STORE@127.0.0.1:{find_port()}", find_port(), calling=(PACS,), tries=tries,
            first_wait=0.05, longest_wait=0.05,
        )  # fmt: skip
        node = start(options, [build_model().__class__(SHA, answer)])
        try:
            node.queue.add("film", write_radiograph(tmp_path / "film.dcm").read_bytes())
            wait_until(lambda node=node, state=state: node.queue.count()[state] == 1)
            reasons = [failed.reason for failed in node.queue.list_failed()]
            assert reasons == ([] if state == "answered" else ["error in the program (RuntimeError)"])
        finally:
            node.stop()


def test_a_film_that_ends_the_process_each_time_is_given_up(tmp_path: Path) -> None:
    spool, store = tmp_path / "spool", find_port()
    queue = Queue(spool)
    queue.add("film", write_radiograph(tmp_path / "film.dcm").read_bytes())
    for _ in range(3):
        killed = [sys.executable, "-c", CLAIM_AND_DIE, str(spool)]
        assert subprocess.run(killed, timeout=60).returncode == -signal.SIGKILL
    with run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=find_port(), tries=3):
        wait_until(lambda: count(spool)["failed"] == 1)
    assert [failed.reason for failed in queue.list_failed()] == ["the process ended 3 times while it had this film"]


CLAIM_AND_DIE = """
import os, signal, sys
from pathlib import Path
from chess_cxr.serve.queue import Queue, Worker
queue = Queue(Path(sys.argv[1]))
assert queue.claim("received", Worker(queue))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_without_reports_of_refusals_a_refused_film_gives_nothing(tmp_path: Path) -> None:
    spool, store = tmp_path / "spool", find_port()
    blank = write_radiograph(tmp_path / "blank.dcm", PixelData=np.zeros((256, 256), "<u2").tobytes())
    Queue(spool).add("film", blank.read_bytes())
    with run_node(spool, f"STORE@127.0.0.1:{store}", dicom_port=find_port(), report_refusals=False):
        wait_until(lambda: count(spool)["sent"] == 1)


def test_a_node_stops_when_told_and_leaves_the_rest_for_later(tmp_path: Path) -> None:
    spool, store, port = tmp_path / "spool", find_port(), find_port()
    queue = Queue(spool)
    for number in range(1, 6):
        queue.add(str(number), write_radiograph(tmp_path / f"{number}.dcm", number).read_bytes())
    node = start_node(spool, f"STORE@127.0.0.1:{store}", 1, dicom_port=port)
    wait_until(lambda: count(spool)["answered"] >= 1)
    end(node)
    assert node.returncode == 0
    now = count(spool)
    assert now["received"] >= 1 and now["failed"] == 0 and sum(now.values()) == 5


def test_a_node_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        start(PacsOptions(tmp_path, "STORE@pacs:104", 11112, calling=(PACS,)))
    assert BONES.find_change(write_radiograph(tmp_path / "film.dcm")).shape == read_film(tmp_path / "film.dcm").shape
