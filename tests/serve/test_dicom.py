"""The port: who may come in, what is taken, and that it is on the disk before the sender hears so."""

import logging
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from chess_cxr.decode.film import decode_film
from chess_cxr.records import UsageError
from chess_cxr.serve import dicom
from chess_cxr.serve.dicom import FILM_CLASSES, SYNTAXES, start_receiver
from chess_cxr.serve.options import PacsOptions, check_options, find_wait, parse_target
from chess_cxr.serve.queue import Queue, Worker
from pacs_node import NODE, find_port, find_tool, is_absent, write_radiograph

pytestmark = pytest.mark.skipif(is_absent("storescu"), reason="no storescu (Debian: dcmtk)")


class Receiver:
    """A running receiver; `more` are further options."""

    def __init__(self, folder: Path, **more: Any) -> None:
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        self.port, self.told = find_port(), threading.Event()
        self.options = PacsOptions(folder, "STORE@127.0.0.1:104", self.port, NODE, ("STORESCU",), **more)
        check_options(self.options)
        self.queue = Queue(folder)
        self.server = start_receiver(self.options, self.queue, "model", self.told.set)

    def send(self, *films: Path, calling: str = "STORESCU", called: str = NODE, more: tuple[str, ...] = ()) -> bool:
        """Send films with dcmtk's storescu; return whether all were taken."""
        only = () if "-xf" in more else ("--required",)  # offers no more presentation contexts than these films need
        command = [find_tool("storescu"), "-aet", calling, "-aec", called, *only, *more, "127.0.0.1", str(self.port)]
        done = subprocess.run([*command, *map(str, films)], capture_output=True, text=True, timeout=120)
        return done.returncode == 0

    def read(self) -> bytes:
        claim = self.queue.claim("received", Worker(self.queue))
        assert claim is not None
        return claim.path.read_bytes()


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    running: list[Receiver] = []
    yield running
    for receiver in running:
        receiver.server.shutdown()


@pytest.fixture
def receiver(receivers: list[Receiver], tmp_path: Path) -> Receiver:
    receivers.append(Receiver(tmp_path / "spool"))
    return receivers[0]


def test_a_film_is_on_the_disk_with_every_value_it_had(receiver: Receiver, tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    assert receiver.send(film) and receiver.told.is_set()
    (tmp_path / "kept.dcm").write_bytes(receiver.read())
    sent, kept = pydicom.dcmread(film), pydicom.dcmread(tmp_path / "kept.dcm")
    assert dict(kept) == dict(sent) and kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID


def test_a_film_sent_twice_is_kept_once(receiver: Receiver, tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    assert receiver.send(film) and receiver.send(film)
    assert receiver.queue.count()["received"] == 1


def test_echo_is_answered_and_strangers_are_not(receiver: Receiver, tmp_path: Path) -> None:
    def echo(calling: str, called: str) -> int:
        command = [find_tool("echoscu"), "-aet", calling, "-aec", called, "127.0.0.1", str(receiver.port)]
        return subprocess.run(command, capture_output=True, timeout=60).returncode

    assert echo("STORESCU", NODE) == 0
    assert echo("STRANGER", NODE) != 0 and echo("STORESCU", "OTHER") != 0
    film = write_radiograph(tmp_path / "film.dcm")
    assert not receiver.send(film, calling="STRANGER") and not receiver.send(film, called="OTHER")
    assert receiver.queue.count()["received"] == 0


def test_only_radiographs_are_taken(receiver: Receiver, tmp_path: Path) -> None:
    assert not receiver.send(write_radiograph(tmp_path / "ct.dcm", SOPClassUID=CTImageStorage))
    assert receiver.send(write_radiograph(tmp_path / "sc.dcm", SOPClassUID=SecondaryCaptureImageStorage))
    assert receiver.queue.count()["received"] == 1


def test_every_film_of_the_real_ones_is_taken_as_it_is(receiver: Receiver, real_films: Path, tmp_path: Path) -> None:
    """They come in JPEG, JPEG lossless, JPEG-LS and JPEG 2000; dcmtk sends each in its own syntax with -xf."""
    films = [film for film in sorted((real_films / "dicom").glob("*.dcm")) if "MONOCHROME1" not in film.name]
    kinds = {pydicom.dcmread(film, stop_before_pixels=True).SOPClassUID for film in films}
    assert kinds <= set(FILM_CLASSES)
    config = tmp_path / "storescu.cfg"
    config.write_text(_propose(kinds))
    assert receiver.send(*films, more=("-xf", str(config), "Default"))
    assert receiver.queue.count()["received"] == len(films)
    for path in (receiver.options.spool / "films").iterdir():
        assert decode_film(path).pixels.size
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID in SYNTAXES


def _propose(kinds: set[str]) -> str:
    """A configuration of storescu that offers each syntax in a presentation context of its own."""
    syntaxes = "\n".join(f"[S{n}]\nTransferSyntax1 = {syntax}\n" for n, syntax in enumerate(SYNTAXES))
    pairs = [(kind, n) for kind in sorted(kinds) for n in range(len(SYNTAXES))]
    contexts = "\n".join(f"PresentationContext{i} = {kind}\\S{n}" for i, (kind, n) in enumerate(pairs, 1))
    profile = "[[Profiles]]\n[Default]\nPresentationContexts = C\n"
    return f"[[TransferSyntaxes]]\n{syntaxes}\n[[PresentationContexts]]\n[C]\n{contexts}\n{profile}"


def test_a_film_above_the_limit_ends_the_connection(receivers: list[Receiver], tmp_path: Path) -> None:
    receivers.append(Receiver(tmp_path / "spool", film_mib=1))
    large = write_radiograph(tmp_path / "large.dcm", TextValue="x" * (5 << 20))
    small = write_radiograph(tmp_path / "small.dcm", 2)
    assert not receivers[0].send(large)
    assert receivers[0].send(small)
    assert receivers[0].queue.count()["received"] == 1
    assert len(list((tmp_path / "spool" / "films").iterdir())) == 1


def test_many_films_below_the_limit_may_come_in_one_association(receivers: list[Receiver], tmp_path: Path) -> None:
    receivers.append(Receiver(tmp_path / "spool", film_mib=1))
    films = [write_radiograph(tmp_path / f"{n}.dcm", n, TextValue="x" * 500_000) for n in range(1, 7)]
    assert receivers[0].send(*films)
    assert receivers[0].queue.count()["received"] == 6


def test_a_pdu_of_gigabytes_is_not_waited_for(receiver: Receiver, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as stranger:
        stranger.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000)
        ended = stranger.recv(100)
    assert ended == b"" or ended[:1] in (b"\x07", b"\x03")
    assert receiver.send(write_radiograph(tmp_path / "film.dcm"))


def test_slow_senders_are_ended(receivers: list[Receiver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sends nothing after the first bytes, one a byte at a time: both lose their connection."""
    monkeypatch.setattr(dicom, "SECONDS", 1.0)
    monkeypatch.setattr(dicom, "PDU_SECONDS", 2.0)
    receivers.append(Receiver(tmp_path / "spool", associations=2))
    for drips in (False, True):
        with socket.create_connection(("127.0.0.1", receivers[0].port), timeout=30) as sender:
            sender.sendall(struct.pack(">BBL", 1, 0, 50_000))
            sender.settimeout(0.2)
            for _ in range(200):
                try:
                    if drips:
                        sender.sendall(b"x")
                    if sender.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                pytest.fail("the connection was kept")
    assert receivers[0].send(write_radiograph(tmp_path / "film.dcm"))


def test_a_full_queue_turns_films_away(receivers: list[Receiver], tmp_path: Path) -> None:
    receivers.append(Receiver(tmp_path / "spool", most_waiting=1))
    first, second = (write_radiograph(tmp_path / f"{n}.dcm", n) for n in (1, 2))
    assert receivers[0].send(first)
    assert not receivers[0].send(second)
    assert receivers[0].queue.count()["received"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts small disks")
def test_a_full_disk_turns_films_away(receivers: list[Receiver], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        receivers.append(Receiver(tmp_path / "disk" / "spool"))
        films = [write_radiograph(tmp_path / f"{n}.dcm", n) for n in range(1, 5)]
        taken = [receivers[0].send(film) for film in films]
        assert not all(taken)
        assert receivers[0].queue.count()["received"] == sum(taken)
        assert len(list((tmp_path / "disk" / "spool" / "films").iterdir())) == sum(taken)
    finally:
        for receiver in receivers:
            receiver.server.shutdown()
        receivers.clear()
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_over_tls_only_those_with_a_certificate_come_in(receivers: list[Receiver], tmp_path: Path) -> None:
    for name in ("node", "sender", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"], check=True, capture_output=True,
        )  # fmt: skip
    files = {"tls_certificate": tmp_path / "node.pem", "tls_key": tmp_path / "node.key"}
    receivers.append(Receiver(tmp_path / "spool", **files, tls_clients=tmp_path / "sender.pem"))
    film = write_radiograph(tmp_path / "film.dcm")

    def tls(name: str) -> tuple[str, ...]:
        return ("+tls", str(tmp_path / f"{name}.key"), str(tmp_path / f"{name}.pem"), "-ic")

    assert not receivers[0].send(film)
    assert not receivers[0].send(film, more=tls("stranger"))
    assert receivers[0].send(film, more=tls("sender"))
    assert receivers[0].queue.count()["received"] == 1


def test_a_port_in_use_is_one_line(receiver: Receiver, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot listen at 127.0.0.1"):
        start_receiver(receiver.options, receiver.queue, "model", lambda: None)


# ---------------------------------------------------------------- options

GOOD = PacsOptions(Path("spool"), "STORE@pacs:104", 11112, calling=("ORTHANC",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"results_to": "STORE"}, "results-to"),
        ({"results_to": "STORE@pacs:99999"}, "results-to"),
        ({"results_to": "http://pacs/dicom-web?x=1"}, "results-to"),
        ({"aet": "A" * 17}, "aet"),
        ({"calling": ()}, "calling"),
        ({"calling": ("A\\B",)}, "calling"),
        ({"dicom_port": 0}, "nothing to do"),
        ({"dicom_port": 70_000}, "dicom-port"),
        ({"host": "0.0.0.0"}, "trusted-network"),
        ({"host": "pacs.example"}, "trusted-network"),
        ({"tls_key": Path("key")}, "TLS needs"),
        ({"pull": "file:///etc/passwd"}, "pull"),
        ({"workers": 0}, "at least 1"),
        ({"token_file": Path("nowhere")}, "token file"),
        ({"first_wait": 9.0, "longest_wait": 1.0}, "waits"),
    ],
)
def test_options_that_do_not_work_are_refused(change: dict[str, Any], reason: str) -> None:
    check_options(GOOD)
    with pytest.raises(UsageError, match=reason):
        check_options(replace(GOOD, **change))


def test_other_hosts_need_a_word_about_who_may_come() -> None:
    files = dict.fromkeys(("tls_certificate", "tls_key", "tls_clients"), Path("x"))
    for change in ({"host": "::1"}, {"host": "0.0.0.0", "trusted_network": True}, {"host": "0.0.0.0", **files}):
        check_options(replace(GOOD, **change))


def test_targets_are_read() -> None:
    assert parse_target("https://pacs/dicom-web/") == "https://pacs/dicom-web"
    peer = parse_target("STORE@[::1]:104")
    assert not isinstance(peer, str) and (peer.aet, peer.host, peer.port) == ("STORE", "::1", 104)


def test_waits_double_up_to_the_longest() -> None:
    options = replace(GOOD, first_wait=1.0, longest_wait=10.0)
    assert [find_wait(options, tries) for tries in (1, 2, 3, 4, 5, 10_000)] == [1, 2, 4, 8, 10, 10]
