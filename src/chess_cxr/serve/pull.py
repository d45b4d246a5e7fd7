"""Ask a DICOMweb server for new films: QIDO-RS for what is there, WADO-RS for the films themselves (PS3.18 10).

What was seen is noted in the queue, so that a restart goes on where it stopped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from email.message import Message
from typing import Any

from chess_cxr.serve.dicom import FILM_CLASSES
from chess_cxr.serve.options import MIB, PacsOptions
from chess_cxr.serve.queue import Queue
from chess_cxr.serve.send import SECONDS, explain_failure, open_client, open_session

LOG = logging.getLogger("chess_cxr.serve")
MODALITIES = ("CR", "DX")
PAGE = 200
NOT_NOW = (401, 403, 408, 429, 503)  # concerns the server, not one film
UID = re.compile(r"[0-9][0-9.]{0,63}")
STUDY, SERIES, CLASS, INSTANCE, COUNT = "0020000D", "0020000E", "00080016", "00080018", "00201208"


def pull_films(options: PacsOptions, queue: Queue, models: str, on_film: Callable[[], None]) -> int:
    """Put the server's new films into the queue; return how many.

    A study is looked into again if it has another number of objects than last time.  Raises `ChessError` if the server
    cannot be asked.
    """
    added, url = 0, options.pull.rstrip("/")
    with open_session(options.token_file) as session:
        client = open_client(url, session)
        for study, count in _list_studies(client, options.pull_days):
            seen = f"{models} {url} {study}"
            if count and queue.recall(seen) == count:
                continue
            whole = bool(count)
            for series, instance in _list_films(client, study):
                if queue.count_waiting() >= options.most_waiting:
                    return added
                key = f"{models} {instance}"
                if queue.is_known(key):
                    continue
                address = f"{url}/studies/{study}/series/{series}/instances/{instance}"
                content = _retrieve(session, address, options.film_mib * MIB)
                if content is None:
                    whole = False
                elif queue.add(key, content):
                    added += 1
                    on_film()
            if whole:
                queue.note(seen, count)
    return added


def _list_studies(client: Any, days: int) -> Iterator[tuple[str, str]]:
    """Yield UID and number of objects, "" if the server does not tell, of recent studies with radiographs."""
    today = date.today()
    span = f"{today - timedelta(days=days):%Y%m%d}-{today + timedelta(days=1):%Y%m%d}"
    found = dict[str, str]()
    for modality in MODALITIES:
        filters = {"StudyDate": span, "ModalitiesInStudy": modality}
        for item in _search(client.search_for_studies, search_filters=filters, fields=[COUNT]):
            found[read_value(item, STUDY)] = read_value(item, COUNT)
    yield from ((study, count) for study, count in found.items() if UID.fullmatch(study))


def _list_films(client: Any, study: str) -> list[tuple[str, str]]:
    """Return series and instance of the study's objects that may be films."""
    films = []
    for item in _search(client.search_for_instances, study_instance_uid=study, fields=[CLASS]):
        series, instance = read_value(item, SERIES), read_value(item, INSTANCE)
        if read_value(item, CLASS) in FILM_CLASSES and UID.fullmatch(series) and UID.fullmatch(instance):
            films.append((series, instance))
    return films


def _search(ask: Callable[..., list[dict[str, Any]]], **query: Any) -> Iterator[dict[str, Any]]:
    """Yield all matches, page by page; servers that ignore the offset repeat a page, which ends the search."""
    first: dict[str, Any] | None = None
    for offset in range(0, 1 << 20, PAGE):
        try:
            page = ask(**query, limit=PAGE, offset=offset)
        except Exception as error:
            raise explain_failure(error) from None
        if not page or page[0] == first:
            return
        first = page[0]
        yield from page
        if len(page) < PAGE:
            return


def read_value(item: dict[str, Any], tag: str) -> str:
    """Return the first value of an attribute in the DICOM JSON model (PS3.18 F.2), "" without one."""
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _retrieve(session: Any, address: str, most_bytes: int) -> bytes | None:
    """Retrieve one object as it is stored, or None if the server cannot give this one or it is too large."""
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    body = bytearray()
    try:
        with session.get(address, headers={"Accept": accept}, timeout=SECONDS, stream=True) as response:
            if not response.ok and response.status_code not in NOT_NOW:
                LOG.warning("a film cannot be pulled (HTTP %d)", response.status_code)
                return None
            response.raise_for_status()
            for part in response.iter_content(MIB):
                body += part
                if len(body) > most_bytes:
                    LOG.warning("a film cannot be pulled: it is larger than is received")
                    return None
            kind = response.headers.get("Content-Type", "")
    except Exception as error:
        raise explain_failure(error) from None
    return take_part(bytes(body), kind)


def take_part(body: bytes, kind: str) -> bytes | None:
    """Return the first part of a multipart body (RFC 2046 5.1), or the body itself if it is a DICOM file, else None.

    kind: the header Content-Type.
    """
    header = Message()
    header["Content-Type"] = kind
    if header.get_content_type() == "application/dicom":
        return body
    boundary = header.get_param("boundary")
    if header.get_content_maintype() != "multipart" or not isinstance(boundary, str):
        return None
    mark = b"--" + boundary.encode("latin-1", "replace")
    _, found, rest = body.partition(mark)
    _, blank, content = rest.partition(b"\r\n\r\n")
    end = content.find(b"\r\n" + mark)
    return content[:end] if found and blank and end >= 0 else None
