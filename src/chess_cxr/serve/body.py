"""Receive the films of a request: raw, as multipart/form-data, or by address from a DICOMweb server.

A body goes to the disk as it comes.  Names of files are neither used nor kept.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from chess_cxr.records import Undecodable, import_extra
from chess_cxr.serve.desk import Desk
from chess_cxr.serve.fetch import fetch_films
from chess_cxr.serve.options import MIB, PacsOptions
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.rest_options import RestOptions

MOST_JSON = 1 << 16
TOKEN = re.compile(r"[\w.~+/-]{1,8192}=*", re.ASCII)  # RFC 6750, 2.1
RAW = ("application/dicom", "application/octet-stream", "image/")
SILENCE_SECONDS = 20.0  # after which a client that sends nothing is given up
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def limit_body(receive: Receive, most_bytes: int, seconds: float) -> Receive:
    """Return an ASGI `receive` that raises `Problem` for a body that is too large or comes too slowly."""
    came, end = 0, asyncio.get_running_loop().time() + seconds

    async def receive_part() -> MutableMapping[str, Any]:
        nonlocal came
        left = end - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, min(left, SILENCE_SECONDS))):
                message = await receive()
        except TimeoutError:
            raise Problem(408, "the body did not arrive in time", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise Problem(400, "the body ended too early")
        came += len(message.get("body", b""))
        if came > most_bytes:
            raise Problem(413, f"a body has at most {most_bytes // MIB} MiB", {"Connection": "close"})
        return message

    return receive_part


async def receive_films(request: Any, place: Path, desk: Desk, pacs: PacsOptions, options: RestOptions) -> list[Path]:
    """Write the films of a request into a folder; return their files in the request's order.

    Raises `Problem` for a body of another kind, without a film or with too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    request = _count_bytes(request, place, desk)
    try:
        if kind == "multipart/form-data":
            return await _receive_parts(request, place, options.most_films)
        if kind == "application/json":
            address, token = await _read_address(request)
            limits = pacs.film_mib * MIB, options.most_films
            fetched = await desk.fetch(
                fetch_films, address, place, options.dicomweb_hosts, token or pacs.token_file, *limits
            )
            desk.hold(place, sum(film.stat().st_size for film in fetched))
            return fetched if len(fetched) == 1 else await desk.run(_leave_results_out, desk, fetched)
        if kind.startswith(RAW):
            return [await _receive_raw(request, place / "0")]
    except OSError:
        raise Problem(507, "there is no room on the disk for this body") from None
    raise Problem(415, "send a film as application/dicom, image/… or multipart/form-data, or an address as JSON")


def _count_bytes(request: Any, place: Path, desk: Desk) -> Any:
    """Return a request whose body is counted as it comes."""

    async def receive() -> MutableMapping[str, Any]:
        message: MutableMapping[str, Any] = await request.receive()
        desk.hold(place, len(message.get("body", b"")))
        return message

    return type(request)(request.scope, receive)


def find_source(film: Path) -> str:
    """Return the address of a film within the study or series that was fetched, "" for any other film."""
    return "/".join(film.parts[-4:]) if film.parent.name == "instances" else ""


def _leave_results_out(desk: Desk, films: list[Path]) -> list[Path]:
    """Return the films of a study that are no results of this package."""

    def is_film(file: Path) -> bool:
        try:
            return bool(desk.ask("check", file))
        except Undecodable:  # is refused later, with the reason
            return True

    return [film for film in films if is_film(film)]


async def _receive_raw(request: Any, file: Path) -> Path:
    with file.open("wb") as out:
        async for part in request.stream():
            out.write(part)
    if not file.stat().st_size:
        raise Problem(400, "the body is empty")
    return file


async def _receive_parts(request: Any, place: Path, most_films: int) -> list[Path]:
    import_extra("python_multipart", "serve", "multipart/form-data")
    files = list[Path]()
    try:
        async with request.form(max_files=most_films, max_fields=8, max_part_size=1 << 12) as form:
            for _, part in form.multi_items():
                if not isinstance(part, str):
                    file = place / str(len(files))
                    await asyncio.to_thread(_copy, part.file, file)
                    await part.close()
                    files.append(file)
    except (Problem, OSError):
        raise
    except Exception as error:  # of Starlette and of the parser, whose texts may quote the body
        if getattr(error, "status_code", 400) != 400:
            raise
        raise Problem(400, f"the multipart body is damaged or has more than {most_films} films") from None
    if not files:
        raise Problem(400, "the body holds no file")
    return files


def _copy(source: Any, target: Path) -> None:
    with target.open("wb") as out:
        shutil.copyfileobj(source, out, MIB)


async def _read_address(request: Any) -> tuple[str, str]:
    """Return the address in a JSON body, and the bearer token for its server, "" without one."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MOST_JSON:
            raise Problem(413, f"JSON has at most {MOST_JSON} bytes", {"Connection": "close"})
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON") from None
    if not isinstance(told, dict) or "dicomweb" not in told or not told.keys() <= {"dicomweb", "bearer"}:
        raise Problem(422, 'JSON should be {"dicomweb": "https://HOST/…/studies/…"}, with "bearer" for a token')
    address, token = told["dicomweb"], told.get("bearer", "")
    if not isinstance(address, str) or not isinstance(token, str) or (token and not TOKEN.fullmatch(token)):
        raise Problem(422, "the address should be a string, and so should the bearer token, as RFC 6750 has it")
    return address, token
