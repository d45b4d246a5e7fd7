"""How many cores this process may use, and how its threads wait."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from chess_cxr.workers.cores import count_usable_cores

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")  # control groups, version 1
SHOW = """
import json, os, chess_cxr, torch
from chess_cxr.workers.cores import count_usable_cores
names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
print(json.dumps([count_usable_cores(), torch.get_num_threads(), *(os.environ.get(name) for name in names)]))
"""


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def show(**environment: str) -> list[object]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=inherited | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told: list[object] = json.loads(done.stdout)
    return told


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group that grants half a core's time."""
    group = CPU_GROUPS / f"chess_cxr_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def test_without_a_limit_all_cores_of_the_affinity_mask_count(tmp_path: Path) -> None:
    assert count_usable_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "90000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/\n"}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 0\n"}, 0),
    ],
)
def test_the_share_that_a_control_group_grants_limits_the_cores(
    files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    assert count_usable_cores(write_tree(tmp_path, files)) == (cores or len(os.sched_getaffinity(0)))


def test_a_process_in_a_real_control_group_uses_what_it_grants(half_a_core: Path) -> None:
    join = f"open({str(half_a_core / 'cgroup.procs')!r}, 'w').write('0')\n"
    done = subprocess.run([sys.executable, "-c", join + SHOW], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[:2] == [1, 1]


def test_threads_wait_without_spinning_unless_the_user_wants_otherwise() -> None:
    assert show()[2] == "PASSIVE"
    assert show(OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="1")[1:] == [1, "ACTIVE", "1"]
