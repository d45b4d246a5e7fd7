"""What may leave the archive of each field: keyed hashes, shifted days, capped ages, names of a closed list.

The key of it all never stands beside the data: whoever holds both could confirm a guess at a patient's number.
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
from chess_cxr.records import UsageError

KEY_VARIABLE = "CHESS_CXR_ID_KEY"
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 1 << 16
HASH_CHARACTERS = 24  # 96 bits: no collision to expect below 10^13 films
CAPPED_AGE_YEARS = 90.0
SPACINGS_MM = 0.01, 20.0  # from a magnified detail to a film of half a metre at 32 pixels
FIRST_YEAR = 1895  # of the first radiograph: an earlier date is a placeholder such as 00010101
# 179 years: where a study's year is known, its day within the year is open for all but 1 in 180 patients, whose secret
# stands at an edge of the range.
SECRET_DAYS = 1 << 16
FIRST_SECRET_DAY = date(1900, 1, 1).toordinal()
COPY_DAYS = 36_525  # copies date films at least a century back, where nobody takes the day for the real one

# How the makers of chest X-ray units, detectors and readers begin their names, after `_simplify`.
_MANUFACTURERS = {
    "Acteon": "acteon",
    "Agfa": "agfa",
    "Allengers": "allengers",
    "Analogic": "analogic",
    "Arcoma": "arcoma",
    "BMI": "bmi biomedical|biomedical international",
    "Canon": "canon",
    "Carestream": "carestream",
    "Control-X": "control x",
    "Delft Imaging": "delft imaging|delft di|oldelft|nucletron oldelft",
    "Del Medical": "del medical",
    "DK Medical": "dk medical|dongkang",
    "DMS Apelem": "dms|apelem",
    "DRGEM": "drgem",
    "DRTECH": "drtech",
    "Fujifilm": "fuji|fujifilm|fuji photo film",
    "GE": "ge|gems|gehc|ge healthcare|ge medical|general electric",
    "Genoray": "genoray",
    "GMM": "gmm|general medical merate",
    "Hitachi": "hitachi",
    "Hologic": "hologic",
    "iCRco": "icrco|icr co",
    "Imaging Dynamics": "imaging dynamics|idc",
    "iRay": "iray",
    "Italray": "italray",
    "Kodak": "kodak|eastman kodak",
    "Konica Minolta": "konica|minolta|kmmg",
    "Listem": "listem",
    "Lodox": "lodox",
    "Lumisys": "lumisys",
    "Mindray": "mindray|shenzhen mindray",
    "Neusoft": "neusoft",
    "Perlong": "perlong",
    "Philips": "philips",
    "Rayence": "rayence",
    "Samsung": "samsung|gemss",
    "Sedecal": "sedecal",
    "Shimadzu": "shimadzu",
    "Siemens": "siemens",
    "Stephanix": "stephanix",
    "Swissray": "swissray",
    "Thales": "thales|trixell",
    "Toshiba": "toshiba",
    "United Imaging": "united imaging|uih",
    "Varex": "varex",
    "Varian": "varian",
    "Vidar": "vidar",
    "Vieworks": "vieworks",
    "Villa": "villa sistemi",
    "Wandong": "wandong|wdm",
}
# Data sets write "PhilipsMedicalSystems" too: names of this many letters count without a word's end after them.
_TELLING_LETTERS = 6


def read_id_key(path: Path | None = None) -> bytes:
    """Return the secret that keys the hashes of identifiers.

    It comes from `path`, else from the environment variable CHESS_CXR_ID_KEY, else from this user's
    own file `chess-cxr/id.key` in the configuration folder, which is made on first use (mode 0600).
    Raises `UsageError` where the key cannot be read or is shorter than 16 bytes.
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
    """Return where this user's key is kept: `$XDG_CONFIG_HOME/chess-cxr/id.key`, by default below `~/.config`."""
    return find_own_folder() / "id.key"


def hash_id(key: bytes, kind: Literal["uid", "patient", "study", "listed"], text: str) -> str:
    """Return 24 hexadecimal characters of HMAC-SHA256 (RFC 2104) over the kind and the identifier.

    The same text gives unrelated hashes as uid, patient, study and listed film.  Empty text (not known) stays empty.
    """
    if not text:
        return ""
    return hmac.new(key, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
        :HASH_CHARACTERS
    ]


def hash_uid(key: bytes, uid: str) -> str:
    """Return the DICOM UID that stands for `uid`: 2.25. and a UUID (PS3.5 B.2) made of its HMAC-SHA256.

    One UID gives the same new one in every file, so that references go on pointing at what they pointed at.
    """
    digest = hmac.new(key, f"dicom uid\0{uid}".encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def shift_day(key: bytes, patient: str, study_date: str) -> float:
    """Return the day of a study (YYYYMMDD), counted from a secret day of the patient's own; NaN for no valid date.

    The secret day is one of 2^16 that follow 1900-01-01, by HMAC-SHA256 of the patient: differences between the days of
    one patient are exact, and nothing else means anything.  patient: who owns the film, as `hash_id` is given it.
    """
    day = parse_date(study_date)
    return math.nan if day is None else float(day.toordinal() - FIRST_SECRET_DAY - _find_secret(key, patient))


def shift_date(key: bytes, patient: str, study_date: str) -> str:
    """Return a date (YYYYMMDD) moved one to three centuries back, by the patient's secret; "" for no valid date.

    The differences are those of `shift_day`.
    """
    day = parse_date(study_date)
    if day is None:
        return ""
    moved = day - timedelta(days=COPY_DAYS + _find_secret(key, patient))
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def read_year(study_date: str) -> float:
    """Return the year of a date (YYYYMMDD); NaN for no valid date."""
    day = parse_date(study_date)
    return math.nan if day is None else float(day.year)


def parse_date(text: str) -> date | None:
    """Parse YYYYMMDD (DICOM DA, PS3.5 6.2); None for what is no day since 1895."""
    if not re.fullmatch(r"[0-9]{8}", text.strip()):
        return None
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        return None
    return day if day.year >= FIRST_YEAR else None


def cap_age(age_years: float) -> float:
    """Return 90 for every age above 89 (45 CFR 164.514(b)(2)(i)(C)), other ages and NaN as they are."""
    return CAPPED_AGE_YEARS if age_years > CAPPED_AGE_YEARS - 1 else age_years


def limit_spacing(spacing_mm: float) -> float:
    """Return a pixel spacing to four digits, NaN for what no film has: a header may hold any number in its place."""
    low, high = SPACINGS_MM
    return float(f"{spacing_mm:.4g}") if low <= spacing_mm <= high else math.nan


def name_manufacturer(text: str) -> str:
    """Return the maker that a free text begins with, as one of a closed list; "other" for no maker known, "" for none.

    No character of the text itself is passed on.
    """
    words = _simplify(text)
    if not words:
        return ""
    return next((name for name, starts in _MANUFACTURERS.items() if _begins(words, starts)), "other")


def check_key_place(key_file: Path | None, others: Iterable[Path | str]) -> None:
    """Raise `UsageError` where the key lies within or beside one of `others`, links followed: source, store, copies.

    Beside is in the same folder, not deeper: a key below the home goes with films in the home.
    key_file: as given to `read_id_key`; None is the user's own file, unless the environment holds the key.
    URLs among `others` are passed over: the key is a file of this machine.
    """
    if key_file is None and os.environ.get(KEY_VARIABLE):
        return
    named = key_file or get_key_path()
    key = Path(os.path.realpath(named))
    if key_file is not None and not key.exists():
        return  # `read_id_key` says so
    for other in others:
        if is_url(other):
            continue
        place = Path(os.path.realpath(other))
        # A link, as key or as film, stands beside the data as much as what it leads to.
        beside = {place.parent, Path(os.path.realpath(Path(other).parent))}
        where = "within" if place == key or place in key.parents else "beside"
        if where == "within" or beside & {key.parent, Path(os.path.realpath(named.parent))}:
            raise UsageError(
                f"the id key {named} lies {where} {other}; keep it away from the data: "
                f"move it to a folder of its own and name it there with --key-file"
            )


def _find_secret(key: bytes, patient: str) -> int:
    digest = hmac.new(key, f"day\0{patient}".encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") % SECRET_DAYS


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
            f"the id key {path} is no regular file of at most {MAX_KEY_BYTES} bytes; "
            f"copy it to one or set {KEY_VARIABLE}"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the id key {path}: {error.strerror}") from None


def _write_new_key(path: Path) -> None:
    """Create the key whole or not at all: two ingests that start together must end up with one key."""
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
