"""Run the REST server, the page and, if asked for, the PACS node, until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

from chess_cxr.records import ChessError, import_extra
from chess_cxr.serve.guard import HEADERS
from chess_cxr.serve.models import Models, load_models
from chess_cxr.serve.options import PacsOptions, check_options, refuse_node_options
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.rest_options import RestOptions, check_rest_options, read_token
from chess_cxr.workers.child import check_limits

HEADER_SECONDS = 15.0  # in which a request's header must have arrived
ANSWER_SECONDS = 120.0  # in which a client must read on


def serve(names: Sequence[str], pacs: PacsOptions, options: RestOptions) -> None:
    """Load models, serve them, and return after SIGINT or SIGTERM; raises what is wrong with options or models."""
    from chess_cxr.tasks.classify.operating import check_point

    check_limits(pacs.limits)
    check_rest_options(options, pacs.host, pacs.trusted_network)
    read_token(options.token_file)
    has_node = bool(pacs.dicom_port or pacs.pull)
    if has_node:
        check_options(pacs)
    else:
        refuse_node_options(pacs)
    check_point(options.point)
    uvicorn = import_extra("uvicorn", "serve", "the server")
    from chess_cxr.serve.rest import build_app
    from chess_cxr.serve.work import silence_libraries

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("chess_cxr.serve").setLevel(logging.INFO)
    address = f"http://{pacs.host}:{options.port}"
    check_free(pacs.host, options.port, address)  # before models are loaded
    models = load_models(names, options)
    silence_libraries()
    config = uvicorn.Config(
        build_app(models, pacs, options), host=pacs.host, port=options.port, http=build_protocol(), ws="none",
        lifespan="on", log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=60,
    )  # fmt: skip
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):  # they log addresses and quote exceptions
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    server = uvicorn.Server(config)
    node = _start_node(models, pacs, options) if has_node else None
    try:
        asyncio.run(_run(server, config, address))
    finally:
        if node is not None:
            node.stop()


def check_free(host: str, port: int, address: str) -> None:
    """Raise `ChessError` if the server cannot listen at this host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            plug.bind((host, port))
        except OSError as error:
            raise ChessError(f"{address} cannot be opened: {error.strerror}; choose another --port or --host") from None


def _start_node(models: Models, pacs: PacsOptions, options: RestOptions) -> Any:
    from chess_cxr.serve.model import build_bones_model, build_findings_model
    from chess_cxr.serve.work import start

    findings = [build_findings_model(models, name, pacs.limits, options.point) for name in models.classifiers]
    bones = [build_bones_model(name, model, pacs.limits) for name, model in models.bones.items()]
    return start(pacs, findings, bones[0] if bones else None)


async def _run(server: Any, config: Any, address: str) -> None:
    try:
        plug = config.bind_socket()
    except SystemExit:
        raise ChessError(f"{address} cannot be opened; choose another --port or --host") from None
    running = asyncio.create_task(server.serve([plug]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        print(f"{address} is ready", file=sys.stderr, flush=True)
    await running


def build_protocol() -> type[Any]:
    """Build uvicorn's HTTP protocol with time limits for the header of a request and the reader of an answer."""
    implemented: Any = import_extra("uvicorn.protocols.http.h11_impl", "serve", "the server")
    h11 = implemented.h11
    protocol: Any = implemented.H11Protocol

    class Patient(protocol):  # type: ignore[misc]
        """Closes connections whose next request does not begin to be answered in time, or whose answer is not read."""

        clock: asyncio.TimerHandle | None = None
        reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()
            self._forget_reader()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.reading = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_reader()

        def send_400_response(self, msg: str) -> None:
            """Answer what is no HTTP with a problem, too."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                start, end = Problem(400, "this is no HTTP request", {"Connection": "close"}).as_messages(HEADERS)
                answer = h11.Response(status_code=400, headers=start["headers"])
                for event in (answer, h11.Data(end["body"]), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
            self.transport.close()

        def _watch(self) -> None:
            """Let the clock run while no request is at hand."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self.clock is None and not self.transport.is_closing():
                self.clock = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.close)

        def _forget_reader(self) -> None:
            if self.reading is not None:
                self.reading.cancel()
                self.reading = None

        def _stop(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

    return Patient
