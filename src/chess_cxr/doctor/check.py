"""What the doctor looks at, what it finds, and what becomes of a look that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chess_cxr.records import ChessError

SEE = "see the packages and imports that are broken"
Status = Literal["ok", "optional", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    status: "optional" is what the core does not need but somebody may want; "broken" is what it needs.
    value: in words.  advice: what to do, empty if there is nothing to do.  facts: the same as numbers, for programs.
    """

    status: Status
    value: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Something to look at.

    group: what it is shown with on one line, empty for a line of its own.  advice: what to do if `look` raises an
    error that does not say so itself.
    """

    name: str
    look: Callable[[], Finding]
    group: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A step with what it found."""

    name: str
    group: str
    finding: Finding

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain JSON values."""
        return {"name": self.name, "group": self.group} | asdict(self.finding)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Check:
        """Read what `as_json` wrote."""
        finding = {key: record[key] for key in ("status", "value", "advice", "facts")}
        return cls(record["name"], record["group"], Finding(**finding))


@dataclass(frozen=True)
class Request:
    """What the user wants examined.

    paths: stores, encoder folders, model folders, run folders.  out: folder whose disk is looked at.
    """

    paths: tuple[str, ...] = ()
    out: Path = Path()


def take(step: Step) -> Check:
    """Take a step; whatever it raises becomes what was found."""
    try:
        finding = step.look()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # libraries written in Rust panic with a BaseException
        finding = describe_failure(error, step.advice)
    return Check(step.name, step.group, finding)


def describe_failure(error: BaseException, advice: str = "") -> Finding:
    """Return what an exception says, in one line; advice: where the exception is none that tells what to do."""
    if isinstance(error, ChessError):
        return Finding("broken", tell(error), advice)
    if isinstance(error, ImportError):
        from chess_cxr.doctor.packages import advise_import

        return Finding("broken", tell(error), advise_import(error) or advice or SEE)
    return Finding("broken", f"{type(error).__name__}: {tell(error)}", advice)


def tell(error: BaseException) -> str:
    """Return the first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(" .:")
