"""Checks as lines of text: a tick, a dash for what is optional, a cross and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
    """Yield lines as checks come, those that share one as soon as it is complete, in what the encoding has."""
    marks = MARKS if _can_encode("".join(MARKS.values()), encoding) else PLAIN_MARKS
    for status, text in _render(checks):
        line = f"{marks[status]} {text}"
        yield line if _can_encode(line, encoding) else _escape(line, encoding)


def _render(checks: Iterable[Check]) -> Iterator[tuple[str, str]]:
    """Yield status and text of each line; neighbours that failed for one reason share one."""
    waiting: list[Check] = []
    for check in checks:
        if waiting and _get_company(check) != _get_company(waiting[0]):
            yield from _render_group(waiting)
            waiting = []
        if check.group or check.finding.status == "broken":
            waiting.append(check)
        else:
            yield check.finding.status, _join(check.name, check.finding.value, check.finding.advice)
    if waiting:
        yield from _render_group(waiting)


def _get_company(check: Check) -> tuple[str, ...]:
    """Return what checks on one line, or one after the other, have in common."""
    found = check.finding
    return (check.group,) if check.group else (found.status, found.value, found.advice)


def _render_group(members: Sequence[Check]) -> Iterator[tuple[str, str]]:
    """Render what is well on one line, and what failed for one reason on one line each."""
    group = members[0].group
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
        yield status, _join(group, ", ".join(culprits), value, advice)


def _join(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


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
