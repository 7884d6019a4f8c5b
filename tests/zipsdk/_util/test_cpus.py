"""Test the CPU count with imitations of /proc and /sys of other machines."""

from __future__ import annotations

import os

import pytest

import zipsdk
from zipsdk._util import cpus

V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
UNIFIED = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
SET = "35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
CPU = "sys/fs/cgroup/cpu,cpuacct"


def v1(folder, quota, period="100000"):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


CASES = {
    "no cgroups": ("", "", {}, None),
    "v2": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "v2 unlimited": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "v2 without a period": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000\n"}, 0.5),
    "v2 another period": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "40000 10000\n"}, 4.0),
    "v2 nested, the tightest is in the middle": (
        "0::/a/b/c\n", V2,
        {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "100000 100000",
         "sys/fs/cgroup/a/b/c/cpu.max": "max 100000", "sys/fs/cgroup/x/cpu.max": "1000 100000"}, 1.0),
    "v2 the root of the file system is no group": ("0::/a\n", V2, {"sys/fs/cpu.max": "1 1", "cpu.max": "1 1"}, None),
    "v1": ("4:cpu,cpuacct:/\n", V1, v1(CPU, 250000), 2.5),
    "v1 unlimited": ("4:cpu,cpuacct:/\n", V1, v1(CPU, -1), None),
    "v1 nested": ("4:cpu,cpuacct:/k/p\n", V1, v1(f"{CPU}/k", 50000) | v1(f"{CPU}/k/p", 400000), 0.5),
    "v1 in a container: the mount is the group": (
        "4:cpu,cpuacct:/docker/f00\n", V1.replace(" / /sys", " /docker/f00 /sys"), v1(CPU, 200000), 2.0),
    "v1 in a container with a child of its own": (
        "4:cpu,cpuacct:/docker/f00/in\n", V1.replace(" / /sys", " /docker/f00 /sys"), v1(f"{CPU}/in", 100000), 1.0),
    "v1 the host's path under another mount": (
        "4:cpu,cpuacct:/kubepods/x\n", V1.replace(" / /sys", " /docker/f00 /sys"), v1(CPU, 300000), 3.0),
    "a group outside the namespace": ("0::/../other\n", V2, {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
    "hybrid": ("4:cpu,cpuacct:/a\n0::/a\n", V1 + UNIFIED,
               v1(f"{CPU}/a", 150000) | {"sys/fs/cgroup/unified/a/cpu.stat": "usage_usec 1"}, 1.5),
    "hybrid, limits in both": ("4:cpu,cpuacct:/a\n0::/a\n", V1 + UNIFIED,
                               v1(f"{CPU}/a", 300000) | {"sys/fs/cgroup/unified/a/cpu.max": "200000 100000"}, 2.0),
    "the quota of another controller": ("3:cpuset:/\n", SET, v1("sys/fs/cgroup/cpuset", 100000), None),
    "a space in the mount": ("0::/\n", V2.replace("/sys/fs/cgroup ", "/sys/a\\040b "),
                             {"sys/a b/cpu.max": "100000 100000"}, 1.0),
    "a colon in the group's name": ("0::/a:b\n", V2, {"sys/fs/cgroup/a:b/cpu.max": "100000 100000"}, 1.0),
    "nothing mounted": ("0::/\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", {"sys/fs/cgroup/cpu.max": "1 1"}, None),
    "malformed group": ("nonsense\n::\n0:\n", V2, {"sys/fs/cgroup/cpu.max": "100000 100000"}, None),
    "malformed mounts": ("0::/\n", "x - \n - cgroup2\n30 20\n", {"sys/fs/cgroup/cpu.max": "100000 100000"}, None),
}  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    def build(group, mounts, files):
        for name, text in {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


@pytest.mark.parametrize("name", CASES)
def test_the_lowest_quota_up_to_the_root_counts(machine, name):
    group, mounts, files, quota = CASES[name]
    assert cpus.cpu_quota(machine(group, mounts, files)) == quota


@pytest.mark.parametrize(
    "text",
    ["", "\n", "max", "-1 100000", "0 100000", "100000 0", "1e5 1e5", "nan 1", "1 2 3", "٣ ٣", "9" * 400, "1.5 1"],
)
def test_an_unparsable_limit_is_ignored(machine, text):
    assert cpus.cpu_quota(machine("0::/\n", V2, {"sys/fs/cgroup/cpu.max": text})) is None


def test_missing_files_set_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "allowed_cores", lambda: 6)
    assert cpus.cpu_quota(tmp_path) is None and cpus.usable_cpus(tmp_path) == 6
    assert cpus.describe(tmp_path) == "6 cores"


@pytest.mark.parametrize(
    ("cores", "quota", "threads", "text"),
    [
        (2, "100000", 1, "2 cores, quota 1.0, 1 thread by default"),
        (8, "150000", 1, "8 cores, quota 1.5, 1 thread by default"),
        (8, "399999", 3, "8 cores, quota 4.0, 3 threads by default"),
        (8, "25000", 1, "8 cores, quota 0.25, 1 thread by default"),
        (1, "400000", 1, "1 core, quota 4.0, 1 thread by default"),
        (2, "max", 2, "2 cores"),
    ],
)
def test_threads_are_the_quota_rounded_down(machine, monkeypatch, cores, quota, threads, text):
    monkeypatch.setattr(cpus, "allowed_cores", lambda: cores)
    root = machine("0::/\n", V2, {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert cpus.usable_cpus(root) == threads
    assert cpus.describe(root) == text


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there is no affinity on this system")
@pytest.mark.parametrize(
    ("limit", "cores"), [("", 4), ("3", 3), ("9", 4), ("default", 4), ("0", 4), ("-1", 4), ("x", 4), ("1" * 99, 4)]
)
def test_cores_follow_affinity_and_pythons_limit(monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)  # Python 3.13 has read the variable at its start
    monkeypatch.setenv("PYTHON_CPU_COUNT", limit)
    assert cpus.allowed_cores() == cores
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2, raising=False)
    assert cpus.allowed_cores() == 2


def test_the_engine_uses_no_more_threads_than_the_quota(monkeypatch):
    pytest.importorskip("onnxruntime")
    from zipsdk.engines import onnxruntime

    monkeypatch.setattr(onnxruntime, "usable_cpus", lambda: 3)
    assert zipsdk.load_engine("zip-tiny", device="cpu").info["threads"] == 3
    assert zipsdk.load_engine("zip-tiny", device="cpu", threads=1).info["threads"] == 1
