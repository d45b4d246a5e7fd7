"""Requirements of the installed chess-cxr, versions of packages, and commands that install them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata

DISTRIBUTION = "chess-cxr"
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


def advise_import(error: ImportError) -> str:
    """Return the command that installs a missing module of the core, "" for any other module."""
    module = (error.name or "").partition(".")[0]
    for requirement in read_requirements():
        names = list_modules().get(normalise_name(requirement.name), (requirement.name.replace("-", "_"),))
        if module in names and not requirement.extra:
            return f"pip install --force-reinstall {quote(requirement)}"
    return ""


@cache
def read_requirements() -> tuple[Requirement, ...]:
    """Read the requirements of the installed chess-cxr; none if only its source is on the path."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or () if find_version(DISTRIBUTION) else ():
        if match := _REQUIREMENT.match(line):
            name, specifier, marker = match[1], match[2].strip(), match[3] or ""
            extra = _EXTRA.search(marker)
            if normalise_name(name) != DISTRIBUTION:  # an extra made of other extras
                found.append(Requirement(name, specifier, extra[1] if extra else ""))
    return tuple(found)


def advise_reinstall(name: str) -> str:
    """Return the command that reinstalls a package of the core at an admissible version."""
    wanted = [
        each for each in read_requirements() if normalise_name(each.name) == normalise_name(name) and not each.extra
    ]
    return f"pip install --force-reinstall {quote(wanted[0]) if wanted else name}"


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
def list_modules() -> dict[str, tuple[str, ...]]:
    """Return the modules of each installed package: the one of the same name, else all."""
    found: dict[str, list[str]] = {}
    for module, owners in metadata.packages_distributions().items():
        for owner in owners:
            if module.isidentifier() and not module.startswith("_"):
                found.setdefault(normalise_name(owner), []).append(module)
    return {
        owner: tuple(name for name in names if normalise_name(name) == owner) or tuple(sorted(set(names)))
        for owner, names in found.items()
    }


def normalise_name(name: str) -> str:
    """Normalise the name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def quote(requirement: Requirement) -> str:
    """Quote a requirement for a shell."""
    return f"'{requirement.name}{requirement.specifier}'"
