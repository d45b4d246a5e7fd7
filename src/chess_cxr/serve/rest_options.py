"""Options of the REST server and the page."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from chess_cxr.arguments import Device, check_device_name
from chess_cxr.records import UsageError
from chess_cxr.tasks.table import Runtime

LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class RestOptions:
    """Options of the REST server and the page; host, workers, limits, film_mib, trusted_network are the PACS node's.

    Args:
        port: port of REST and page.
        token_file: file with the token that clients must send; needed with another host than loopback.
        store: store whose films nearest to a new one are shown; needs an encoder among the models.
        point: operating point of classifiers: youden, sensitivity_90 or specificity_90.
        runtime: torch; onnx, ONNX Runtime on the CPU; or auto, onnx on the CPU if a model and this machine have it.
        device: auto, cpu, cuda, cuda:N or mps.
        dicomweb_hosts: HOST or HOST:PORT from which films may be fetched for {"dicomweb": URL}.
        most_requests: requests received, waiting and at work; further ones are answered 503.
        most_films: films in one request.
        spool_gib: disk for the bodies of all requests; beyond it, requests are answered 503.
        body_seconds: seconds in which a request's body must have arrived.
    """

    port: int = 8000
    token_file: Path | None = None
    store: Path | None = None
    point: str = "youden"
    runtime: Runtime = "auto"
    device: Device = "auto"
    dicomweb_hosts: tuple[str, ...] = ()
    most_requests: int = 128
    most_films: int = 64
    spool_gib: float = 4.0
    body_seconds: float = 120.0


def check_rest_options(options: RestOptions, host: str, trusted_network: bool) -> None:
    """Raise `UsageError` for options that contradict each other or open the server to strangers."""
    if not 0 < options.port < 1 << 16:
        raise UsageError("--port is a number from 1 to 65535")
    if min(options.most_requests, options.most_films) < 1 or min(options.spool_gib, options.body_seconds) <= 0:
        raise UsageError("--most-requests, --most-films, --spool-gib and --body-seconds must be above 0")
    check_device_name(options.device)
    for name in options.dicomweb_hosts:
        if not re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?", name):
            raise UsageError("--dicomweb-hosts takes HOST or HOST:PORT, such as pacs.example.org:8042")
    if not (is_loopback(host) or options.token_file or trusted_network):
        raise UsageError(
            "--host opens the server to others: give --token-file, or say --trusted-network if a proxy in front checks "
            "who connects, by mTLS for example"
        )


def read_token(file: Path | None) -> bytes:
    """Return the token in a file, b"" without a file; raises `UsageError` for one that can be guessed."""
    if file is None:
        return b""
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(token) < LEAST_TOKEN or len(token.split()) != 1 or not token.isascii():
        raise UsageError(f"{file} should hold one token of at least {LEAST_TOKEN} ASCII characters without blanks")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
