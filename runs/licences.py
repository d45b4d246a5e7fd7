"""List name, version and licence of every package that chess-cxr needs, and write them as a software bill of materials.

usage: python runs/licences.py [--sbom FILE] > docs/licences.md

The core is what `pip install chess-cxr` brings, found by walking the requirements of installed packages; then come the
packages that each extra adds.  Ends with an error if a package of the core is under a copyleft licence.
"""

import argparse
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
SHORT = 60  # longer entries hold the text of a licence
STRONG = re.compile(
    r"\b(A?GPL|LGPL|EUPL|OSL|CC-BY-SA|SSPL)|GNU (Affero |Lesser )?General Public|ShareAlike", re.IGNORECASE
)
WEAK = re.compile(r"\bMPL|Mozilla Public", re.IGNORECASE)
NOT_FOR_USERS = ("dev", "docs", "bench")
HEADER = """# Licences of dependencies

`python runs/licences.py > docs/licences.md` wrote this page from the metadata of installed packages ({versions}).
chess-cxr itself is under Apache-2.0. No package of the core is under the GPL, LGPL, AGPL or another copyleft licence
that reaches beyond its own files. Under MPL-2.0, which concerns a package's own files alone: {weak}. NVIDIA's packages,
which torch brings on Linux, are proprietary and free to use.

Wheels hold compiled libraries besides, under licences of their own: FFmpeg under LGPL-2.1 in opencv-python-headless,
the runtime of GCC under the GPL with its runtime exception in numpy and scipy. Whoever passes wheels on, in a container
for example, passes these texts on, too. All packages of the core whose licence files mention a GNU licence, some only
in passing: {bundled}.

`--sbom FILE` writes the same as a CycloneDX 1.6 bill of materials.
"""


def walk(requirements: Iterable[str]) -> dict[str, Distribution | None]:
    """Return the packages that fulfil requirements, and all that these need, by name; None for one not installed."""
    found: dict[str, Distribution | None] = {}
    asked = [Requirement(text) for text in requirements]
    done: set[tuple[str, frozenset[str]]] = set()
    while asked:
        wanted = asked.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in done or not applies(wanted, ("",)):
            continue
        done.add((name, extras))
        try:
            package = found[name] = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        needed = [Requirement(text) for text in package.requires or ()]
        for requirement in needed:
            if applies(requirement, (*extras, "")):
                requirement.marker = None
                asked.append(requirement)
    return found


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether a requirement holds on this machine, for one of these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def read_licence(package: Distribution) -> str:
    """Return the licence that a package's metadata state, as short as they have it."""
    said = package.metadata
    if expression := said.get("License-Expression"):
        return str(expression)
    short = [text for text in said.get_all("License") or () if len(text) <= SHORT and "\n" not in text.strip()]
    classified = [
        text.rpartition(" :: ")[2] for text in said.get_all("Classifier") or () if text.startswith("License ::")
    ]
    classified = [text for text in classified if text != "OSI Approved"]
    return ", ".join(classified) or " ".join(short).strip() or "see its licence file"


def names_gnu(package: Distribution) -> bool:
    """Whether a licence file in a package's wheel holds or names a GNU licence."""
    files = [file for file in package.files or () if re.search(r"licen[cs]e|copying|third", str(file), re.IGNORECASE)]
    texts = (file.locate().read_text(errors="replace") for file in files if file.locate().is_file())
    return any(re.search(r"GNU (LESSER |LIBRARY )?GENERAL PUBLIC", text, re.IGNORECASE) for text in texts)


def build_bill(packages: dict[str, Distribution], version: str) -> dict[str, Any]:
    """Return a CycloneDX 1.6 document."""
    components = [
        {
            "type": "library",
            "name": name,
            "version": package.version,
            "purl": f"pkg:pypi/{name}@{package.version}",
            "licenses": [{"license": {"name": read_licence(package)}}],
        }
        for name, package in sorted(packages.items())
    ]
    root = {"type": "application", "name": "chess-cxr", "version": version, "purl": f"pkg:pypi/chess-cxr@{version}"}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return head | {"metadata": {"component": root}, "components": components}


def render_table(packages: dict[str, Distribution | None]) -> str:
    """Return a Markdown table of packages."""
    rows = ["| package | version | licence |", "| --- | --- | --- |"]
    for name, package in sorted(packages.items()):
        told = (package.version, read_licence(package)) if package else ("", "not installed here")
        rows.append(f"| {name} | {told[0]} | {told[1]} |")
    return "\n".join(rows)


def main() -> None:
    """Print the page; write the bill of materials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", help="write a CycloneDX bill of the core and all extras here")
    asked = parser.parse_args()
    project = tomllib.loads(PROJECT.read_text())["project"]
    core = walk(project["dependencies"])
    installed = {name: package for name, package in core.items() if package}
    licence_of = {name: read_licence(package) for name, package in installed.items()}
    if strong := sorted(name for name, licence in licence_of.items() if STRONG.search(licence)):
        sys.exit(f"copyleft in the core: {', '.join(strong)}")
    weak = sorted(name for name, licence in licence_of.items() if WEAK.search(licence))
    bundled = sorted(name for name, package in installed.items() if names_gnu(package))
    versions = (
        f"chess-cxr {project['version']}, Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}"
    )
    print(HEADER.format(versions=versions, weak=", ".join(weak), bundled=", ".join(bundled)))
    print(f"## Core: {len(core)} packages\n\n{render_table(core)}")
    everything = dict(installed)
    for extra, requirements in project["optional-dependencies"].items():
        added = {name: package for name, package in walk(requirements).items() if name not in core}
        if extra in NOT_FOR_USERS or not added:
            continue
        everything |= {name: package for name, package in added.items() if package}
        print(f"\n## Extra `{extra}` adds {len(added)}\n\n{render_table(added)}")
    if asked.sbom:
        with open(asked.sbom, "w", encoding="utf-8") as file:
            json.dump(build_bill(everything, project["version"]), file, indent=1)


if __name__ == "__main__":
    main()
