"""Fetch a film from a DICOMweb server that is allowed (WADO-RS, PS3.18 10.4), and from nowhere else.

The address that was checked is the one that is connected to, and no redirect is followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from chess_cxr.serve.options import MIB
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.pull import take_part
from chess_cxr.serve.send import Unreachable, read_bearer

SECONDS, MOST_SECONDS = 10.0, 60.0  # of silence, in all
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_INSTANCE = re.compile(r"(/[\w.~-]+)*/studies/[0-9.]{1,64}/series/[0-9.]{1,64}/instances/[0-9.]{1,64}", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def fetch_film(address: str, hosts: Sequence[str], token_file: Path | None, most_bytes: int) -> bytes:
    """Return the DICOM file of an instance.

    hosts: HOST or HOST:PORT, from which alone films are fetched.  Raises `Problem`, whose text does not quote the
    address.
    """
    parts, port = _check_address(address, hosts)
    deadline = time.monotonic() + MOST_SECONDS
    headers = {"Accept": ACCEPT, "Connection": "close"}
    try:
        if token_file is not None:
            headers["Authorization"] = read_bearer(token_file)
        connection = _connect(parts, port)
        try:
            connection.request("GET", parts.path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Problem(502, f"the DICOMweb server answered {response.status}")
            body = bytearray()
            while part := response.read1(MIB):
                body += part
                if len(body) > most_bytes:
                    raise Problem(413, f"a film has at most {most_bytes // MIB} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError
            kind = response.headers.get("Content-Type", "")
        finally:
            connection.close()
    except Unreachable as error:
        raise Problem(502, f"the DICOMweb server {error}") from None
    except TimeoutError:
        raise Problem(504, "the DICOMweb server did not answer in time") from None
    except (OSError, http.client.HTTPException):
        raise Problem(502, "the DICOMweb server cannot be reached") from None
    content = take_part(bytes(body), kind)
    if content is None:
        raise Problem(502, "the DICOMweb server answered no DICOM file")
    return content


def _check_address(address: str, hosts: Sequence[str]) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError):
        raise Problem(422, "the address is no http:// or https:// URL") from None
    shown = f"[{host}]" if ":" in host else host
    allowed = {name.lower() for name in hosts}
    if not {f"{shown}:{port}", *([shown] if port == _PORTS[parts.scheme] else [])} & allowed:
        raise Problem(403, "films are not fetched from this host; --dicomweb-hosts names those that are allowed")
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not plain or not _INSTANCE.fullmatch(parts.path) or "/.." in parts.path or "/./" in parts.path:
        raise Problem(422, "the address should end in /studies/…/series/…/instances/… and have nothing else")
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
