"""Errors of the REST server: application/problem+json (RFC 9457), one line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

PROBLEM = "application/problem+json"


class Problem(Exception):
    """An answer other than what was asked for; its text quotes nothing of the request.

    more: further members of the JSON object.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), dict(more or {})

    def as_json(self) -> bytes:
        """Return the body of the answer."""
        title = HTTPStatus(self.status).phrase
        told = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return json.dumps(told | self.more).encode()

    def as_messages(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> list[dict[str, Any]]:
        """Return the answer as ASGI messages."""
        body = self.as_json()
        own = {"content-type": PROBLEM, "content-length": str(len(body))} | self.headers
        encoded = [*headers, *((name.lower().encode(), value.encode()) for name, value in own.items())]
        start = {"type": "http.response.start", "status": self.status, "headers": encoded}
        return [start, {"type": "http.response.body", "body": body}]
