"""Make identifying fields anonymous: keyed hashes, shifted days, capped ages, names of a closed list.

The key must never lie beside the data: whoever holds both can confirm a guess at a patient's number.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import uuid
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from chess_cxr.files.locations import NotAFile, TooLarge, find_own_folder, is_url, read_location
from chess_cxr.files.whole import place_new, write_flushed
from chess_cxr.records import UsageError, parse_date

KEY_VARIABLE = "CHESS_CXR_ID_KEY"
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 1 << 16
HASH_CHARACTERS = 24  # 96 bits: no collision is expected below 10^13 films
CAPPED_AGE_YEARS = 90.0
SPACINGS_MM = 0.01, 20.0  # from a magnified detail to half a metre in 32 pixels
FIRST_YEAR = 1895  # of the first radiograph; earlier dates are placeholders such as 00010101
# 179 years: the year of a study gives its day away for at most 1 in 180 patients, whose secret is at an edge.
SECRET_DAYS = 1 << 16
FIRST_SECRET_DAY = date(1900, 1, 1).toordinal()
COPY_DAYS = 36_525  # copies date films at least a century back, so that nobody takes the day for the real one

# Makers of chest X-ray units, detectors and readers: those known by their name, and those known by several beginnings
# (after `_simplify`).
_MAKERS = (
    "Acteon|Agfa|Allengers|Analogic|Arcoma|Canon|Carestream|Control-X|Del Medical|DRGEM|DRTECH|Genoray|Hitachi|Hologic|"
    "iRay|Italray|Listem|Lodox|Lumisys|Neusoft|Perlong|Philips|Rayence|Sedecal|Shimadzu|Siemens|Stephanix|Swissray|"
    "Toshiba|Varex|Varian|Vidar|Vieworks"
)
_MAKERS_BY_BEGINNING = {
    "BMI": "bmi biomedical|biomedical international",
    "Delft Imaging": "delft imaging|delft di|oldelft|nucletron oldelft",
    "DK Medical": "dk medical|dongkang",
    "DMS Apelem": "dms|apelem",
    "Fujifilm": "fuji|fujifilm|fuji photo film",
    "GE": "ge|gems|gehc|ge healthcare|ge medical|general electric",
    "GMM": "gmm|general medical merate",
    "iCRco": "icrco|icr co",
    "Imaging Dynamics": "imaging dynamics|idc",
    "Kodak": "kodak|eastman kodak",
    "Konica Minolta": "konica|minolta|kmmg",
    "Mindray": "mindray|shenzhen mindray",
    "Samsung": "samsung|gemss",
    "Thales": "thales|trixell",
    "United Imaging": "united imaging|uih",
    "Villa": "villa sistemi",
    "Wandong": "wandong|wdm",
}
# Beginnings of this many letters need no end of word, as in "PhilipsMedicalSystems".
_TELLING_LETTERS = 6


def read_id_key(path: Path | None = None) -> bytes:
    """Return the secret key for the hashes of identifiers.

    The key comes from `path`, else from the environment variable CHESS_CXR_ID_KEY, else from the user's own file
    `chess-cxr/id.key` in the configuration folder, which is created on first use (mode 0600).
    Raises `UsageError` if the key cannot be read or is shorter than 16 bytes.
    """
    if path is not None and not path.exists():
        raise UsageError(f"there is no key file {path}; make one with: openssl rand -hex 32 > {path}")
    if path is not None:
        return _check_key(_read_key_file(path), str(path))
    if text := os.environ.get(KEY_VARIABLE):
        return _check_key(text.strip().encode(), KEY_VARIABLE)
    own = get_key_path()
    if not own.exists():
        _write_new_key(own)
    return _check_key(_read_key_file(own), str(own))


def get_key_path() -> Path:
    """Return the path of the user's own key: `$XDG_CONFIG_HOME/chess-cxr/id.key`, by default below `~/.config`."""
    return find_own_folder() / "id.key"


def hash_id(key: bytes, kind: Literal["uid", "patient", "study", "listed"], text: str) -> str:
    """Return 24 hexadecimal characters of HMAC-SHA256 (RFC 2104) over the kind and the identifier.

    One text has unrelated hashes as uid, patient, study and listed film.  Empty text (unknown) stays empty.
    """
    return _compute_digest(key, f"{kind}\0{text}").hex()[:HASH_CHARACTERS] if text else ""


def hash_uid(key: bytes, uid: str) -> str:
    """Return the replacement of a DICOM UID: 2.25. and a UUID (PS3.5 B.2) made from its HMAC-SHA256.

    A UID has the same replacement in every file, so references between files remain valid.
    """
    digest = _compute_digest(key, f"dicom uid\0{uid}")
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def shift_day(key: bytes, patient: str, study_date: str) -> float:
    """Return the days from a secret day of the patient to a study (YYYYMMDD), NaN for an invalid date.

    HMAC-SHA256 of the patient selects the secret day from the 2^16 days after 1900-01-01: differences between the days
    of one patient are exact, everything else is meaningless.  patient: owner of the film, as passed to `hash_id`.
    """
    day = _parse_day(study_date)
    return math.nan if day is None else float(day.toordinal() - FIRST_SECRET_DAY - _find_secret(key, patient))


def shift_date(key: bytes, patient: str, study_date: str) -> str:
    """Return a date (YYYYMMDD) shifted one to three centuries back by the patient's secret, "" for an invalid date.

    Differences within a patient are exact, as with `shift_day`.
    """
    day = _parse_day(study_date)
    if day is None:
        return ""
    moved = day - timedelta(days=COPY_DAYS + _find_secret(key, patient))
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def read_year(study_date: str) -> float:
    """Return the year of a date (YYYYMMDD), NaN for an invalid date."""
    day = _parse_day(study_date)
    return math.nan if day is None else float(day.year)


def cap_age(age_years: float) -> float:
    """Return 90 for every age above 89 (45 CFR 164.514(b)(2)(i)(C)), any other age or NaN unchanged."""
    return CAPPED_AGE_YEARS if age_years > CAPPED_AGE_YEARS - 1 else age_years


def limit_spacing(spacing_mm: float) -> float:
    """Return a pixel spacing to four digits, NaN for an implausible one: a header may hold any number there."""
    low, high = SPACINGS_MM
    return float(f"{spacing_mm:.4g}") if low <= spacing_mm <= high else math.nan


def name_manufacturer(text: str) -> str:
    """Return the maker of a closed list that a free text begins with, "other" for an unknown one, "" without text.

    No character of the text itself is passed on.
    """
    words = _simplify(text)
    if not words:
        return ""
    named = {name: _simplify(name) for name in _MAKERS.split("|")} | _MAKERS_BY_BEGINNING
    return next((name for name, starts in named.items() if _begins(words, starts)), "other")


def check_key_place(key_file: Path | None, others: Iterable[Path | str]) -> None:
    """Raise `UsageError` if the key lies within or beside one of `others` (source, store, copies), links followed.

    Beside means in the same folder, not deeper: a key below the home folder may go with films in the home folder.
    key_file: as passed to `read_id_key`; None means the user's own file, unless the environment holds the key.
    URLs among `others` are skipped, since the key is a local file.
    """
    if key_file is None and os.environ.get(KEY_VARIABLE):
        return
    named = key_file or get_key_path()
    key = Path(os.path.realpath(named))
    if key_file is not None and not key.exists():
        return  # `read_id_key` reports it
    for other in others:
        if is_url(other):
            continue
        place = Path(os.path.realpath(other))
        # A link to a key or to films counts as much as its target.
        beside = {place.parent, Path(os.path.realpath(Path(other).parent))}
        where = "within" if place == key or place in key.parents else "beside"
        if where == "within" or beside & {key.parent, Path(os.path.realpath(named.parent))}:
            raise UsageError(
                f"the id key {named} lies {where} {other}; keep it away from the data: "
                f"move it to a folder of its own and name it there with --key-file"
            )


def _parse_day(text: str) -> date | None:
    """Parse YYYYMMDD (DICOM DA, PS3.5 6.2); None for anything else and for days before 1895."""
    found = parse_date(text) if text.strip().isdigit() else ""
    return date.fromisoformat(found) if found and int(found[:4]) >= FIRST_YEAR else None


def _find_secret(key: bytes, patient: str) -> int:
    return int.from_bytes(_compute_digest(key, f"day\0{patient}")[:8], "big") % SECRET_DAYS


def _compute_digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


def _simplify(text: str) -> str:
    """Return lower-case words with one space between them, "G.E." and "GE" alike."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace(".", "").replace("\0", " ")))


def _begins(words: str, starts: str) -> bool:
    together = words.replace(" ", "")
    for start in starts.split("|"):
        letters = start.replace(" ", "")
        if f"{words} ".startswith(f"{start} ") or (len(letters) >= _TELLING_LETTERS and together.startswith(letters)):
            return True
    return False


def _check_key(key: bytes, origin: str) -> bytes:
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"the id key from {origin} is shorter than {MIN_KEY_BYTES} bytes; use a longer random one")
    return key


def _read_key_file(path: Path) -> bytes:
    try:
        return read_location(path, MAX_KEY_BYTES).strip()
    except (NotAFile, TooLarge):
        raise UsageError(
            f"the id key {path} is not a regular file of at most {MAX_KEY_BYTES} bytes; "
            f"copy it to one or set {KEY_VARIABLE}"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the id key {path}: {error.strerror}") from None


def _write_new_key(path: Path) -> None:
    """Create the key whole or not at all, so that two ingests that start together end up with one key."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_flushed(partial, f"{secrets.token_hex(32)}\n".encode(), 0o600)
        try:
            place_new(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write a new id key at {path} ({error.strerror}); set {KEY_VARIABLE} or name a key file"
        ) from None
