"""Connections: an answer that nobody reads, and bytes that are no HTTP."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chess_cxr.serve import run
from pacs_node import wait_until
from served import find_port

uvicorn = pytest.importorskip("uvicorn")
LONG = bytes(16 << 20)  # more than a kernel keeps for a connection


class Long:
    """An application whose answers are long; at_hand: requests that it has not done with."""

    def __init__(self) -> None:
        self.at_hand = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.at_hand += 1
        try:
            if scope["method"] == "POST":
                await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": LONG, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.at_hand -= 1


@contextmanager
def run_server(app: Long) -> Iterator[tuple[int, Any]]:
    port = find_port()
    config = uvicorn.Config(app, port=port, http=run.build_protocol(), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port, server
    finally:
        server.should_exit = True
        thread.join()


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ANSWER_SECONDS", 1.0)
    app = Long()
    with run_server(app) as (port, server), socket.socket() as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plug.connect(("127.0.0.1", port))
        plug.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        wait_until(lambda: app.at_hand == 1)
        wait_until(lambda: app.at_hand == 0 and not server.server_state.connections, 30)


def test_an_answer_that_is_read_slowly_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ANSWER_SECONDS", 60.0)
    with run_server(Long()) as (port, _), socket.create_connection(("127.0.0.1", port)) as plug:
        plug.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        came = 0
        while part := plug.recv(1 << 16):
            came += len(part)
        assert came > len(LONG)


def read_answer(plug: socket.socket) -> tuple[bytes, bytes]:
    """Read one answer, which may come in several parts."""
    came = b""
    while True:
        part = plug.recv(1 << 16)
        came += part
        head, end, body = came.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not part or (end and length and len(body) >= int(length[1])):
            return head, body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem(request_bytes: bytes) -> None:
    with run_server(Long()) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=30) as plug:
        plug.sendall(request_bytes)
        head, body = read_answer(plug)
        assert head.startswith(b"HTTP/1.1 400 ") and b"content-type: application/problem+json" in head
        assert b"x-content-type-options: nosniff" in head
        assert json.loads(body)["detail"] == "this is no HTTP request"


def test_rubbish_amid_an_answer_ends_the_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    with run_server(Long()) as (port, server), socket.create_connection(("127.0.0.1", port), timeout=30) as plug:
        plug.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        plug.recv(1000)
        plug.sendall(b"rubbish\r\n" * 100)
        while plug.recv(1 << 16):
            pass
        wait_until(lambda: not server.server_state.connections)
    assert "Traceback" not in caplog.text
