"""Hostile requests to the server: each is a clear 4xx, and nothing brings it down."""

import io
import json
import re
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pydicom
import pytest

from chess_cxr.serve import fetch
from chess_cxr.serve.fetch import fetch_films
from chess_cxr.serve.problem import Problem
from dicomweb_server import CANARY, INSTANCE, UIDS
from pacs_node import wait_until
from served import Reply, Served, check_problem, pack_parts


def deflate_bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few hundred kilobytes."""
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(20_001)) for _ in range(20_000)) + packed.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def write_many_tags(film: Path) -> bytes:
    dataset, written = pydicom.dcmread(film), io.BytesIO()
    block = dataset.private_block(0x0099, CANARY, create=True)
    for number in range(0xFF):
        block.add_new(number, "LO", CANARY)
    for group in range(0x1001, 0x1001 + 2 * 40, 2):
        for number in range(0x1000, 0x1000 + 250):
            dataset.add_new((group, number), "UN", b"Canary")
    dataset.save_as(written)
    return written.getvalue()


def test_hostile_films_are_refused_with_a_reason_and_the_server_lives(served: Served, folder: Path) -> None:
    film = folder / "film.dcm"
    content = film.read_bytes()
    wrong = pydicom.dcmread(film)
    wrong.Rows = 60_000
    huge = io.BytesIO()
    wrong.save_as(huge)
    before = read_memory(served)
    for hostile in (deflate_bomb(), content[: len(content) // 2], content[:140], huge.getvalue(), b"\0" * 5000):
        check_problem(served.post("/v1/predict", hostile), 422)
        check_problem(served.post("/v1/suppress-bones", hostile), 422)
    many = served.post("/v1/predict", write_many_tags(film))
    assert many.status == 200 and many.json()["answers"][0]["findings"]
    assert served.post("/v1/predict", content).status == 200
    assert b"anary" not in served.log.read_bytes()
    assert read_memory(served) < before + 200
    bodies = f"chess-cxr-{served.process.pid}-*/*"  # a body goes when its answer has left
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob(bodies)))


def read_memory(served: Served) -> int:
    """Resident memory of the server in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text())
    assert found
    return int(found[1]) >> 10


def test_wrong_bodies_are_4xx(served: Served, folder: Path) -> None:
    content = (folder / "film.dcm").read_bytes()
    check_problem(served.post("/v1/predict", content, "text/html"), 415)
    check_problem(served.post("/v1/predict", content, "application/x-www-form-urlencoded"), 415)
    check_problem(served.post("/v1/predict", b""), 400)
    check_problem(served.post("/v1/predict", b"--nothing", "multipart/form-data; boundary=cut"), 400)
    check_problem(served.post("/v1/predict", b"rubbish", "multipart/form-data"), 400)
    check_problem(served.post("/v1/predict", *pack_parts(*[("a", b"b")] * 65)), 400)
    check_problem(served.post("/v1/predict", b"[" * 60_000, "application/json"), 400)
    check_problem(served.post("/v1/predict", b'{"dicomweb": 1}', "application/json"), 422)
    check_problem(served.post("/v1/predict?point=best", content), 422, "operating point")
    check_problem(served.post("/v1/predict?model=../findings", content), 404)
    check_problem(served.post("/v1/neighbours?count=many", content), 422, "count")
    check_problem(served.ask("GET", "/v1/predict"), 405)
    check_problem(served.ask("GET", "/v1/models/"), 404)
    check_problem(served.ask("GET", f"/{CANARY}"), 404)
    for path in ("/page/../rest.py", "/page/%2e%2e%2frest.py", "/page/__init__.py", "//etc/passwd"):
        check_problem(served.ask("GET", path), 404)


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes(served: Served) -> None:
    check_problem(served.post("/v1/predict", bytes(9 << 20)), 413, "8 MiB")

    def drip() -> Iterator[bytes]:
        for _ in range(9):
            yield bytes(1 << 20)

    check_problem(served.ask("POST", "/v1/predict", drip(), Content_Type="application/dicom"), 413)


def test_bodies_of_all_kinds_share_the_disk_that_is_given_to_them(served: Served) -> None:
    """15 MiB of disk: two bodies of 7 MiB that stay half-sent leave no room for a third."""
    part = b'--cut\r\nContent-Disposition: form-data; name="film"; filename="a"\r\n\r\n' + bytes(7 << 20)
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\nContent-Type: "
    with ExitStack() as stack:
        for kind in ("multipart/form-data; boundary=cut", "application/dicom"):
            plug = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            plug.sendall(f"{head}{kind}\r\n\r\n".encode() + part)
        wait_until(lambda: served.post("/v1/predict", part).status == 503, 3.5)
    wait_until(lambda: served.post("/v1/predict", part).status == 422)
    assert b"error in the program" not in served.log.read_bytes()


def test_slow_clients_are_given_up(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as plug:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        plug.sendall(head + b"Content-Length: 99\r\n\r\nfew")
        plug.settimeout(30)
        assert b" 408 " in plug.recv(1 << 16)
    with socket.create_connection(("127.0.0.1", served.port)) as plug:
        plug.sendall(b"GET /health HTTP/1.1\r\n")
        plug.settimeout(60)
        assert plug.recv(100) == b""  # no header within the time for one
    assert served.ask("GET", "/health").status == 200


def test_addresses_lead_to_allowed_hosts_alone(served: Served, pacs: int) -> None:
    def ask(address: str) -> Reply:
        return served.post("/v1/predict", json.dumps({"dicomweb": address}).encode(), "application/json")

    check_problem(ask(f"http://localhost:{pacs}{INSTANCE}"), 403)
    check_problem(ask(f"http://169.254.169.254{INSTANCE}"), 403)
    check_problem(ask(f"http://127.0.0.1:{pacs + 1}{INSTANCE}"), 403)
    check_problem(ask(f"http://127.0.0.1:{pacs}@evil.example{INSTANCE}"), 403)
    check_problem(ask("file:///etc/passwd"), 422)
    check_problem(ask(f"gopher://127.0.0.1:{pacs}{INSTANCE}"), 422)
    check_problem(ask(f"//127.0.0.1:{pacs}{INSTANCE}"), 422)
    for written in ("2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "127.0.0.1."):  # of the allowed address
        check_problem(ask(f"http://{written}:{pacs}{INSTANCE}"), 403)
    check_problem(ask(f"http://127.0.0.1:{pacs}/metadata"), 422)
    check_problem(ask(f"http://127.0.0.1:{pacs}/a/../b{INSTANCE}"), 422)
    check_problem(ask(f"http://127.0.0.1:{pacs}/away{INSTANCE}"), 502, "302")
    assert UIDS[0].encode() not in served.log.read_bytes()


def test_an_archive_that_says_nothing_holds_up_nobody_else(served: Served, mute: int) -> None:
    address = json.dumps({"dicomweb": f"http://127.0.0.1:{mute}{INSTANCE}"}).encode()
    with ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(served.post, "/v1/predict", address, "application/json") for _ in range(8)]
        time.sleep(1)
        check_problem(served.post("/v1/predict", *pack_parts(("a", b"no film"))), 422)
        assert not any(reply.done() for reply in waiting)
        for reply in waiting:
            check_problem(reply.result(), 504)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0"])
def test_not_even_an_allowed_name_leads_to_link_local_addresses(host: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="link-local") as caught:
        fetch_films(f"http://{host}{INSTANCE}", tmp_path, [host], None, 1 << 20, 1)
    assert caught.value.status == 403


def test_a_token_file_that_cannot_be_read_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="token file cannot be read") as raised:
        fetch_films(f"http://127.0.0.1:1{INSTANCE}", tmp_path, ["127.0.0.1:1"], tmp_path / "absent", 1 << 20, 1)
    assert raised.value.status == 502


@pytest.mark.parametrize("trickle", [b"X-More: 1\r\n", b"X"], ids=["headers", "one header"])
def test_a_server_that_trickles_headers_is_given_up(
    trickle: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MOST_SECONDS", 2.0)

    def answer(server: socket.socket) -> None:
        plug, _ = server.accept()
        with plug, suppress(OSError):
            plug.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                time.sleep(0.2)
                plug.sendall(trickle)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        answering = threads.submit(answer, server)
        port, started = server.getsockname()[1], time.monotonic()
        with pytest.raises(Problem, match="did not answer in time") as raised:
            fetch_films(f"http://127.0.0.1:{port}{INSTANCE}", tmp_path, [f"127.0.0.1:{port}"], None, 1 << 20, 1)
        assert raised.value.status == 504 and time.monotonic() - started < 10
        answering.result(10)
