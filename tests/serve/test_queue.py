"""The queue on disk: nothing lost, nothing twice, whatever is killed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chess_cxr.records import UsageError
from chess_cxr.serve.queue import ORPHAN_SECONDS, Queue, QueueError, Worker

WORK = """
import sys, time
from pathlib import Path
from chess_cxr.serve.queue import Queue, Worker

queue, log = Queue(Path(sys.argv[1])), open(sys.argv[2], "a")
worker = Worker(queue)
print("ready", flush=True)
while True:
    if claim := queue.claim("received", worker):
        content = claim.path.read_bytes()
        time.sleep(0.002)
        queue.finish_answer(claim, [content * 2, content * 3])
    if claim := queue.claim("answered", worker):
        for place, path in queue.list_unsent(claim):
            log.write(f"{claim.number} {place} {path.read_bytes()[:8].hex()}\\n")
            log.flush()
            queue.mark_sent(claim, place)
        queue.finish_sending(claim)
    elif not queue.count_waiting():
        break
"""


def start_worker(spool: Path, log: Path) -> subprocess.Popen[str]:
    worker = subprocess.Popen([sys.executable, "-c", WORK, str(spool), str(log)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker.stdout as said:
        assert said.readline() == "ready\n"
    return worker


def test_a_film_goes_through_and_leaves_nothing_but_its_hash(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "spool")
    assert queue.add("model 1.2.3", b"film") and not queue.add("model 1.2.3", b"film")
    worker = Worker(queue)
    claim = queue.claim("received", worker)
    assert claim and claim.path.read_bytes() == b"film" and (claim.failures, claim.lost) == (0, 0)
    assert queue.claim("answered", worker) is None
    claim = queue.claim("received", worker)
    assert claim is not None
    queue.finish_answer(claim, [b"report", b"picture"])
    claim = queue.claim("answered", worker)
    assert claim and [path.read_bytes() for _, path in queue.list_unsent(claim)] == [b"report", b"picture"]
    queue.mark_sent(claim, 0)
    assert [place for place, _ in queue.list_unsent(claim)] == [1]
    queue.mark_sent(claim, 1)
    queue.finish_sending(claim)
    assert queue.count() == {"received": 0, "answered": 0, "sent": 1, "failed": 0}
    assert not queue.add("model 1.2.3", b"film") and queue.add("other 1.2.3", b"film")
    files = [path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert not any(b"report" in content or b"1.2.3" in content for content in files)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "spool")
    queue.add("1", b"film")
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "spool" / "films").iterdir())


def test_a_living_worker_keeps_its_film_and_a_dead_one_loses_it(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.add("1", b"film")
    first, second = Worker(queue), Worker(queue)
    assert queue.claim("received", first)
    assert queue.claim("received", second) is None
    first.close()
    claim = queue.claim("received", second)
    assert claim and claim.lost == 1


def test_a_film_put_back_waits_until_it_is_due(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.add("1", b"film")
    worker = Worker(queue)
    claim = queue.claim("received", worker)
    assert claim
    queue.put_back(claim, 0)
    again = queue.claim("received", worker)
    assert again and (again.failures, again.lost) == (1, 0)
    queue.put_back(again, 0, count=False)
    again = queue.claim("received", worker)
    assert again and (again.failures, again.lost) == (1, 0)
    queue.put_back(again, 3600)
    assert queue.claim("received", worker) is None


def test_a_clock_that_goes_back_holds_no_film_up(tmp_path: Path) -> None:
    queue, worker = Queue(tmp_path), Worker(Queue(tmp_path))
    queue.add("1", b"film")
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:  # as if it were an hour later when the film came
        database.execute("UPDATE films SET due = due + 3600, since = since + 3600")
    claim = queue.claim("received", worker)
    assert claim
    queue.finish_answer(claim, [b"report"])
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:
        database.execute("UPDATE films SET due = due + 3900, since = since + 3600")  # put back for five minutes
    assert queue.claim("answered", worker)


def test_a_film_with_which_processes_ended_lets_the_others_go_first(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    for key in ("1", "2", "3"):
        queue.add(key, b"film")
    seen = []
    for _ in range(6):
        killed = Worker(queue)
        claim = queue.claim("received", killed)
        assert claim
        seen.append((claim.number, claim.lost))
        killed.close()
    assert seen == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]


def test_what_a_worker_gave_up_itself_is_no_loss(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.add("1", b"film")
    worker = Worker(queue)
    claims = [queue.claim("received", worker) for _ in range(3)]  # as if it could not be put back: the disk was full
    assert [(claim.failures, claim.lost) for claim in claims if claim] == [(0, 0)] * 3


def test_a_spool_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.add("1", b"film")
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:
        database.execute("ALTER TABLE films DROP COLUMN failures")
        database.execute("UPDATE films SET tries = 2")
    queue = Queue(tmp_path)
    claim = queue.claim("received", Worker(queue))
    assert claim and claim.path.read_bytes() == b"film" and (claim.failures, claim.lost) == (0, 2)


def test_a_database_that_cannot_be_used_is_told_as_such(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    (tmp_path / "queue.sqlite").unlink()
    (tmp_path / "queue.sqlite").mkdir()
    with pytest.raises(QueueError, match=r"the queue cannot be used \(OperationalError\)"):
        queue.count()


def test_a_failed_film_is_seen_with_its_reason_and_can_be_tried_again(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    for key in ("1", "2"):
        queue.add(key, b"film")
    worker = Worker(queue)
    first = queue.claim("received", worker)
    assert first
    queue.fail(first, "damaged")
    second = queue.claim("received", worker)
    assert second
    queue.finish_answer(second, [b"report"])
    second = queue.claim("answered", worker)
    assert second
    queue.fail(second, "refused")
    assert {(failed.number, failed.reason) for failed in queue.list_failed()} == {
        (first.number, "damaged"), (second.number, "refused"),
    }  # fmt: skip
    assert all(failed.path.read_bytes() == b"film" for failed in queue.list_failed())
    assert queue.try_failed_again() == 2
    assert queue.count() == {"received": 1, "answered": 1, "sent": 0, "failed": 0}


def test_processes_share_the_work_and_do_each_piece_once(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "spool")
    for number in range(60):
        queue.add(str(number), b"%08d" % number)
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    for worker in [start_worker(tmp_path / "spool", log) for log in logs]:
        assert worker.wait(120) == 0
    lines = [line for log in logs for line in log.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 120
    assert queue.count()["sent"] == 60


@pytest.mark.long
def test_killed_at_random_moments_nothing_is_lost(tmp_path: Path) -> None:
    """A result may be sent again if the kill hits between sending and noting it; its UID makes that harmless."""
    queue, log = Queue(tmp_path / "spool"), tmp_path / "log"
    sent, kills, rng = 0, 0, random.Random(7)
    while kills < 25:
        for _ in range(5):
            sent += queue.add(str(sent), b"%08d" % sent)
        worker = start_worker(tmp_path / "spool", log)
        time.sleep(rng.uniform(0, 0.06))
        worker.kill()
        kills += worker.wait() == -signal.SIGKILL
    assert start_worker(tmp_path / "spool", log).wait(120) == 0
    assert queue.count() == {"received": 0, "answered": 0, "sent": sent, "failed": 0}
    lines = log.read_text().splitlines()
    contents = {line.split()[2] for line in lines if line.count(" ") == 2}
    assert contents == {(b"%08d" % number).hex() for number in range(sent)}
    assert len(lines) - len(set(lines)) <= kills


def test_files_that_a_kill_left_are_removed_after_an_hour(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.add("1", b"film")
    for folder in ("films", "results", "workers"):
        for name, age in (("old", ORPHAN_SECONDS + 60), ("new", 60)):
            (tmp_path / folder / name).write_bytes(b"x")
            os.utime(tmp_path / folder / name, (time.time() - age,) * 2)
    Queue(tmp_path)
    for folder in ("films", "results", "workers"):
        names = [path.name for path in (tmp_path / folder).iterdir()]
        assert "new" in names and "old" not in names
    worker = Worker(queue)
    claim = queue.claim("received", worker)
    assert claim and claim.path.read_bytes() == b"film"


def test_what_was_done_long_ago_is_forgotten(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    worker = Worker(queue)
    for key in ("old", "waiting"):
        queue.add(key, b"film")
    claim = queue.claim("received", worker)
    assert claim
    queue.finish_answer(claim, [])
    queue.note("study", "7")
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:
        database.execute("UPDATE films SET since = since - 31 * 86400")
        database.execute("UPDATE seen SET since = since - 31 * 86400")
    queue.tidy()
    assert queue.count() == {"received": 1, "answered": 0, "sent": 0, "failed": 0} and queue.recall("study") == ""


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot use .*file as spool"):
        Queue(tmp_path / "file")
