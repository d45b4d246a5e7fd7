"""Check Python, cores, memory and disk, without any library."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from chess_cxr.doctor.check import Finding, Request, Step
from chess_cxr.doctor.requirements import DISTRIBUTION, is_too_old
from chess_cxr.workers.cores import count_usable_cores, list_cgroups

GIB = 1 << 30
LEAST_FREE_BYTES = GIB  # at --out, about a store of 25,000 films of 512 x 512 pixels
LEAST_TEMPORARY_BYTES = 64 << 20
LEAST_MEMORY_BYTES = 2 * GIB
_TRIED_BYTES = 1 << 20


def list_steps(request: Request) -> Iterator[Step]:
    """List the steps for machine and Python."""
    yield Step("Python", look_at_python)
    yield Step("cores", look_at_cores)
    yield Step("memory", look_at_memory)
    yield Step("disk", lambda: look_at_disk(request.out, LEAST_FREE_BYTES, "name another folder with --out"))
    yield Step(
        "temporary disk",
        lambda: look_at_disk(Path(tempfile.gettempdir()), LEAST_TEMPORARY_BYTES, "set TMPDIR to another folder"),
        advice="set TMPDIR to a folder that can be written to",
    )


def look_at_python() -> Finding:
    """Find the versions of Python and of this package, and whether they fit."""
    version = platform.python_version()
    value = f"{version} at {sys.executable}, {platform.system()} {platform.machine()}"
    facts = {"version": version, "executable": sys.executable}
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        advice = f"pip install it; the source alone at {Path(__file__).parents[1]} does not know its version"
        return Finding("broken", f"{value}, {DISTRIBUTION} is not installed", advice, facts)
    value += f", {DISTRIBUTION} {about['Version']}"
    needed = str(about.json.get("requires_python", ""))
    facts |= {DISTRIBUTION: about["Version"]}
    if is_too_old(version, needed):
        return Finding("broken", value, f"install Python {needed}", facts)
    return Finding("ok", value, facts=facts)


def look_at_cores() -> Finding:
    """Count the cores of the machine and those that this process may use."""
    machine, usable = os.cpu_count() or 1, count_usable_cores()
    limit = "" if usable >= machine else " (CPU affinity or a cgroup limit)"
    facts = {"machine_cores": machine, "usable_cores": usable}
    return Finding("ok", f"{usable} usable of {machine}{limit}", facts=facts)


def look_at_memory() -> Finding:
    """Find total and available memory, and the limit of a cgroup."""
    total, available, limit = *read_memory(), read_memory_limit()
    facts = {"total_bytes": total, "available_bytes": available, "cgroup_limit_bytes": limit}
    parts = [f"{total / GIB:.1f} GiB"]
    if available is not None:
        parts.append(f"{available / GIB:.1f} GiB available")
    if limit is not None and limit < total:
        parts.append(f"limited to {limit / GIB:.1f} GiB by a cgroup")
    usable = min(total if available is None else available, total if limit is None else limit)
    if usable < LEAST_MEMORY_BYTES:
        advice = "end other programs, or use few --workers and small batches"
        return Finding("optional", ", ".join(parts), advice, facts)
    return Finding("ok", ", ".join(parts), facts=facts)


def read_memory() -> tuple[int, int | None]:
    """Return total and available bytes of memory, None if the system does not tell."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return total, None
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    return total, kib["MemAvailable"] << 10 if "MemAvailable" in kib else None


def read_memory_limit(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit, in bytes, of the control groups around this process."""
    groups = list_cgroups("memory", root)
    limits = [_read_number(folder / ("memory.max" if is_2 else "memory.limit_in_bytes")) for folder, is_2 in groups]
    return min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None


def look_at_disk(folder: Path, least: int, advice: str) -> Finding:
    """Find the free disk space of a folder, or of the nearest existing one above it, and whether it is writable."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    facts = {"folder": str(folder.absolute()), "free_bytes": free}
    value = f"{free / GIB:.1f} GiB free in {folder.absolute()}"
    if not there.is_dir():
        return Finding("broken", f"{there} is not a folder", advice, facts)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
    except OSError as error:
        return Finding("broken", f"{there} cannot be written to ({error.strerror})", advice, facts)
    if free < least:
        return Finding("broken", value, f"make room, or {advice}", facts)
    return Finding("ok", value, facts=facts)
