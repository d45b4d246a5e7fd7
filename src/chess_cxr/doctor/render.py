"""Checks as lines of text: a tick, a dash for what is optional, a cross and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from chess_cxr.doctor.check import Check

MARKS = {"ok": "✓", "optional": "–", "broken": "✗"}
PLAIN_MARKS = {"ok": "ok  ", "optional": "-   ", "broken": "FAIL"}
# What the members of a group that are well have done, and whether they are named one by one.
_GROUPS = {
    "packages": ("that the core needs are installed", False),
    "imports": ("packages of the core import", False),
    "DICOM decoders": ("transfer syntaxes written, read and compared", True),
    "image decoders": ("formats written, read and compared", True),
    "writers": ("written, read and compared", True),
}


def render(checks: Iterable[Check], encoding: str = "utf-8") -> Iterator[str]:
    """Yield lines as checks come, a group's as soon as it is complete, in what the encoding has."""
    marks = MARKS if _can_encode("".join(MARKS.values()), encoding) else PLAIN_MARKS
    for group, members in groupby(checks, key=lambda check: check.group):
        for status, text in _render_group(group, list(members)) if group else map(_render_one, members):
            line = f"{marks[status]} {text}"
            yield line if _can_encode(line, encoding) else _escape(line, encoding)


def _render_one(check: Check) -> tuple[str, str]:
    found = check.finding
    return found.status, ": ".join(part for part in (check.name, found.value, found.advice) if part)


def _render_group(group: str, members: Sequence[Check]) -> Iterator[tuple[str, str]]:
    """Render what is well on one line, and what failed for one reason on one line each."""
    well = [check for check in members if check.finding.status == "ok"]
    phrase, named = _GROUPS.get(group, ("are well", True))
    if well:
        names = f": {', '.join(check.name for check in well)}" if named else ""
        yield "ok", f"{group}: {len(well)} of {len(members)} {phrase}{names}{_describe_loss(well)}"
    failed: dict[tuple[str, str, str], list[str]] = {}
    for check in members:
        if check.finding.status != "ok":
            found = check.finding
            failed.setdefault((found.status, found.value, found.advice), []).append(check.name)
    for (status, value, advice), culprits in failed.items():
        yield status, ": ".join(part for part in (group, ", ".join(culprits), value, advice) if part)


def _describe_loss(checks: Sequence[Check]) -> str:
    """Say how close what was read came to what was written, where the checks of a group know."""
    facts = [check.finding.facts for check in checks if "lossy" in check.finding.facts]
    lossy = [each["largest_difference_of_255"] for each in facts if each["lossy"]]
    within = f", {len(lossy)} lossy within {max(lossy):.1f} of 255 grey levels" if lossy else ""
    return f" ({len(facts) - len(lossy)} to the bit{within})" if facts else ""


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding, "surrogateescape")  # files are named by bytes, which may be no text
    except UnicodeEncodeError:
        return False
    return True


def _escape(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)
