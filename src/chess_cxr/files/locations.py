"""Read, write and remove local files and stored objects, named by path or by URL.

A URL names its object as the AWS tools do: everything after the bucket is the key, nothing is unquoted.
Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE ...).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from chess_cxr.files.whole import replace_file
from chess_cxr.records import UsageError

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_AWS_ERROR = re.compile(r"AWS Error ([A-Z_]+)")
_CREDENTIALS = frozenset({"INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"})
_CREDENTIALS |= {"MISSING_AUTHENTICATION_TOKEN", "EXPIRED_TOKEN", "UNRECOGNIZED_CLIENT", "INVALID_SIGNATURE"}
_ABSENT = frozenset({"NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND"})
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")
# Errors of a network file system that has lost its server
_SERVER_FAILS = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH)
_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 60


class TooLarge(ValueError):
    """The file is larger than its reader allows; nothing was read."""


class RefusedCredentials(ConnectionError, PermissionError):
    """The object store rejects the credentials."""


class NotAFile(OSError):
    """The location is a folder, a pipe or a device."""


def is_url(location: Path | str) -> bool:
    """Whether a location is a URL ("s3://bucket/key")."""
    return isinstance(location, str) and _URL.match(location) is not None


def simplify_location(location: Path | str) -> Path | str:
    """Return a URL without its last slash; return a local location, file:// included, as a path.

    Raises `UsageError` for a file:// URL of another machine.
    """
    if not is_url(location):
        return Path(location)
    parts = urlsplit(str(location))
    if parts.scheme.lower() != "file":
        return f"{parts.scheme}://{str(location).partition('://')[2].rstrip('/')}"
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{location} names another machine; use file:///path")
    return Path(unquote(parts.path))


def find_own_folder() -> Path:
    """Return the folder of the user's settings: `$XDG_CONFIG_HOME/chess-cxr`, by default below `~/.config`."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification ignores relative paths.
    return (Path(configured) if os.path.isabs(configured) else Path.home() / ".config") / "chess-cxr"


def get_filesystem(location: Path | str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a location and the path of the location in it.

    Raises `UsageError` for an unsupported kind of URL and for credentials in a URL.
    """
    location = simplify_location(location)
    if isinstance(location, Path):
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(location)
    match = re.match(r"^([^:]+)://([^/]*)/?(.*)$", location, re.DOTALL)
    assert match is not None
    scheme, host, key = match[1].lower(), match[2], match[3]
    if scheme in ("s3", "s3a") and not host:
        raise UsageError(f"{location} names no bucket; use s3://BUCKET/FOLDER")
    if "@" in host and scheme not in ("abfs", "abfss"):
        raise UsageError(f"a {scheme}:// URL must not hold credentials; set them in the environment")
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)))
    filesystem, start = _open_filesystem(scheme, host, environment)
    return filesystem, "/".join(part for part in (start.rstrip("/"), key) if part)


@lru_cache(maxsize=64)
def _open_filesystem(scheme: str, host: str, environment: tuple[tuple[str, str], ...]) -> tuple[Any, str]:
    """Open a file system, once for each state of the environment variables that configure it."""
    if scheme in ("s3", "s3a"):
        return _open_s3(host), host
    try:
        filesystem, start = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}")
    except (pa.ArrowException, OSError, ImportError) as error:
        raise UsageError(f"{scheme}:// locations cannot be opened here ({type(error).__name__})") from None
    return filesystem, start


def _open_s3(bucket: str) -> Any:
    """Open S3 as the AWS tools do; this constructor of pyarrow ignores AWS_ENDPOINT_URL."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if not region and not endpoint:
        try:
            region = pyarrow.fs.resolve_s3_region(bucket)
        except OSError:
            region = "us-east-1"  # the next request reports what is wrong
    return pyarrow.fs.S3FileSystem(
        anonymous=os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"),
        endpoint_override=endpoint or None,
        region=region or "us-east-1",
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
    )


def translate_error(error: OSError) -> OSError:
    """Return the meaning of an object store's error, without the key and request number in its text."""
    found = _AWS_ERROR.search(str(error))
    code = found[1] if found else ""
    if code in _CREDENTIALS:
        return RefusedCredentials("the object store refuses the credentials")
    if isinstance(error, FileNotFoundError) or code in _ABSENT:
        return FileNotFoundError(errno.ENOENT, "no such object")
    if isinstance(error, PermissionError) or code == "ACCESS_DENIED" or "HTTP 403" in str(error):
        return PermissionError(errno.EACCES, "no permission for the object")
    if code == "NETWORK_CONNECTION":
        return ConnectionError("the object store cannot be reached")
    if "Not a regular file" in str(error):
        return NotAFile("not a regular file")
    if code:  # throttled, out of service ...: not the fault of the object
        return ConnectionError(f"the object store failed ({code})")
    return OSError(f"the object store failed ({type(error).__name__})")


# ---------------------------------------------------------------- reading


def read_location(location: Path | str, max_bytes: int) -> bytes:
    """Return the content of a file or object of at most `max_bytes`.

    Raises `TooLarge` before anything is read, `NotAFile` for a folder, pipe or device, `FileNotFoundError`,
    `PermissionError`, `ConnectionError` if the object store does not answer, `OSError` for all else.
    """
    location = simplify_location(location)
    if isinstance(location, Path):
        return _read_local(location, max_bytes)
    filesystem, path = get_filesystem(location)
    try:
        with filesystem.open_input_file(path) as file:
            _check_size(file.size(), max_bytes)
            content: bytes = file.read()
    except OSError as error:
        raise translate_error(error) from None
    return content


def _read_local(path: Path, max_bytes: int) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise NotAFile("not a regular file")
            _check_size(status.st_size, max_bytes)
            return file.read(status.st_size)
    except IsADirectoryError:
        raise NotAFile("not a regular file") from None
    except OSError as error:
        if error.errno in _SERVER_FAILS:
            raise ConnectionError("the file server cannot be reached") from None
        raise
    except ValueError as error:
        if isinstance(error, TooLarge):
            raise
        raise FileNotFoundError(errno.ENOENT, "no file can have such a name") from None  # a NUL in it


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLarge(f"larger than {max_bytes} bytes")


# ---------------------------------------------------------------- writing


def write_location(location: Path | str, content: bytes) -> None:
    """Write a file (mode 0600) or object; readers see the old content or the new, never a part.  Raises `OSError`."""
    location = simplify_location(location)
    if isinstance(location, Path):
        replace_file(location, content, 0o600)
        return
    filesystem, path = get_filesystem(location)
    try:
        with filesystem.open_output_stream(path) as file:
            file.write(content)
    except OSError as error:
        raise translate_error(error) from None


def remove_folder(location: Path | str) -> None:
    """Remove a folder, or all objects below a URL, if it exists."""
    location = simplify_location(location)
    if isinstance(location, Path):
        shutil.rmtree(location, ignore_errors=True)
        return
    filesystem, path = get_filesystem(location)
    try:
        filesystem.delete_dir(path)
    except OSError as error:
        translated = translate_error(error)
        if not isinstance(translated, FileNotFoundError):
            raise translated from None
