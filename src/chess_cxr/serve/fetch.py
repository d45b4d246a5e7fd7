"""Fetch films from a DICOMweb server that is allowed (WADO-RS, PS3.18 10.4), and from nowhere else.

The address that was checked is the one that is connected to, and no redirect is followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from chess_cxr.serve.dicom import FILM_CLASSES
from chess_cxr.serve.options import MIB
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.pull import CLASS, INSTANCE, SERIES, UID, read_value, take_part
from chess_cxr.serve.send import Unreachable, read_bearer

SECONDS, MOST_SECONDS = 10.0, 120.0  # of silence, for all films of a request
MOST_LIST = 16 * MIB  # of JSON that lists instances
WADO, QIDO = 'multipart/related; type="application/dicom"; transfer-syntax=*', "application/dicom+json"
_UID = "[0-9.]{1,64}"
_ADDRESS = re.compile(rf"(/[\w.~-]+)*/studies/{_UID}(/series/{_UID}(/instances/{_UID})?)?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def fetch_films(
    address: str,
    place: Path,
    hosts: Sequence[str],
    token: str | Path | None,
    most_bytes: int,
    most_films: int,
) -> list[Path]:
    """Fetch an instance, or all radiographs of a series or study, into a folder; return their files.

    Those of a series or study are named as its server names them: series/…/instances/….
    hosts: HOST or HOST:PORT, from which alone films are fetched.  token: a bearer token, or the file that holds it.
    most_bytes: of all films together.  Raises `Problem`, whose text does not quote the address.
    """
    server = _Server(*_check_address(address, hosts), token, time.monotonic() + MOST_SECONDS)
    if "/instances/" in server.parts.path:
        (place / "0").write_bytes(_take(*server.get(server.parts.path, WADO, most_bytes)))
        return [place / "0"]
    found = _list_instances(server, most_films)
    study, films = server.parts.path.partition("/series/")[0], []
    for series, instance in found:
        film = place / "series" / series / "instances" / instance
        content = _take(*server.get(f"{study}/series/{series}/instances/{instance}", WADO, most_bytes))
        most_bytes -= len(content)
        film.parent.mkdir(parents=True, exist_ok=True)
        film.write_bytes(content)
        films.append(film)
    return films


def _list_instances(server: _Server, most_films: int) -> list[tuple[str, str]]:
    """Return series and instance of the radiographs of a series or study (QIDO-RS, PS3.18 10.6), in a fixed order."""
    path = server.parts.path
    body, _ = server.get(f"{path}/instances?includefield={CLASS}", QIDO, MOST_LIST)
    try:
        items = json.loads(body or b"[]")
        names = (SERIES, INSTANCE, CLASS)
        found = [tuple(read_value(item, name) for name in names) for item in items]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise Problem(502, "the DICOMweb server answered no list of instances") from None
    told = path.partition("/series/")[2]
    rows = {(told or series, instance) for series, instance, kind in found if kind in FILM_CLASSES}
    films = sorted(row for row in rows if all(UID.fullmatch(uid) for uid in row))
    if not films:
        raise Problem(422, "there is no radiograph at this address")
    if len(films) > most_films:
        raise Problem(413, f"a request has at most {most_films} films")
    return films


def _take(body: bytes, kind: str) -> bytes:
    content = take_part(body, kind)
    if content is None:
        raise Problem(502, "the DICOMweb server answered no DICOM file")
    return content


@dataclass(frozen=True)
class _Server:
    """The DICOMweb server of an address that was checked.  until: when it must have answered everything."""

    parts: SplitResult
    port: int
    token: str | Path | None
    until: float

    def get(self, target: str, accept: str, most_bytes: int) -> tuple[bytes, str]:
        """Return the body of an answer and its Content-Type."""
        headers = {"Accept": accept, "Connection": "close"}
        try:
            if self.token is not None:
                headers["Authorization"] = (
                    read_bearer(self.token) if isinstance(self.token, Path) else f"Bearer {self.token}"
                )
            connection = _connect(self.parts, self.port)
            try:
                with _hang_up(connection.sock, self.until):
                    connection.request("GET", target, headers=headers)
                    response = connection.getresponse()
                    if response.status not in (200, 204):
                        raise Problem(502, f"the DICOMweb server answered {response.status}")
                    body = bytearray()
                    while part := response.read1(MIB):
                        body += part
                        if len(body) > most_bytes:
                            raise Problem(413, "the films are larger than a request may be")
                    if time.monotonic() > self.until:
                        raise TimeoutError
                    return bytes(body), response.headers.get("Content-Type", "")
            finally:
                connection.close()
        except Unreachable as error:
            raise Problem(502, f"the DICOMweb server {error}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or time.monotonic() > self.until:
                raise Problem(504, "the DICOMweb server did not answer in time") from None
            raise Problem(502, "the DICOMweb server cannot be reached") from None


@contextmanager
def _hang_up(plug: socket.socket, until: float) -> Iterator[None]:
    """Shut a connection down at a time, so that a server which trickles bytes holds up no thread."""

    def shut() -> None:
        with suppress(OSError):  # it has ended by itself
            plug.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, until - time.monotonic()), shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_address(address: str, hosts: Sequence[str]) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(address)
        usual = _PORTS[parts.scheme]
        host, port = parts.hostname or "", parts.port or usual
    except (KeyError, ValueError):
        raise Problem(422, "the address is no http:// or https:// URL") from None
    shown = f"[{host}]" if ":" in host else host
    allowed = {name.lower() for name in hosts}
    if not {f"{shown}:{port}", *([shown] if port == usual else [])} & allowed:
        raise Problem(403, "films are not fetched from this host; --dicomweb-hosts names those that are allowed")
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not plain or not _ADDRESS.fullmatch(parts.path) or "/.." in parts.path or "/./" in parts.path:
        raise Problem(422, "the address should be that of a study, a series or an instance, and have nothing else")
    return parts, port


def _connect(parts: SplitResult, port: int) -> http.client.HTTPConnection:
    """Connect to an address that was checked; a name may mean another one at every look."""
    host = str(parts.hostname)
    places = sorted({str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    if any(_is_special(place) for place in places):
        raise Problem(403, "films are not fetched from link-local, multicast or unspecified addresses")
    plug = socket.create_connection((places[0], port), SECONDS)
    if parts.scheme == "https":
        plug = ssl.create_default_context().wrap_socket(plug, server_hostname=host)
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    connection.sock = plug
    return connection


def _is_special(place: str) -> bool:
    address = ipaddress.ip_address(place.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified)
