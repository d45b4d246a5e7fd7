"""What stands before every request: token, host, limits of the body, headers, log, metrics, the last error handler."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from chess_cxr.records import ChessError, Undecodable, UsageError, import_extra
from chess_cxr.serve.body import limit_body
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.rest_options import is_loopback

LOG = logging.getLogger("chess_cxr.serve")
LINGER_SECONDS, MOST_SECONDS = 1.0, 20.0  # for what a refused client still sends: of silence, in all
OPEN = ("/", "/health", "/ready")  # and the parts of the page: they hold nothing of anybody
HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
     b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Metrics:
    """Numbers of the server in Prometheus' format; labels are routes and statuses, never anything that was sent."""

    def __init__(self) -> None:
        client = import_extra("prometheus_client", "serve", "the server")
        self.registry = client.CollectorRegistry()
        self._render, self.kind = client.generate_latest, client.CONTENT_TYPE_LATEST
        self.requests = client.Counter(
            "chess_cxr_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = client.Histogram(
            "chess_cxr_request_seconds", "Seconds from a request's first byte to its answer", ["route"],
            registry=self.registry, buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )  # fmt: skip
        self.films = client.Counter("chess_cxr_films", "Films received", ["outcome"], registry=self.registry)
        self.waiting = client.Gauge("chess_cxr_requests_at_hand", "Requests at hand", registry=self.registry)

    def render(self) -> bytes:
        """Return all numbers as text."""
        rendered: bytes = self._render(self.registry)
        return rendered


class Guard:
    """ASGI application around another one; errors that reach it become one line without anything of the request.

    token: that clients must send, b"" for none.  names: that the header Host may give, none for any: a page of
    somebody else that points its own name at this machine must not reach a server on loopback.
    """

    def __init__(
        self, app: Any, metrics: Metrics, *, token: bytes, loopback_only: bool, most_bytes: int, body_seconds: float
    ) -> None:
        self.app, self.metrics, self.token, self.loopback_only = app, metrics, token, loopback_only
        self.most_bytes, self.body_seconds = most_bytes, body_seconds

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        headers = dict(scope["headers"])
        ended = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers

        async def receive_part() -> MutableMapping[str, Any]:
            nonlocal ended
            message: MutableMapping[str, Any] = await receive()
            ended = not message.get("more_body")
            return message

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                while status >= 400 and not ended:  # many clients read no answer before they have sent all
                    if not await _drop_part(receive_part, begun):
                        break
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, limit_body(receive_part, self.most_bytes, self.body_seconds), send_guarded)
        except Exception as error:
            if not isinstance(error, (Problem, ChessError)):
                LOG.error("error in the program (%s)", type(error).__name__)
            if not status:
                for message in explain(error).as_messages():
                    await send_guarded(message)
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - begun
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        method = "-" if route == "other" or status == 405 else scope["method"]  # others may be any word
        LOG.info("%s %s: %d in %.3f s", method, route, status, seconds)

    def _check(self, scope: Any) -> None:
        """Raise `Problem` for a request that must not come in."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self.loopback_only and not is_loopback(host.rsplit(":", 1)[0] if not host.endswith("]") else host):
            raise Problem(421, "this server answers on this machine alone")
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            raise Problem(403, "requests of other sites are not answered")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes:
            raise Problem(413, f"a body has at most {self.most_bytes >> 20} MiB", {"Connection": "close"})
        if self.token and scope["path"] not in OPEN and not scope["path"].startswith("/page/"):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token):
                raise Problem(401, "this server needs a token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})


async def _drop_part(receive: Callable[[], Awaitable[Any]], begun: float) -> bool:
    """Receive a part of a body and forget it; False if none comes soon."""
    try:
        async with asyncio.timeout(LINGER_SECONDS if time.monotonic() < begun + MOST_SECONDS else 0):
            await receive()
        return True
    except TimeoutError:
        return False


def explain(error: Exception) -> Problem:
    """Return the problem that an exception is; of an unexpected one, it tells only the name of its class."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, (UsageError, Undecodable)):
        return Problem(422, str(error))
    if isinstance(error, ChessError):
        return Problem(500, str(error))
    return Problem(500, f"error in the program ({type(error).__name__})")
