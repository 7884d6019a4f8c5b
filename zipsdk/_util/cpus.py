"""Count the CPUs that this process may use, by affinity, Python's own limit and the CPU quota of a container.

Sources: the Linux kernel's documentation of cgroup v1 (cpu.cfs_quota_us over cpu.cfs_period_us) and v2 (cpu.max).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zipsdk._util.cgroups import group_folders, read_text


def usable_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that threads of this process keep busy without being throttled: at least 1.

    The smaller of `allowed_cores` and the quota, rounded down. With one thread more, the waiting threads would use up
    the quota, and the kernel would stop all of them until the next period.

    Args:
        root: folder to read the kernel's files in, instead of ``/``.
    """
    cores, quota = allowed_cores(), cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def allowed_cores() -> int:
    """Count the cores of the process's affinity, limited by ``PYTHON_CPU_COUNT`` and ``-X cpu_count``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if hasattr(os, "process_cpu_count"):  # Python 3.13, which reads the variable itself
        return min(cores, os.process_cpu_count() or cores)
    limit = os.environ.get("PYTHON_CPU_COUNT", "").strip()
    return min(cores, int(limit)) if re.fullmatch(r"0*[1-9][0-9]{0,8}", limit) else cores


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process's control groups, in CPUs; None without a limit.

    The lowest limit of the process's group and its visible parents counts. A file that cannot be read or parsed sets no
    limit.

    Args:
        root: folder to read the kernel's files in, instead of ``/``.
    """
    limits: list[float] = []
    for folder in group_folders("cpu", root):
        for limit in (_v2(folder), _v1(folder)):
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def describe(root: Path = Path("/")) -> str:
    """Describe the CPUs in words: ``2 cores`` or ``8 cores, quota 1.5, 1 thread by default``."""
    cores, quota = allowed_cores(), cpu_quota(root)
    text = f"{cores} core{'s' * (cores != 1)}"
    if quota is None:
        return text
    threads = usable_cpus(root)
    return f"{text}, quota {round(quota, 2)}, {threads} thread{'s' * (threads != 1)} by default"


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _v2(folder: Path) -> float | None:
    """Read cpu.max: ``max 100000`` or ``150000 100000``; the period may be missing."""
    words = read_text(folder / "cpu.max").split()
    return _ratio(*words) if 0 < len(words) < 3 else None


def _v1(folder: Path) -> float | None:
    """Read cpu.cfs_quota_us, -1 for no limit, over cpu.cfs_period_us."""
    return _ratio(read_text(folder / "cpu.cfs_quota_us").strip(), read_text(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str = "100000") -> float | None:
    time, per = _number(quota), _number(period)
    return time / per if time and per else None
