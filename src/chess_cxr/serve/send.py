"""Send results: C-STORE to a DICOM node, or STOW-RS to a DICOMweb server."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from chess_cxr.records import ChessError, import_extra
from chess_cxr.serve.options import Peer
from chess_cxr.workers.child import ChildDied, ChildGone, ChildLate, Limits, get_child

SECONDS = 30.0  # without a sign of life
STEP_SECONDS, STEP_GIB = 120.0, 4.0  # for all that it takes to send one result
_DUPLICATE = 0x0111  # PS3.7 C.4.14: the object is there already
_SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
_TEMPORARY = (401, 403, 404, 408, 429)  # a wrong token or path is set right by the operator, and then all go through
_ONE_PIECE = 1 << 31  # bytes of a body that is not sent in chunks, which not every server takes


@dataclass(frozen=True)
class Tls:
    """Files (PEM) for sending by TLS: authorities that vouch for the server, own certificate with its key."""

    authorities: Path
    certificate: Path | None = None
    key: Path | None = None


class Unreachable(ChessError):
    """The server is down, full or does not let us in: no fault of a result, so all wait."""


class Refused(ChessError):
    """The server does not take this result."""


def send_results(
    target: Peer | str,
    files: Sequence[tuple[int, Path]],
    aet: str,
    token_file: Path | None = None,
    tls: Tls | None = None,
) -> Iterator[int]:
    """Send result files and yield the number of each as soon as the server has it.

    tls: for C-STORE; without it, results go in plain text.
    Raises `Unreachable` or `Refused`, whose texts name no patient.
    """
    if not files:
        return
    if isinstance(target, Peer):
        yield from _store(target, files, aet, tls)
    else:
        yield from _post(target, files, token_file)


# ---------------------------------------------------------------- limits


def send_from_child(*request: Any) -> Iterator[int]:
    """Call `send_results` in this thread's child, which is killed if it takes `STEP_SECONDS` for one result.

    pynetdicom waits for ever for a peer that stops amid a PDU.
    """
    limits, begun = Limits(STEP_SECONDS, STEP_GIB), request
    try:
        while (number := get_child(send_in_child, limits).ask(*begun)) is not None:
            yield number  # type: ignore[misc]  # what the child yields
            begun = ()
    except ChildLate:
        raise Unreachable(f"no result was sent within {STEP_SECONDS:g} seconds") from None
    except (ChildDied, ChildGone):
        raise Unreachable("the process that sends ended") from None


def send_in_child(*request: Any) -> int | None:
    """Begin to send results, or without a request go on; return the number of the next that has arrived, or None."""
    global _sending
    try:
        if request:
            _sending = send_results(*request)
        return next(_sending, None)
    except ChessError:
        raise
    except Exception as error:  # its text may quote the result
        raise ChessError(f"error in the program ({type(error).__name__})") from None


_sending: Iterator[int] = iter(())  # of a child


# ---------------------------------------------------------------- C-STORE


def _build_tls(tls: Tls) -> ssl.SSLContext:
    """Build a context in which the server proves who it is, and so do we if we have a certificate (PS3.15 B.9)."""
    try:
        context = ssl.create_default_context(cafile=tls.authorities)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise Unreachable(f"cannot be asked by TLS: a certificate cannot be read ({type(error).__name__})") from None
    return context


def _store(peer: Peer, files: Sequence[tuple[int, Path]], aet: str, tls: Tls | None) -> Iterator[int]:
    pynetdicom = import_extra("pynetdicom", "serve", "--results-to")
    entity = pynetdicom.AE(ae_title=aet)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = SECONDS
    results = [(number, pydicom.dcmread(path)) for number, path in files]
    for kind in sorted({str(result.SOPClassUID) for _, result in results}):
        entity.add_requested_context(kind, _SYNTAXES)
    secured = (_build_tls(tls), peer.host) if tls else None
    association = entity.associate(peer.host, peer.port, ae_title=peer.aet, tls_args=secured)
    if not association.is_established:
        rejected = association.is_rejected
        raise Unreachable(f"{peer.aet} {'rejects the association' if rejected else 'cannot be reached'}")
    try:
        for number, result in results:
            _store_one(association, peer, result)
            yield number
    finally:
        if association.is_established:
            association.release()


def _store_one(association: Any, peer: Peer, result: pydicom.Dataset) -> None:
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    if result.SOPClassUID not in accepted:
        raise Refused(f"{peer.aet} does not take {result.SOPClassUID.name}")
    try:
        status = association.send_c_store(result).get("Status")
    except (RuntimeError, OSError):  # the association ended
        status = None
    if status is None:
        raise Unreachable(f"{peer.aet} broke the association off")
    if status >> 8 == 0xA7:
        raise Unreachable(f"{peer.aet} is out of resources (status {status:04X})")
    if status not in (0, _DUPLICATE) and status >> 12 != 0xB:
        raise Refused(f"{peer.aet} refused a result (status {status:04X})")


# ---------------------------------------------------------------- STOW-RS


def open_session(token_file: Path | None) -> Any:
    """Return a session for DICOMweb that follows no redirect, with the bearer token of the file, if there is one."""
    session = import_extra("dicomweb_client.session_utils", "serve", "DICOMweb").create_session()
    session.max_redirects = 0
    if token_file is not None:
        session.headers["Authorization"] = read_bearer(token_file)
    return session


def read_bearer(token_file: Path) -> str:
    """Return the header Authorization with the token in a file; raises `Unreachable` if it cannot be read."""
    try:
        return f"Bearer {token_file.read_text('utf-8').strip()}"
    except (OSError, ValueError):
        raise Unreachable("cannot be asked: the token file cannot be read") from None


def open_client(url: str, session: Any) -> Any:
    """Return a DICOMweb client that does not retry by itself."""
    web = import_extra("dicomweb_client.web", "serve", "DICOMweb")
    client = web.DICOMwebClient(url, session=session, timeout=SECONDS, chunk_size=_ONE_PIECE, permissive_uid=True)
    client.set_http_retry_params(retry=False)
    return client


def _post(url: str, files: Sequence[tuple[int, Path]], token_file: Path | None) -> Iterator[int]:
    with open_session(token_file) as session:
        session.headers["Accept"] = "application/dicom+json"
        client = open_client(url, session)
        for number, path in files:
            failed = _post_one(client, pydicom.dcmread(path))
            if failed is not None:
                raise Refused(f"the DICOMweb server refused a result (reason {failed:04X})")
            yield number


def _post_one(client: Any, result: pydicom.Dataset) -> int | None:
    """Post one result; return the Failure Reason (0008,1197) if the server refused it, None if it has it."""
    try:
        answer = client.store_instances([result])
    except Exception as error:
        raise explain_failure(error) from None
    for item in answer.get("FailedSOPSequence") or ():
        reason = int(item.get("FailureReason") or 0)
        if reason != _DUPLICATE:
            return reason
    return None


def explain_failure(error: Exception) -> ChessError:
    """Return what a failed request means, without its text, which may quote UIDs."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return Unreachable(f"the DICOMweb server cannot be reached ({type(error).__name__})")
    if status in _TEMPORARY or not 400 <= status < 500:
        return Unreachable(f"the DICOMweb server answers HTTP {status}")
    return Refused(f"the DICOMweb server refused a request (HTTP {status})")
