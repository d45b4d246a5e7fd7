"""Count the cores that this process may use, and share them fairly with other processes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def count_usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores that this process may keep busy, at least 1.

    The limit is the affinity mask (`taskset`, a batch system) or the CPU quota of the control groups (containers,
    systemd), whichever is less; a quota of 1.5 cores counts as 2.  root: parent of /proc and /sys.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_read_quotas(root)])))


def share_cores() -> None:
    """Make torch's threads sleep while they wait for each other, and start no more threads than usable cores.

    A thread that spins at a barrier burns the time slice of the thread it waits for, so training beside other work
    falls far below its share (`benchmarks/busy_machine.py` measures it).  OpenMP reads these variables when torch is
    imported; call this before.  Variables set by the user stay.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and "OMP_NUM_THREADS" not in os.environ:
        usable = count_usable_cores()
        if usable < len(os.sched_getaffinity(0)):  # OpenMP respects the mask, but no control group
            os.environ["OMP_NUM_THREADS"] = str(usable)


def list_cgroups(controller: str, root: Path = _ROOT) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each control group around this process, and whether it is of version 2, innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2) if line.count(":") > 1 else ("", "?", "")
        if controllers and controller not in controllers.split(","):
            continue
        for name in {controllers, controller} if controllers else ("",):
            mount = root / "sys/fs/cgroup" / name
            inner = mount / group.lstrip("/")
            yield from ((folder, not controllers) for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def _read_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU time that each control group grants, in cores; "max" and -1 mean no limit."""
    for folder, is_version_2 in list_cgroups("cpu", root):
        names = ("cpu.max",) if is_version_2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(_read(folder / name) for name in names).split()
        if len(numbers) == 2 and all(number.isdigit() and int(number) > 0 for number in numbers):
            yield int(numbers[0]) / int(numbers[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
