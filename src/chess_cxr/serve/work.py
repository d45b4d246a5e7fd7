"""The PACS node at work: receive or pull films, answer them, send the results.

Threads share the queue on disk, and so do other processes with the same spool.  Foreign bytes are read in child
processes with limits alone.  Log lines name a film by its number in the queue.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chess_cxr.records import ChessError, Undecodable, UsageError, import_extra
from chess_cxr.serve.dicom import start_receiver
from chess_cxr.serve.options import PacsOptions, Peer, check_options, find_wait, parse_target
from chess_cxr.serve.pull import pull_films
from chess_cxr.serve.queue import Claim, Queue, QueueError, State, Worker
from chess_cxr.serve.results import BoneChange, ModelAnswer, build_results
from chess_cxr.serve.send import Tls, Unreachable, send_from_child
from chess_cxr.serve.source import check_film
from chess_cxr.tasks.answer import FilmAnswer
from chess_cxr.workers.child import NoChild
from chess_cxr.workers.pool import ChildLost, build_ingest_pool, call_in_child, tells_of_loss

LOG = logging.getLogger("chess_cxr.serve")
LOOK_SECONDS = 0.5  # between looks for what another process put into the queue
TIDY_SECONDS = 3600.0
LOST_TRIES = 3  # of a film with which a child died or was late, before the film is blamed
_QUOTING = (
    "pynetdicom", "pydicom", "highdicom", "dicomweb_client", "urllib3", "PIL", "imagecodecs", "python_multipart",
)  # fmt: skip


@dataclass(frozen=True)
class FindingsModel:
    """A classifier.  sha256: of its weights.

    answer: returns the answer to the DICOM file of a film; raises `Undecodable` if the film is at fault, any other
    `ChessError` to be asked again later.  draw_heat_map: returns uint8 RGB [H, W, 3], or None where there is nothing to
    show.  Several threads call both.
    """

    sha256: str
    answer: Callable[[Path], FilmAnswer]
    draw_heat_map: Callable[[Path], np.ndarray | None] | None = None


@dataclass(frozen=True)
class BonesModel:
    """A bone model.  sha256: of its weights.

    find_change: returns what removes the bone from a film, float32 of the size of the whole decoded film; raises as
    `FindingsModel.answer`.
    """

    name: str
    sha256: str
    find_change: Callable[[Path], np.ndarray]


@dataclass
class Node:
    """A running PACS node; `stop` ends it."""

    options: PacsOptions
    queue: Queue
    findings: Sequence[FindingsModel]
    bones: BonesModel | None
    target: Peer | str
    models: str
    receiver: Any = None
    threads: list[threading.Thread] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    news: threading.Condition = field(default_factory=threading.Condition)

    def stop(self) -> None:
        """Close the port, finish the films at hand and end; what is left stays in the queue."""
        self.stopping.set()
        self.tell()
        if self.receiver is not None:
            self.receiver.shutdown()
        for thread in self.threads:
            thread.join()

    def tell(self) -> None:
        """Wake the threads that wait for work."""
        with self.news:
            self.news.notify_all()

    def wait(self, seconds: float = LOOK_SECONDS) -> None:
        """Wait for news, so many seconds at most."""
        with self.news:
            if not self.stopping.is_set():
                self.news.wait(seconds)


def start(options: PacsOptions, findings: Sequence[FindingsModel] = (), bones: BonesModel | None = None) -> Node:
    """Start the node and return it.

    It silences libraries that quote headers in warnings and log lines, for the whole process.
    Raises `UsageError` for options that do not work.
    """
    check_options(options)
    if not findings and bones is None:
        raise UsageError("no model is given for the PACS node; it takes classifiers and bone models")
    import_extra("highdicom.sr", "serve", "the PACS node")  # now, and not at the first film
    silence_libraries()
    hashes = [model.sha256 for model in findings] + ([bones.sha256] if bones else [])
    node = Node(
        options,
        Queue(options.spool),
        findings,
        bones,
        parse_target(options.results_to),
        hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest(),
    )
    if options.dicom_port:
        node.receiver = start_receiver(options, node.queue, node.models, node.tell)
    for loop in (*[answer_films] * options.workers, send_films, tidy_queue, *([ask_server] if options.pull else [])):
        node.threads.append(threading.Thread(target=loop, args=(node,), name=loop.__name__))
        node.threads[-1].start()
    return node


def silence_libraries() -> None:
    """Keep libraries and dying threads from writing what they read to logs and stderr."""
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda what: LOG.error("a thread ended (%s)", what.exc_type.__name__)


# ---------------------------------------------------------------- film by film


def _work_off(node: Node, state: State, waiting: str, act: Callable[[Claim], None]) -> None:
    """Act on the films in a state until the node stops; while none can be acted on, wait ever longer."""
    worker: Worker | None = None
    failures = 0
    while not node.stopping.is_set():
        try:
            worker = worker or Worker(node.queue)
            claim = node.queue.claim(state, worker)
            if claim is None:
                node.wait()
            else:
                _handle(node, claim, act)
                failures = 0
        except Exception as error:
            failures += 1
            seconds = find_wait(node.options, failures)
            LOG.warning("%s wait: %s; next try in %.0f seconds", waiting, _explain(error), seconds)
            node.stopping.wait(seconds)
    if worker is not None:
        worker.close()


def _handle(node: Node, claim: Claim, act: Callable[[Claim], None]) -> None:
    """Act on a film; if it fails, try again later, or end the film with the reason.

    Raises what is no fault of the film, which is then free again.
    """
    try:
        if claim.lost >= node.options.tries:
            _fail(node, claim, f"the process ended {claim.lost} times while it had this film")
        else:
            act(claim)
    except (Unreachable, NoChild, QueueError):
        node.queue.put_back(claim, 0, count=False)
        raise
    except Exception as error:
        failures, tries = claim.failures + 1, node.options.tries
        if isinstance(error, Undecodable):
            tries = min(tries, LOST_TRIES) if isinstance(error, ChildLost) else 1
        if failures >= tries:
            _fail(node, claim, _explain(error))
        else:
            LOG.warning("film %d: try %d: %s", claim.number, failures, _explain(error))
            node.queue.put_back(claim, find_wait(node.options, failures))


def _fail(node: Node, claim: Claim, reason: str) -> None:
    LOG.error("film %d: failed: %s", claim.number, reason)
    node.queue.fail(claim, reason)


def _explain(error: Exception) -> str:
    """Return an error as one line that names no patient."""
    return str(error) if isinstance(error, ChessError) else f"error in the program ({type(error).__name__})"


# ---------------------------------------------------------------- answering


def answer_films(node: Node) -> None:
    """Answer films until the node stops."""
    with build_ingest_pool(1) as child:
        _work_off(node, "received", "films", partial(_answer, node, child))


def _answer(node: Node, child: Executor, claim: Claim) -> None:
    """Answer one film and keep its results."""
    if not child.submit(call_in_child, read_in_child, node.options.limits, "check", claim.path).result():
        node.queue.finish_answer(claim, [])  # a result of our own that a router sent back
        return
    answers, bones, refused = [], None, False
    for model in node.findings:
        film = model.answer(claim.path)
        if tells_of_loss(film.reason) and claim.failures + 1 < min(node.options.tries, LOST_TRIES):
            raise ChildLost(film.reason)
        refused |= bool(film.reason)
        draws = None if film.reason else model.draw_heat_map
        if not film.reason or node.options.report_refusals:
            answers.append(ModelAnswer(film, draws(claim.path) if draws else None))
    if node.bones is not None and not refused:
        change_HW = node.bones.find_change(claim.path)
        bones = BoneChange(node.bones.name, node.bones.sha256, change_HW)
    results = []
    if answers or bones:
        building = child.submit(call_in_child, read_in_child, node.options.limits, "build", claim.path, answers, bones)
        results = building.result()
    node.queue.finish_answer(claim, results)
    node.tell()
    LOG.info("film %d: answered, %d results", claim.number, len(results))


def read_in_child(step: str, *request: Any) -> Any:
    """Check a film or build its results: the one task of a worker's child, which thus serves both."""
    return check_film(*request) if step == "check" else build_results(*request)


# ---------------------------------------------------------------- sending and asking


def send_films(node: Node) -> None:
    """Send results until the node stops."""
    _work_off(node, "answered", "results", partial(_send, node))


def _send(node: Node, claim: Claim) -> None:
    told, files = node.options, node.queue.list_unsent(claim)
    tls = Tls(told.results_tls, told.tls_certificate, told.tls_key) if told.results_tls else None
    for place in send_from_child(node.target, files, told.aet, told.token_file, tls):
        node.queue.mark_sent(claim, place)
    node.queue.finish_sending(claim)
    LOG.info("film %d: sent", claim.number)


def ask_server(node: Node) -> None:
    """Pull films until the node stops; while the server is down, wait ever longer."""
    failures = 0
    while not node.stopping.is_set():
        try:
            pull_films(node.options, node.queue, node.models, node.tell)
            failures, seconds = 0, node.options.pull_seconds
        except Exception as error:
            failures += 1
            seconds = max(node.options.pull_seconds, find_wait(node.options, failures))
            reason = str(error) if isinstance(error, ChessError) else type(error).__name__
            LOG.warning("nothing can be pulled: %s; next try in %.0f seconds", reason, seconds)
        node.stopping.wait(seconds)


def tidy_queue(node: Node) -> None:
    """Let the queue forget what was done long ago, until the node stops."""
    while not node.stopping.is_set():
        try:
            node.queue.tidy()
        except ChessError as error:
            LOG.warning("%s", error)
        node.stopping.wait(TIDY_SECONDS)
