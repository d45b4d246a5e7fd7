"""Render checks as lines of text: a tick, a dash (optional) or a cross, and advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chess_cxr.doctor.check import Check

MARKS = {"ok": "✓", "optional": "–", "broken": "✗"}
PLAIN_MARKS = {"ok": "ok  ", "optional": "-   ", "broken": "FAIL"}
# Phrase for the members of a group that are well, and whether to name them.
_GROUPS = {
    "packages": ("that the core needs are installed", False),
    "imports": ("packages of the core import", False),
    "DICOM decoders": ("transfer syntaxes written, read and compared", True),
    "image decoders": ("formats written, read and compared", True),
    "writers": ("written, read and compared", True),
}


def render(checks: Iterable[Check], encoding: str = "utf-8") -> Iterator[str]:
    """Yield each line as soon as its checks are complete, in characters of the encoding."""
    marks = MARKS if _can_encode("".join(MARKS.values()), encoding) else PLAIN_MARKS
    for status, text in _render(checks):
        line = f"{marks[status]} {text}"
        yield line if _can_encode(line, encoding) else _escape(line, encoding)


def _render(checks: Iterable[Check]) -> Iterator[tuple[str, str]]:
    """Yield status and text of each line; neighbours with the same failure share one."""
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
    """Return the key by which neighbouring checks are grouped."""
    found = check.finding
    return (check.group,) if check.group else (found.status, found.value, found.advice)


def _render_group(members: Sequence[Check]) -> Iterator[tuple[str, str]]:
    """Render all that is well on one line, and each kind of failure on another."""
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
    """Describe the loss of lossy codecs in a group, if its checks report it."""
    facts = [check.finding.facts for check in checks if "lossy" in check.finding.facts]
    lossy = [each["largest_difference_of_255"] for each in facts if each["lossy"]]
    within = f", {len(lossy)} lossy within {max(lossy):.1f} of 255 grey levels" if lossy else ""
    return f" ({len(facts) - len(lossy)} to the bit{within})" if facts else ""


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding, "surrogateescape")  # names of files may be no text
    except UnicodeEncodeError:
        return False
    return True


def _escape(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)
