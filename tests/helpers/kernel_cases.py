"""Share guarded buffers, layouts of awkward sizes and the float64 reference among the kernel tests."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from zipsdk.gpu import structs
from zipsdk.sampling import noise, sampler, schedule
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import Step, StepTable
from zipsdk.sampling.tiling import TileLayout

GUARD, PATTERN = 64, 0xA5
#: (grid, block): one warp, odd counts, more threads than work. Every result must be the same for all of them.
LAUNCHES = [(1, 32), (3, 64), (5, 96), (40, 256)]


class Buffer:
    """An array between guard bytes, filled with NaN (floats) or 0xA5 (whole numbers) unless `data` is given."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, data: np.ndarray | None = None):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = np.full(size + 2 * GUARD + 64, PATTERN, np.uint8)
        self.raw = whole[-whole.ctypes.data % 64 :][: size + 2 * GUARD]  # aligned as device memory is
        self.array = self.raw[GUARD : GUARD + size].view(dtype).reshape(shape)
        if data is not None:
            self.array[...] = data
        elif self.array.dtype.kind == "f":
            self.array[...] = np.nan

    def check(self) -> None:
        assert (self.raw[:GUARD] == PATTERN).all(), "wrote before the array"
        assert (self.raw[self.raw.size - GUARD :] == PATTERN).all(), "wrote after the array"


def fenced(array: np.ndarray) -> np.ndarray:
    """Copy an array to host memory that ends at a protected page: a read past the end kills the process."""
    size = -(-max(1, array.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    out = np.frombuffer(memory, np.uint8)[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def like(array: np.ndarray) -> Buffer:
    """Copy an array to a guarded buffer."""
    return Buffer(array.shape, array.dtype, array)


@dataclass(frozen=True)
class Case:
    """Images of one size on frames, with the transforms that fit its tiles."""

    name: str
    images: int
    size: tuple[int, int]
    layout: TileLayout
    guides: tuple[str, ...]

    @property
    def frames(self) -> int:
        return -(-self.images // self.layout.images_per_frame)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.frames, 3, self.layout.frame_height, self.layout.frame_width)

    @property
    def row(self) -> np.void:
        return structs.layout_row(self.layout, *self.size)

    def place(self, i: int) -> tuple[int, slice, slice]:
        """Return the place of image i: frame, rows, columns."""
        a = self.layout
        frame, tile = divmod(i, a.images_per_frame)
        y, x = tile // a.columns * a.height, tile % a.columns * a.width
        return frame, slice(y, y + a.height), slice(x, x + a.width)

    def images_of(self, frames: np.ndarray) -> np.ndarray:
        """Cut the images from frames: (frames, 3, H, W) -> (k, 3, h, w)."""
        out = np.empty((self.images, 3, self.layout.height, self.layout.width), frames.dtype)
        for i in range(self.images):
            frame, y, x = self.place(i)
            out[i] = frames[frame, :, y, x]
        return out

    def unused_pixels(self) -> np.ndarray:
        """Return a mask of the pixels that belong to no image, bool (frames, H, W)."""
        out = np.ones((self.frames, *self.shape[2:]), bool)
        for i in range(self.images):
            frame, y, x = self.place(i)
            out[frame, y, x] = False
        return out


def make_case(
    name: str, k: int, tile: tuple[int, int], frame: tuple[int, int], guides: str, size=None, grid=(1, 1)
) -> Case:
    """Return a case of k images; `guides` are names separated by spaces."""
    layout = TileLayout(*tile, *frame, rows=grid[0], columns=grid[1])
    return Case(name, k, size or tile, layout, tuple(guides.split()))


ALL = "blur2 blur4 blur8 blur16 gray blur2+gray blur16+gray blur2+blur8 blur4+blur16+gray"
CASES = [
    make_case("none", 0, (32, 32), (32, 32), "blur2+gray"),
    make_case("one", 1, (16, 16), (16, 16), ALL),
    make_case("three", 3, (48, 80), (48, 80), ALL),
    make_case("pixel", 1, (1, 1), (1, 1), "gray"),
    make_case("odd", 3, (7, 5), (7, 5), "gray"),
    make_case("narrow", 5, (18, 30), (18, 30), "blur2 gray blur2+gray"),
    make_case("row", 2, (2, 250), (2, 250), "blur2+gray"),
    make_case("tiles", 5, (32, 32), (64, 64), ALL, grid=(2, 2)),
    make_case("gap", 7, (24, 20), (64, 64), "blur2 blur4 gray blur4+gray", size=(23, 18), grid=(2, 3)),
    make_case("unaligned tiles", 17, (6, 10), (32, 32), "blur2 gray blur2+gray", grid=(5, 3)),
    make_case("small in large", 1, (8, 8), (64, 32), "blur8+gray", size=(3, 2), grid=(8, 4)),
]
BY_NAME = {c.name: c for c in CASES}


def exact_normals(seed: int, keys: np.ndarray, step: int, height: int, width: int) -> np.ndarray:
    """Compute `zipsdk.sampling.noise` in float64 from its definition."""
    y, x = np.mgrid[:height, :width].astype(np.uint64)
    out = np.empty((len(keys), 3, height, width))
    for i, image in enumerate(keys):
        counter = np.empty((4, height, width), np.uint64)
        counter[0], counter[1] = y << np.uint64(16) | x, step
        counter[2], counter[3] = int(image) & 0xFFFFFFFF, int(image) >> 32
        r = noise.philox4x32(counter.reshape(4, -1), (seed & 0xFFFFFFFF, seed >> 32)).reshape(counter.shape)
        u = (r.astype(np.float64) + 0.5) * 2.0**-32
        turn = 2 * np.pi * r.astype(np.float64) * 2.0**-32
        out[i, 0] = np.sqrt(-2 * np.log(u[0])) * np.cos(turn[1])
        out[i, 1] = np.sqrt(-2 * np.log(u[0])) * np.sin(turn[1])
        out[i, 2] = np.sqrt(-2 * np.log(u[2])) * np.cos(turn[3])
    return out


def counter_with(word: int, place: int, seed: int, side: int) -> tuple[int, int, int, int]:
    """Return row, column (below `side`), step and noise key whose Philox words have `word` at `place`.

    Run Philox backwards for half a million values of the other words; some lead to a pixel of the image."""
    m0, m1, mask, shift = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0xFFFFFFFF), np.uint64(32)
    back0, back1 = (np.uint64(pow(int(m), -1, 2**32)) for m in (m0, m1))
    c = np.random.default_rng(word + place).integers(0, 2**32, (4, 1 << 19), np.uint64)
    c[place] = word
    for i in reversed(range(10)):
        k0, k1 = (seed + i * 0x9E3779B9) & 0xFFFFFFFF, ((seed >> 32) + i * 0xBB67AE85) & 0xFFFFFFFF
        c0, c2 = c[3] * back0 & mask, c[1] * back1 & mask
        c = np.stack([c0, c[0] ^ (c2 * m1 >> shift) ^ np.uint64(k0), c2, c[2] ^ (c0 * m0 >> shift) ^ np.uint64(k1)])
    row, column = c[0] >> np.uint64(16), c[0] & np.uint64(0xFFFF)
    found = np.flatnonzero((row < side) & (column < side))[0]
    return int(row[found]), int(column[found]), int(c[1][found]), int(c[2][found] | c[3][found] << shift)


class ExactNoise:
    """`zipsdk.sampling.noise.Noise` in float64."""

    def __init__(self, seed: int, keys: np.ndarray):
        self.seed, self.keys = seed, keys

    def normal(self, step: int, height: int, width: int) -> np.ndarray:
        return exact_normals(self.seed, self.keys, step, height, width)


class _StartNoise:
    """Noise whose initial state is x_t, so that `sampler.sample` does a single step from there."""

    def __init__(self, x: np.ndarray, source: Any):
        self.x, self.source = x, source

    def normal(self, step: int, height: int, width: int) -> np.ndarray:
        return self.x.copy() if step == noise.STEP_INITIAL else self.source.normal(step, height, width)


def one_step(
    x: np.ndarray, e: np.ndarray, rgb: np.ndarray, step: Step, guide: Any, seed: int, keys: np.ndarray, *,
    dtype: Any, clip_x0: bool = False,
) -> np.ndarray:  # fmt: skip
    """Compute one step of zipsdk.sampling.sampler on images (k, 3, h, w) in `dtype`; `rgb` is x_P as uint8."""
    source = Noise(seed, keys) if dtype == np.float32 else ExactNoise(seed, keys)
    x_p = rgb.astype(dtype)
    x_p *= 1 / 127.5
    x_p -= 1
    table = StepTable((step,), warm=False)
    start = _StartNoise(x.astype(dtype), source)
    # NoiseSource permits a source without `top` for small images
    return sampler.sample(lambda *_: e.astype(dtype), x_p, table, guide, start, clip_x0=clip_x0)  # type: ignore[arg-type]


def steps_of(spec: Any, lam: float = 10.0, **options: Any) -> tuple[Step, ...]:
    """Return the steps of a schedule."""
    return schedule.step_table(spec, lam=lam, **options).steps


def assert_close(name: str, got: np.ndarray, plain: np.ndarray, exact: np.ndarray) -> None:
    """Check that the kernel's error against float64 is at most twice that of plain float32.

    One unit in the last place of the largest value is always allowed: few values show no error of plain float32."""
    assert np.isfinite(got).all(), f"{name}: {np.count_nonzero(~np.isfinite(got))} of {got.size} are not finite"
    assert got.shape == plain.shape == exact.shape
    if not got.size:
        return
    error, allowed = np.abs(got - exact).max(), np.abs(plain - exact).max()
    print(f"{name}: error {error:.3g}, plain float32 {allowed:.3g}")  # pytest -rP shows it
    bound = max(2 * allowed, np.spacing(np.abs(exact).max().astype(np.float32)))
    worst = np.unravel_index(np.abs(got - exact).argmax(), got.shape)
    assert error <= bound, (
        f"{name}: error {error:.3g} at {tuple(map(int, worst))} (got {got[worst]}, expected {exact[worst]}), "
        f"plain float32 errs by {allowed:.3g}"
    )
