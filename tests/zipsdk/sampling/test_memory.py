"""Test the memory check: images that do not fit are refused before the loop starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.paths import ROOT
from zipsdk import Purifier
from zipsdk._util.cgroups import group_folders
from zipsdk.errors import OutOfMemoryError
from zipsdk.sampling import memory
from zipsdk.sampling.tiling import plan_tiles

resource = pytest.importorskip("resource")  # not on Windows
MB = 1_000_000
FIXED = make_spec(min_side=64, max_side=64)
MEMINFO = "MemTotal: 9000000 kB\nMemAvailable:    2000000 kB\nSwapFree:  0 kB\n"
UNLIMITED_V1 = 9223372036854771712


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/a/b\n3:cpuset:/\n0::/\n",
    "proc/self/mountinfo": "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
}


def v2(group: str, most: object, used: int, stat: str = "anon 5\n") -> dict[str, object]:
    at = f"sys/fs/cgroup/{group}"
    return {f"{at}/memory.max": f"{most}\n", f"{at}/memory.current": f"{used}\n", f"{at}/memory.stat": stat}


def v1(group: str, most: object, used: int, stat: str = "") -> dict[str, object]:
    at = f"sys/fs/cgroup/memory/{group}"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return dict(zip((f"{at}/{n}" for n in names), (f"{most}\n", f"{used}\n", stat), strict=True))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "nothing of the kind\n"}, None),
        ({"proc/meminfo": MEMINFO}, 2_000_000 * 1024),
        ({"proc/meminfo": MEMINFO.replace("SwapFree:  0", "SwapFree:  7")}, 2_000_007 * 1024),
        ({"proc/meminfo": MEMINFO, **V2, **v2("a/b", "max", 5)}, 2_000_000 * 1024),
        ({"proc/meminfo": MEMINFO, **V2, **v2("a/b", 900 * MB, 100 * MB)}, 800 * MB),
        ({**V2, **v2("a/b", 900 * MB, 100 * MB), **v2("a", 300 * MB, 120 * MB)}, 180 * MB),
        ({**V2, **v2("a/b", "max", 1), **v2("a", 300 * MB, 120 * MB)}, 180 * MB),
        ({**V2, **v2("a/b", 900 * MB, 800 * MB, "active_file 30000000\ninactive_file 9000000\n")}, 139 * MB),
        ({**V2, **v2("a/b", 10 * MB, 30 * MB)}, 0),
        ({**V2, **v2("a/b", "-7", 30 * MB)}, None),
        ({**V2, **v2("c", 10 * MB, 30 * MB)}, None),
        ({**V1, **v1("a/b", 500 * MB, 100 * MB)}, 400 * MB),
        ({**V1, **v1("a/b", UNLIMITED_V1, 100 * MB), **v1("", 250 * MB, 50 * MB)}, 200 * MB),
        ({**V1, **v1("a/b", UNLIMITED_V1, 100 * MB)}, None),
        ({**V1, **v1("a/b", 500 * MB, 400 * MB, "active_file 1\ntotal_active_file 40000000\n")}, 140 * MB),
    ],
)
def test_the_tightest_limit_of_machine_and_groups_counts(tmp_path, files, expected):
    assert memory.available(write(tmp_path, files)) == expected


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    root = write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/statm": "1000 9 9 9 0 9 0\n"})
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5000 * page, 9) if kind == resource.RLIMIT_AS else None)
    assert memory.available(root) == 4000 * page
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert memory.available(root) == 2_000_000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "mount", "expected"),
    [
        ("0::/docker/1\n", "/docker/1 /sys/fs/cgroup", ["sys/fs/cgroup"]),
        ("0::/docker/1\n", "/elsewhere /sys/fs/cgroup", ["sys/fs/cgroup"]),
        ("0::/../x\n", "/ /sys/fs/cgroup", ["sys/fs/cgroup"]),
        ("0::/a\n", "/ /sys/fs/my\\040groups", ["sys/fs/my groups/a", "sys/fs/my groups"]),
        ("0::/a/b\n", "/a /sys/fs/cgroup", ["sys/fs/cgroup/b", "sys/fs/cgroup"]),
        ("rubbish\n", "/ /sys/fs/cgroup", []),
    ],
)
def test_groups_are_found_from_the_inside_out(tmp_path, cgroup, mount, expected):
    lines = f"x\n30 23 0:26 {mount} rw,nosuid shared:4 - cgroup2 cgroup rw\n"
    write(tmp_path, {"proc/self/cgroup": cgroup, "proc/self/mountinfo": lines})
    assert list(group_folders("memory", tmp_path)) == [tmp_path / w for w in expected]


def test_the_memory_of_this_machine_is_found():
    room = memory.available()
    assert room is None or room > 1 << 20


@pytest.fixture
def room(monkeypatch):
    """Return ``room(n)``, which makes n bytes available; the smallest images are checked too."""
    monkeypatch.setattr(memory, "CHECKED_FROM", 0)

    def make(n: int | None) -> None:
        monkeypatch.setattr(memory, "available", lambda: n)

    return make


def noise_image(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)


def test_images_that_do_not_fit_are_refused_before_any_work(room):
    engine = FakeEngine(FIXED)
    purifier = Purifier(engine, "blur2", steps=2, seed=0)
    batch = [noise_image(40, 40), noise_image(200, 400)]
    layout = plan_tiles(FIXED, 200, 400, 2)
    need = memory.loop_bytes(layout, 1, 2) + sum(i.size for i in batch)
    room(need - 1)
    with pytest.raises(
        OutOfMemoryError, match=r"got 400 x 200 pixels, .*expected at most .* batch of 2; pass fewer images"
    ):
        purifier.run(batch)
    room(1000)
    with pytest.raises(OutOfMemoryError, match=r"are available; make it smaller, cut it into parts, or free memory$"):
        purifier.run(noise_image(40, 40))
    assert engine.calls == []
    room(need)
    assert len(purifier.run(batch)) == 2
    room(None)
    assert len(purifier.run(batch)) == 2


def test_many_images_need_little_more_than_one(room):
    """Images are computed one at a time, so the others need memory only for their results."""
    purifier = Purifier(FakeEngine(FIXED), "blur2", steps=2, seed=0)
    one = memory.loop_bytes(plan_tiles(FIXED, 600, 600, 2), 1, 2)
    batch = np.stack([noise_image(600, 600)] * 3)
    room(one + batch.size)
    np.testing.assert_array_equal(purifier.run(batch, noise_keys=[1, 2, 3])[1], purifier.run(batch[1], noise_keys=[2]))


def test_the_memory_of_a_bundled_model_counts_until_it_has_been_taken(room):
    engine = FakeEngine(make_spec(name="zip-tiny", min_side=64, max_side=64))
    purifier = Purifier(engine, "blur2", steps=2, seed=0)
    layout = plan_tiles(engine.spec, 128, 128, 2)
    loop = memory.loop_bytes(layout, 1, 2) + 3 * 128 * 128
    room(loop + 2400 * 64 * 64 - 1)
    with pytest.raises(OutOfMemoryError):
        purifier.run(noise_image(128, 128))
    room(loop + 2400 * 64 * 64)
    purifier.run(noise_image(128, 128))
    room(loop)
    purifier.run(noise_image(128, 128))


def test_small_images_are_not_checked(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: pytest.fail("read for a small image"))
    Purifier(FakeEngine(), "blur2", steps=2).run(np.zeros((8, 64, 64, 3), np.uint8))


PEAK = """
import json, sys
import numpy as np
sys.path.insert(0, ".")
from tests.fakes.engine import make_spec
from tests.fakes.transforms import Global
from zipsdk import Purifier
from zipsdk.sampling import memory
from zipsdk.sampling.tiling import plan_tiles
from zipsdk.sampling.guidance import strip_unit

h, w, side, transforms = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

class Trivial:
    spec = make_spec(min_side=64 if side == 64 else 32, max_side=side)
    def __call__(self, x, t):
        return x * np.float32(0.5)

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

purifier = Purifier(Trivial(), Global(2) if transforms == "global" else transforms, steps=2, start=100, seed=1)
purifier.run(np.zeros((64, 64, 3), np.uint8))
layout = plan_tiles(Trivial.spec, h, w, purifier._dispatcher.divisor)
pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
purifier.run(pixels)
need = memory.loop_bytes(layout, 1, strip_unit(purifier.guides)) + pixels.size
print(json.dumps({"peak": status("VmHWM") - before - pixels.size, "need": need}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of the memory can be reset on Linux only"
)
@pytest.mark.parametrize("size", [(1733, 2311), (300, 9000)], ids=str)
@pytest.mark.parametrize("side", [64, 512, 4096])
@pytest.mark.parametrize("transforms", ["blur2+gray", "blur2|blur16+gray|gray", "blur64", "global"])
def test_the_estimate_is_near_the_peak(size, side, transforms):
    """The peak beyond the loaded image is at most the estimate and at least half of it."""
    if side == 4096 and max(size) > 4096:
        pytest.skip("windows of this size do not differ from the others")
    words = [sys.executable, "-c", PEAK, *map(str, size), str(side), transforms]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    got = json.loads(done.stdout)
    print(size, side, transforms, {k: v // MB for k, v in got.items()})
    assert 0.5 * got["need"] < got["peak"] < got["need"] + 8 * MB
