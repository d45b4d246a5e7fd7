"""Check installed packages against the requirements in the metadata of chess-cxr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module

from chess_cxr.doctor.check import Finding, Request, Step
from chess_cxr.doctor.requirements import (
    DISTRIBUTION,
    Requirement,
    find_version,
    is_too_old,
    list_modules,
    normalise_name,
    quote,
    read_requirements,
)

_SHOWN = 4  # names of missing packages on one line


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
    modules = list_modules()
    for requirement in read_requirements():
        if not requirement.extra:
            names = modules.get(normalise_name(requirement.name)) or (requirement.name.replace("-", "_"),)
            advice = f"reinstall it: pip install --force-reinstall {quote(requirement)}"
            yield Step(requirement.name, partial(import_all, names), "imports", advice)


def judge(requirement: Requirement) -> Finding:
    """Check that a package of the core is installed and new enough."""
    found = find_version(requirement.name)
    if found is None:
        return Finding("broken", "is missing", f"pip install {quote(requirement)}")
    if is_too_old(found, requirement.specifier):
        return Finding("broken", f"{found} is too old", f"pip install --upgrade {quote(requirement)}")
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
