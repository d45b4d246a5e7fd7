"""Original identifiers to keyed hashes, and the key that makes them.

The key never stands beside the data: whoever holds both could confirm a guess at a patient's number.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Literal

from chess_cxr.records import UsageError

KEY_VARIABLE = "CHESS_CXR_ID_KEY"
MIN_KEY_BYTES = 16
HASH_CHARACTERS = 24  # 96 bits: no collision to expect below 10^13 films


def read_id_key(path: Path | None = None) -> bytes:
    """Return the secret that keys the hashes of identifiers.

    It comes from `path`, else from the environment variable CHESS_CXR_ID_KEY, else from this user's
    own file `chess-cxr/id.key` in the configuration folder, which is made on first use (mode 0600).
    Raises `UsageError` where the key cannot be read or is shorter than 16 bytes.
    """
    if path is not None:
        return _check_key(_read_key_file(path), str(path))
    if text := os.environ.get(KEY_VARIABLE):
        return _check_key(text.strip().encode(), KEY_VARIABLE)
    own = get_key_path()
    if not own.exists():
        _write_new_key(own)
    return _check_key(_read_key_file(own), str(own))


def get_key_path() -> Path:
    """Return where this user's key is kept: `$XDG_CONFIG_HOME/chess-cxr/id.key`, by default below `~/.config`."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification has relative paths ignored.
    folder = Path(configured) if os.path.isabs(configured) else Path.home() / ".config"
    return folder / "chess-cxr" / "id.key"


def hash_id(key: bytes, kind: Literal["uid", "patient", "study"], text: str) -> str:
    """Return 24 hexadecimal characters of HMAC-SHA256 (RFC 2104) over the kind and the identifier.

    The same text gives unrelated hashes as uid, patient and study.  Empty text (not known) stays empty.
    """
    if not text:
        return ""
    return hmac.new(key, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
        :HASH_CHARACTERS
    ]


def _check_key(key: bytes, origin: str) -> bytes:
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"the id key from {origin} is shorter than {MIN_KEY_BYTES} bytes; use a longer random one")
    return key


def _read_key_file(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"cannot read the id key {path}: {error.strerror}") from None


def _write_new_key(path: Path) -> None:
    """Create the key whole or not at all: two ingests that start together must end up with one key."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write a new id key at {path} ({error.strerror}); set {KEY_VARIABLE} or name a key file"
        ) from None
