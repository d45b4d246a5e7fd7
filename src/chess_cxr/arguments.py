"""Argument types of commands, checks of arguments, and results printed as text or JSON."""

from __future__ import annotations

import csv
import json as json_text
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional

from chess_cxr.progress import ProgressBar
from chess_cxr.records import UsageError

Sources = Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="SRC…")]
Stores = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE…")]
RunPaths = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN…")]
StorePath = Annotated[Positional[Path], tyro.conf.arg(metavar="STORE")]
Location = Annotated[Positional[str], tyro.conf.arg(metavar="STORE")]  # a path or a URL
Examined = Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH…")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]
Config = TypeVar("Config")
Flat = Annotated[Config, tyro.conf.arg(name="")]  # fields become options of the command, without a prefix
EncoderName = Annotated[Positional[str], tyro.conf.arg(metavar="ENCODER")]


def check_device_name(name: str) -> None:
    """Raise `UsageError` for an invalid device name, without importing torch; the device may still be absent."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"there is no device {name[:40]!r}; name auto, cpu, cuda, cuda:N or mps")


def is_first_rank() -> bool:
    """Return whether this is the first rank of torchrun, or the only process; it prints the results."""
    return os.environ.get("RANK", "0") == "0"


def check_workers(workers: int | None, cluster: str = "") -> None:
    """Raise `UsageError` for fewer than 1 worker, or for both workers and a cluster."""
    if workers is not None and workers < 1:
        raise UsageError("--workers must be 1 or more")
    if workers is not None and cluster:
        raise UsageError("--workers is for this machine; a --cluster has its own")


def parse_location(text: str) -> Path | str:
    """Return a URL as text, anything else as a path."""
    from chess_cxr.files.locations import simplify_location

    return simplify_location(text)


def parse_size_range(text: str) -> tuple[float, float]:
    """Parse a range of diameters such as 5-30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found[1]) <= float(found[2]) <= 200:
        raise UsageError(f"--size-mm {text!r} should be a range of diameters, such as 5-30")
    return float(found[1]), float(found[2])


def print_films(columns: Sequence[str], records: Iterable[Mapping[str, Any]], as_json: bool, bar: ProgressBar) -> int:
    """Print one CSV row per film as it comes, or all films as JSON; return the number of failed films."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not as_json:
        writer.writerow(columns)
    kept, failed = list[Mapping[str, Any]](), 0
    for record in records:
        failed += bool(record["reason"])
        bar.advance()
        if as_json:
            kept.append(record)
        else:
            writer.writerow([_format_cell(record.get(column, "")) for column in columns])
    if as_json:
        print_result(kept, as_json)
    return failed


def _format_cell(value: object) -> object:
    """Return a cell of CSV: six digits of a number, yes or no, texts joined by semicolons; empty for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "; ".join(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Parse FIELD=COLUMN texts into {field: column}."""
    pairs: dict[str, str] = {}
    for text in texts:
        field, found, column = text.partition("=")
        if not found or not field:
            raise UsageError(
                f"{text!r} should be FIELD=COLUMN, such as patient=PatientID or 'patient=Patient ID'; "
                "sources come before the options"
            )
        if field in pairs:
            raise UsageError(f"the field {field!r} is mapped twice")
        pairs[field] = column
    return pairs


def parse_encoders(texts: Sequence[str]) -> dict[str, str]:
    """Parse [NAME=]ENCODER texts into {name: encoder}; without a name, the encoder is its own name."""
    named: dict[str, str] = {}
    for text in texts:
        name, found, encoder = text.partition("=")
        if not found or "/" in name:
            name, encoder = text.rstrip("/"), text
        if not name or not encoder:
            raise UsageError(f"{text!r} should be [NAME=]ENCODER, such as mine=encoders/first")
        if name in named:
            raise UsageError(f"two encoders are named {name!r}")
        named[name] = encoder
    if not named:
        raise UsageError("name at least one encoder with --encoders")
    return named


def refuse_preset_and_config(preset: str, config: Path | None) -> None:
    """Raise UsageError if both are given, as one would be ignored."""
    if preset and config:
        raise UsageError("give --preset or --config, not both: a configuration names all that a preset does")


def check_seed(seed: int) -> None:
    """Raise `UsageError` for a negative seed."""
    if seed < 0:
        raise UsageError("--seed must be 0 or more")


def refuse_existing(out: Path) -> None:
    """Raise UsageError if `out` exists, as commands never overwrite anything, or if it cannot be made."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UsageError(f"{out} cannot be made: {above} is no folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{out} cannot be made: {above} cannot be written to; choose another --out")


def read_text(file: Path) -> str:
    """Read a text file that the user named; raises UsageError if that is impossible."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise UsageError(f"cannot read {file}: {reason}") from None


def print_result(result: Any, as_json: bool) -> None:
    """Print a result on stdout, as text or as JSON."""
    print(json_text.dumps(result, indent=1, default=str) if as_json else result)
