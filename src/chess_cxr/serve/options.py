"""Options of the PACS node, and where results go."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from chess_cxr.records import UsageError
from chess_cxr.workers.child import Limits, check_limits

_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2, AE
MIB = 1 << 20


@dataclass(frozen=True)
class PacsOptions:
    """Options of the PACS node.

    Args:
        spool: folder of the queue, on a local disk; processes that name the same folder share the work.
        results_to: where results go: TITLE@HOST:PORT (C-STORE) or the URL of a DICOMweb server (STOW-RS).
        dicom_port: port for C-STORE and C-ECHO; 0 opens none.
        aet: own AE title.
        calling: AE titles that may connect.
        host: address to listen at; another than loopback needs TLS for the port, a token for REST or
            --trusted-network.
        tls_certificate: own certificate (PEM); --tls-key and --tls-clients belong to it.
        tls_key: key of the own certificate.
        tls_clients: certificates of the authorities whose clients may connect.
        results_tls: certificates of the authorities (PEM) that vouch for the node that gets the results; they then go
            by TLS, with the own certificate, if there is one.
        trusted_network: others on this network may be trusted, or a proxy in front checks who connects.
        pull: URL of a DICOMweb server to ask for new studies.
        pull_days: how many days back studies are asked for.
        pull_seconds: seconds between two questions.
        token_file: file with the bearer token for DICOMweb servers.
        workers: films answered at a time.
        limits: limits of time and memory per film.
        film_mib: largest film that is received.
        associations: connections at a time.
        most_waiting: films in the queue from which no more are received.
        tries: how often a film is tried before it fails; a server that is down does not count.
        first_wait: seconds before the second try; each further wait is twice as long.
        longest_wait: longest wait between two tries, in seconds.
        report_refusals: report also why a film was refused; `--no-report-refusals` does not.
    """

    spool: Path
    results_to: str
    dicom_port: int = 0
    aet: str = "CHESS_CXR"
    calling: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_clients: Path | None = None
    results_tls: Path | None = None
    trusted_network: bool = False
    pull: str = ""
    pull_days: int = 2
    pull_seconds: float = 30.0
    token_file: Annotated[Path | None, tyro.conf.arg(name="dicomweb-token-file")] = None
    workers: int = 1
    limits: Limits = Limits()  # noqa: RUF009
    film_mib: int = 256
    associations: int = 8
    most_waiting: int = 10_000
    tries: int = 8
    first_wait: float = 1.0
    longest_wait: float = 300.0
    report_refusals: bool = True


@dataclass(frozen=True)
class Peer:
    """A DICOM node: AE title, host and port."""

    aet: str
    host: str
    port: int


def check_options(options: PacsOptions) -> None:
    """Raise `UsageError` for options that contradict each other or open the node to strangers."""
    if options.results_tls and not isinstance(parse_target(options.results_to), Peer):
        raise UsageError("--results-tls is for a DICOM node; a DICOMweb server is asked by TLS if its URL is https://")
    parse_target(options.results_to)
    check_limits(options.limits)
    if not _is_title(options.aet):
        raise UsageError("--aet is an AE title: 1 to 16 printable ASCII characters without backslash")
    if not all(_is_title(title) for title in options.calling):
        raise UsageError("--calling takes AE titles: 1 to 16 printable ASCII characters without backslash")
    if options.token_file is not None and not options.token_file.is_file():
        raise UsageError(f"there is no token file {options.token_file}")
    if options.pull and not _is_url(options.pull):
        raise UsageError("--pull is the URL of a DICOMweb server, http:// or https://")
    if not options.dicom_port and not options.pull:
        raise UsageError("nothing to do: open a port with --dicom-port or ask a server with --pull")
    if options.dicom_port and not options.calling:
        raise UsageError("--dicom-port needs --calling: the AE titles that may connect")
    if not 0 <= options.dicom_port < 1 << 16:
        raise UsageError("--dicom-port is a number up to 65535")
    files = options.tls_certificate, options.tls_key, options.tls_clients
    if any(files) and not all(files):
        raise UsageError("TLS needs --tls-certificate, --tls-key and --tls-clients together")
    if options.dicom_port and not (_is_loopback(options.host) or all(files) or options.trusted_network):
        raise UsageError("--host opens the port to others; use TLS, or say --trusted-network: AE titles prove nothing")
    least = ("workers", "film_mib", "associations", "most_waiting", "tries", "pull_days")
    if any(getattr(options, name) < 1 for name in least):
        raise UsageError(f"{', '.join(name.replace('_', '-') for name in least)} must be at least 1")
    if not (0 < options.first_wait <= options.longest_wait and options.pull_seconds > 0):
        raise UsageError("waits must be above 0 seconds, and the first no longer than the longest")


def refuse_node_options(options: PacsOptions) -> None:
    """Raise `UsageError` for options that do nothing without the PACS node."""
    if any((options.tls_certificate, options.tls_key, options.tls_clients)):
        raise UsageError(
            "--tls-certificate, --tls-key and --tls-clients are for the PACS node; add --dicom-port. REST itself "
            "has no TLS: put a proxy in front"
        )
    if options.results_to or options.calling or options.results_tls:
        raise UsageError("--results-to, --calling and --results-tls are for the PACS node; add --dicom-port or --pull")


def parse_target(text: str) -> Peer | str:
    """Return a DICOM node, or the URL of a DICOMweb server without / at its end; raises `UsageError` for neither."""
    if _is_url(text):
        return text.rstrip("/")
    aet, _, address = text.rpartition("@")
    host, _, port = address.rpartition(":")
    if not (_is_title(aet) and host and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UsageError("--results-to is TITLE@HOST:PORT or the URL of a DICOMweb server")
    return Peer(aet, host.strip("[]"), int(port))


def _is_title(text: str) -> bool:
    return bool(_TITLE.fullmatch(text)) and bool(text.strip())


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_wait(options: PacsOptions, tries: int) -> float:
    """Return the seconds to wait after so many tries: doubled each time, up to a longest wait."""
    return float(min(options.longest_wait, options.first_wait * 2.0 ** min(tries - 1, 60)))
