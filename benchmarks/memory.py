"""The memory of a process, as Linux tells it."""

from pathlib import Path


def read_memory_mib(field: str = "VmHWM", process: str | int = "self") -> float:
    """Return a field of /proc/PROCESS/status in MiB: VmRSS is resident, VmHWM its peak.

    `resource.getrusage` would not do: its `ru_maxrss` begins at the peak of the process that started this one.
    """
    status = Path(f"/proc/{process}/status").read_text()
    return float(status.partition(f"{field}:")[2].split()[0]) / 1024
