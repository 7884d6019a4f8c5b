"""Test full disks and low memory: complete files or none, and errors that report the lack of memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zipsdk
from zipsdk import images
from zipsdk.images import arrays, reader

LIMITED = """
import resource, sys
import numpy as np
from PIL import Image
from zipsdk import ImageReadError, images
noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for suffix in sys.argv[2:]:
    try:
        images.save(Image.fromarray(noise), f"{sys.argv[1]}/image{suffix}")
    except ImageReadError as e:
        print(suffix, "cannot be written" in str(e))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    suffixes = [".bmp", ".ppm", ".tif", ".png", ".jpg", ".webp"]
    ran = subprocess.run([sys.executable, "-c", LIMITED, tmp_path, *suffixes], capture_output=True, text=True)
    assert ran.stdout.splitlines() == [f"{s} True" for s in suffixes], ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "uint16"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 70_000, 1), (301, 97, 3)])
def test_values_do_not_depend_on_the_blocks(dtype: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.random(shape) if np.dtype(dtype).kind == "f" else rng.integers(0, 65_536, shape)
    x = x.astype(dtype)
    wide = x.astype(np.float64) * 255 if x.dtype.kind == "f" else x.astype(np.float64) / 257
    eight = arrays.to_8bit(x)
    assert np.array_equal(eight, np.rint(wide))
    back = arrays.from_8bit(eight, x.dtype)
    assert back.dtype == x.dtype and np.array_equal(arrays.to_8bit(back), eight)
    exact = eight.astype(np.float64) / 255 if x.dtype.kind == "f" else eight.astype(np.float64) * 257
    assert np.array_equal(back, exact.astype(dtype))


def test_floats_are_converted_in_small_blocks() -> None:
    x = np.random.default_rng(0).random((1000, 1000, 3), np.float32)
    tracemalloc.start()
    try:
        clean = images.read_one(x).rgb
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        back = arrays.from_8bit(clean, x.dtype)
        writing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reading < 2.5 * clean.nbytes  # the checks and the result; a float64 copy alone has 8 times as many
    assert writing < clean.nbytes + 1.5 * back.nbytes


def test_low_memory_raises_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    batch = np.zeros((2, 8, 8, 3), np.uint8)

    def fails(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(reader, "decode", fails)
    monkeypatch.setattr(images, "read_array", fails)
    for item in (path, batch, batch[0], [path, batch[0]]):
        with pytest.raises(zipsdk.OutOfMemoryError, match="does not fit into memory while it is read"):
            images.read(item)
    guard = zipsdk.Guard(lambda x: np.eye(2)[np.zeros(len(x), int)], zipsdk.Purifier("zip-tiny", steps=1, start=400))
    (decision,) = guard.run([path])
    assert decision.error is not None
    assert decision.label is None and "does not fit into memory" in decision.error
