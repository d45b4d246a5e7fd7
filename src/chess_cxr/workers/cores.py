"""The cores that this process may use, and threads that share them with other processes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def count_usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may keep busy, at least 1.

    These are the cores that its affinity mask names (`taskset`, a batch system) or the share of time that its control
    groups grant it (containers, systemd), whichever is less; a share of 1.5 cores counts as 2.
    root: where /proc and /sys are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_read_quotas(root)])))


def share_cores() -> None:
    """Make torch's threads sleep while they wait for each other, and start no more of them than there are usable cores.

    A thread that spins at a barrier burns the time slice that the thread it waits for needs, so that training beside
    other work falls far below its share (`benchmarks/busy_machine.py` measures it).  OpenMP reads these variables when
    torch is imported, so this has to come first.  What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and "OMP_NUM_THREADS" not in os.environ:
        usable = count_usable_cores()
        if usable < len(os.sched_getaffinity(0)):  # OpenMP knows the mask, but no control group
            os.environ["OMP_NUM_THREADS"] = str(usable)


def _read_quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of time that each control group around this process grants, where it limits it."""
    lines = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    for _, controllers, group in (parts for parts in lines if len(parts) == 3):
        if not controllers:
            for folder in _list_folders(root / "sys/fs/cgroup", group):
                yield from _divide(_read(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for folder in _list_folders(root / "sys/fs/cgroup" / controllers, group):
                yield from _divide([_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])


def _list_folders(mount: Path, group: str) -> list[Path]:
    """List the folders of a group and of all groups around it; the limits of each of them hold."""
    inner = mount / group.lstrip("/")
    return [inner, *(folder for folder in inner.parents if folder.is_relative_to(mount))]


def _divide(numbers: list[str]) -> Iterator[float]:
    """Yield quota / period where both are numbers above 0; "max" and -1 mean no limit."""
    if len(numbers) == 2 and all(number.isdigit() and int(number) > 0 for number in numbers):
        yield int(numbers[0]) / int(numbers[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
