"""Steps of the doctor, their findings, and findings from exceptions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chess_cxr.doctor.requirements import advise_import
from chess_cxr.records import ChessError

SEE = "see the packages and imports that are broken"
Status = Literal["ok", "optional", "broken"]


@dataclass(frozen=True)
class Finding:
    """Finding of a step.

    status: "broken" if the core needs it, "optional" if not.  value: the finding in words.  advice: what to do, empty
    for nothing.  facts: the finding as numbers, for programs.
    """

    status: Status
    value: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Step of an examination.

    group: steps of one group share a line; empty for a line of its own.  advice: what to do if `look` raises an error
    without advice.
    """

    name: str
    look: Callable[[], Finding]
    group: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """Step with its finding."""

    name: str
    group: str
    finding: Finding

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain JSON values."""
        return {"name": self.name, "group": self.group} | asdict(self.finding)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Check:
        """Build a check from `as_json`."""
        finding = {key: record[key] for key in ("status", "value", "advice", "facts")}
        return cls(record["name"], record["group"], Finding(**finding))


@dataclass(frozen=True)
class Request:
    """Request of the user.

    paths: stores, encoder folders, model folders, run folders.  out: folder whose disk is checked.  scratch: folder for
    temporary files, by default the system's; the caller removes it.
    """

    paths: tuple[str, ...] = ()
    out: Path = Path()
    scratch: Path | None = None

    @contextmanager
    def open_folder(self) -> Iterator[Path]:
        """Create a temporary folder and remove it afterwards."""
        with tempfile.TemporaryDirectory(prefix="chess-cxr-doctor-", dir=self.scratch) as folder:
            yield Path(folder)


def take(step: Step) -> Check:
    """Take a step; an exception becomes its finding."""
    try:
        finding = step.look()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # libraries written in Rust panic with a BaseException
        finding = describe_failure(error, step.advice)
    return Check(step.name, step.group, finding)


def describe_failure(error: BaseException, advice: str = "") -> Finding:
    """Return the finding of an exception in one line; advice: for an exception without advice."""
    if isinstance(error, ChessError):
        return Finding("broken", tell(error), advice)
    if isinstance(error, ImportError):
        return Finding("broken", tell(error), advise_import(error) or advice or SEE)
    return Finding("broken", f"{type(error).__name__}: {tell(error)}", advice)


def tell(error: BaseException) -> str:
    """Return the first line of an exception's text, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(" .:")
