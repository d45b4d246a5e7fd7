"""Check installed packages against the requirements in the metadata of chess-cxr."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata

from chess_cxr.doctor.check import Finding, Request, Step

DISTRIBUTION = "chess-cxr"
_SHOWN = 4  # names of missing packages on one line
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@dataclass(frozen=True)
class Requirement:
    """One line of Requires-Dist (core metadata, PEP 566).

    specifier: such as ">=2.6"; only lower bounds are checked.  extra: which requires it, empty for the core.
    """

    name: str
    specifier: str
    extra: str


def list_steps(request: Request) -> Iterator[Step]:
    """List a step for each package of the core, to check its version."""
    for requirement in read_requirements():
        if not requirement.extra:
            yield Step(requirement.name, partial(judge, requirement), "packages")


def list_extra_steps(request: Request) -> Iterator[Step]:
    """List a step for each extra, to find its missing packages."""
    requirements = read_requirements()
    for extra in dict.fromkeys(each.extra for each in requirements if each.extra):
        wanted = [each for each in requirements if each.extra == extra]
        yield Step(f"extra {extra}", partial(judge_extra, extra, wanted))


def list_import_steps(request: Request) -> Iterator[Step]:
    """List a step for each package of the core, to import it."""
    modules = _list_modules()
    for requirement in read_requirements():
        if not requirement.extra:
            names = modules.get(_normalise(requirement.name)) or (requirement.name.replace("-", "_"),)
            advice = f"reinstall it: pip install --force-reinstall {_quote(requirement)}"
            yield Step(requirement.name, partial(import_all, names), "imports", advice)


def judge(requirement: Requirement) -> Finding:
    """Check that a package of the core is installed and new enough."""
    found = find_version(requirement.name)
    if found is None:
        return Finding("broken", "is missing", f"pip install {_quote(requirement)}")
    if is_too_old(found, requirement.specifier):
        return Finding("broken", f"{found} is too old", f"pip install --upgrade {_quote(requirement)}")
    return Finding("ok", found, facts={"version": found})


def judge_extra(extra: str, wanted: Sequence[Requirement]) -> Finding:
    """Find which packages of an extra are installed; the core needs none of them."""
    versions = {each.name: find_version(each.name) for each in wanted}
    lacking = [each.name for each in wanted if not (found := versions[each.name]) or is_too_old(found, each.specifier)]
    facts = {"versions": versions}
    if not lacking:
        named = [f"{name} {found}" for name, found in versions.items()]
        return Finding("ok", ", ".join(named) if len(named) <= _SHOWN else f"all {len(named)} packages", facts=facts)
    listed = ", ".join(lacking[:_SHOWN]) + (f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else "")
    verb = "is" if len(lacking) == 1 else "are"
    old = " or too old" if any(versions[name] for name in lacking) else ""
    value, advice = f"{listed} {verb} missing{old} (optional)", f"pip install '{DISTRIBUTION}[{extra}]'"
    return Finding("optional", value, advice, facts)


def import_all(names: Sequence[str]) -> Finding:
    """Import modules by name; raises what they raise."""
    for name in names:
        import_module(name)
    return Finding("ok", ", ".join(names))


def advise_import(error: ImportError) -> str:
    """Return the command that installs a missing module of the core, "" for any other module."""
    module = (error.name or "").partition(".")[0]
    for requirement in read_requirements():
        names = _list_modules().get(_normalise(requirement.name), (requirement.name.replace("-", "_"),))
        if module in names and not requirement.extra:
            return f"pip install --force-reinstall {_quote(requirement)}"
    return ""


@cache
def read_requirements() -> tuple[Requirement, ...]:
    """Read the requirements of the installed chess-cxr; none if only its source is on the path."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or () if find_version(DISTRIBUTION) else ():
        if match := _REQUIREMENT.match(line):
            name, specifier, marker = match[1], match[2].strip(), match[3] or ""
            extra = _EXTRA.search(marker)
            if _normalise(name) != DISTRIBUTION:  # an extra made of other extras
                found.append(Requirement(name, specifier, extra[1] if extra else ""))
    return tuple(found)


def advise_reinstall(name: str) -> str:
    """Return the command that reinstalls a package of the core at an admissible version."""
    wanted = [each for each in read_requirements() if _normalise(each.name) == _normalise(name) and not each.extra]
    return f"pip install --force-reinstall {_quote(wanted[0]) if wanted else name}"


def find_version(name: str) -> str | None:
    """Return the version of an installed package, None for a missing one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_too_old(version: str, specifier: str) -> bool:
    """Whether a version lies below a lower bound of the specifier."""
    bounds = (part.strip().removeprefix(">=") for part in specifier.split(",") if part.strip().startswith(">="))
    return any(_parse_release(version) < _parse_release(bound) for bound in bounds)


def _parse_release(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version (PEP 440) without trailing zeros: 2.6.0+cpu is (2, 6)."""
    release = re.match(r"\s*v?(?:\d+!)?(\d+(?:\.\d+)*)", version)
    numbers = [int(part) for part in release[1].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


@cache
def _list_modules() -> dict[str, tuple[str, ...]]:
    """Return the modules of each installed package: the one of the same name, else all."""
    found: dict[str, list[str]] = {}
    for module, owners in metadata.packages_distributions().items():
        for owner in owners:
            if module.isidentifier() and not module.startswith("_"):
                found.setdefault(_normalise(owner), []).append(module)
    return {
        owner: tuple(name for name in names if _normalise(name) == owner) or tuple(sorted(set(names)))
        for owner, names in found.items()
    }


def _normalise(name: str) -> str:
    """Normalise the name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _quote(requirement: Requirement) -> str:
    return f"'{requirement.name}{requirement.specifier}'"
