"""Receive films by C-STORE: a storage and verification provider (PS3.4 B, A) that is on the disk before it says so."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from chess_cxr.records import UsageError, import_extra
from chess_cxr.serve.options import MIB, PacsOptions
from chess_cxr.serve.queue import Queue

LOG = logging.getLogger("chess_cxr.serve")
# Computed and digital radiographs, and secondary captures, in which scanned films and old archives come
FILM_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
)
# What `chess_cxr.decode` reads: native (also deflated), RLE, JPEG, JPEG lossless, JPEG-LS, JPEG 2000, HTJ2K
SYNTAXES = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203",
)  # fmt: skip
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000  # PS3.4 B.2.3
VERIFICATION = "1.2.840.10008.1.1"
SECONDS = 30.0  # without a sign of life, for each step of an association
PDU_SECONDS = 60.0  # for all of one PDU, however slowly its bytes drip
MOST_PDU_BYTES = MIB  # this node announces 64 KiB
PDU_BYTES = 1 << 16


def start_receiver(options: PacsOptions, queue: Queue, models: str, on_film: Callable[[], None]) -> Any:
    """Open the port and return the running server, whose `shutdown` closes it.

    models: hash of the models, part of the key under which a film is queued.  on_film: called after each film.
    Raises `UsageError` if the port cannot be opened.
    """
    pynetdicom = import_extra("pynetdicom", "serve", "--dicom-port")
    entity = pynetdicom.AE(ae_title=options.aet)
    entity.require_calling_aet = list(options.calling)
    entity.require_called_aet = True
    entity.maximum_associations = options.associations
    entity.maximum_pdu_size = PDU_BYTES
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
    entity.add_supported_context(VERIFICATION, list(SYNTAXES[:2]))
    for film_class in FILM_CLASSES:
        entity.add_supported_context(film_class, list(SYNTAXES))
    handlers = [
        (pynetdicom.evt.EVT_CONN_OPEN, partial(_bound_connection, most_bytes=options.film_mib * MIB)),
        (pynetdicom.evt.EVT_C_STORE, partial(_store, options=options, queue=queue, models=models, on_film=on_film)),
    ]
    try:
        return entity.start_server(
            (options.host, options.dicom_port), block=False, evt_handlers=handlers, ssl_context=_build_tls(options)
        )
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"cannot listen at {options.host}:{options.dicom_port} ({reason})") from None


def _build_tls(options: PacsOptions) -> ssl.SSLContext | None:
    """Build a context for TLS in which the client proves who it is (PS3.15 B.9)."""
    if options.tls_certificate is None or options.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(options.tls_certificate, options.tls_key)
    context.load_verify_locations(options.tls_clients)
    return context


def _store(event: Any, options: PacsOptions, queue: Queue, models: str, on_film: Callable[[], None]) -> int:
    """Put a film into the queue; the status tells the sender whether it is safe."""
    instance = str(event.request.AffectedSOPInstanceUID or "")
    if not instance:
        return CANNOT_UNDERSTAND
    try:
        if queue.is_known(f"{models} {instance}"):
            return SUCCESS
        if queue.count_waiting() >= options.most_waiting:
            LOG.warning("a film was turned away: the queue is full")
            return OUT_OF_RESOURCES
        added = queue.add(f"{models} {instance}", event.encoded_dataset())
    except Exception as error:  # a full disk, above all; the sender keeps the film
        LOG.error("a film was turned away: it could not be kept (%s)", type(error).__name__)
        return OUT_OF_RESOURCES
    if added:
        on_film()
    return SUCCESS


# ---------------------------------------------------------------- limits


def _bound_connection(event: Any, most_bytes: int) -> None:
    """Limit what a connection may send: bytes of a film, bytes and seconds of a PDU; pynetdicom limits neither."""
    connection = event.assoc.dul.socket
    connection.socket.settimeout(SECONDS)
    connection.recv = _BoundedReader(connection, event.assoc, most_bytes)


class _BoundedReader:
    """Reads for pynetdicom, in place of its own function, and ends a connection that sends too much or too slowly."""

    def __init__(self, connection: Any, association: Any, most_bytes: int) -> None:
        self._connection, self._association = connection, association
        self._most_bytes, self._bytes = most_bytes, 0

    def __call__(self, count: int) -> bytearray:
        if self._association.dimse.message is None:  # between two messages
            self._bytes = 0
        self._bytes += count
        if count > MOST_PDU_BYTES or self._bytes > self._most_bytes + MOST_PDU_BYTES:
            LOG.warning("a connection was ended: it sent more than is received")
            raise OSError("too much")
        received, until = bytearray(), time.monotonic() + PDU_SECONDS
        while len(received) < count:
            part = self._connection.socket.recv(min(count - len(received), PDU_BYTES))
            if not part:
                break
            received += part
            if time.monotonic() > until:
                LOG.warning("a connection was ended: it sent too slowly")
                raise OSError("too slow")
        return received
