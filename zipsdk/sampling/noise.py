"""Draw counter-based normal noise: z = f(seed, noise key, step, pixel), the same on every machine and in every order.

Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the 64-bit seed. The
counter is (row << 16 | column, step, noise key low, noise key high), so an image gets the same noise alone or in a
batch, in any tile, padded or not. Box-Muller turns the four words of a counter into four normals, and the three
channels of the pixel take the first three. The CUDA kernels compute the same: the integers agree bit for bit, the
normals to about 2e-6.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zipsdk.profiling import stage
from zipsdk.types import F32, U64

#: Rows and columns of an image have 16 bits of the counter each; a larger image would repeat its noise.
MAX_SIDE = 1 << 16

#: In place of a time step: the noise that a run starts from, and the draw that chooses an image's transforms.
STEP_INITIAL = 0xFFFFFFFF
STEP_CHOICE = 0xFFFFFFFE

# multipliers and Weyl constants of the Philox paper, table 2 and section 4.3
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10
# counters per block: the working set, five uint64 arrays, stays in the second-level cache
_BLOCK = 8192


def philox4x32(counter: U64, key: tuple[int, int]) -> U64:
    """Run ten rounds of Philox4x32.

    Args:
        counter: uint64 (4, n), each value below 2^32; overwritten.
        key: two 32-bit words.

    Returns:
        uint64 (4, n), each value below 2^32.
    """
    c0, c1, c2, c3 = counter
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        np.multiply(c0, _M0, out=p0)
        np.multiply(c2, _M1, out=p1)
        # new c0 = hi(p1) ^ c1 ^ k0, c1 = lo(p1), c2 = hi(p0) ^ c3 ^ k1, c3 = lo(p0)
        np.right_shift(p1, _SHIFT, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, np.uint64(k0), out=c0)
        np.bitwise_and(p1, _MASK, out=c1)
        np.right_shift(p0, _SHIFT, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, np.uint64(k1), out=c2)
        np.bitwise_and(p0, _MASK, out=c3)
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return counter


def _box_muller(u1: U64, u2: U64, cos: F32, sin: F32 | None) -> None:
    """Turn two words into the normals sqrt(-2 ln u1) cos(2 pi u2) and sqrt(-2 ln u1) sin(2 pi u2), in float32.

    u = (word + 0.5) 2^-32, so the logarithm is finite: |z| <= 6.8.
    """
    scale, half = np.float32(2.0**-32), np.float32(2.0**-33)
    radius = u1.astype(np.float32)
    radius *= scale
    radius += half
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle = u2.astype(np.float32)
    angle *= np.float32(2.0**-32 * 2.0 * np.pi)
    np.cos(angle, out=cos)
    cos *= radius
    if sin is not None:
        np.sin(angle, out=sin)
        sin *= radius


class Noise:
    """Draw the noise of a batch of images.

    Args:
        seed: 0..2^64-1.
        noise_keys: uint64 (N,), one for each image.
    """

    def __init__(self, seed: int, noise_keys: npt.ArrayLike):
        self.seed = seed
        self.noise_keys = np.asarray(noise_keys, dtype=np.uint64)
        self._key = (seed & 0xFFFFFFFF, seed >> 32)

    @stage("noise")
    def normal(self, step: int, height: int, width: int, top: int = 0) -> F32:
        """Draw standard normals for one step.

        Args:
            step: time step, or `STEP_INITIAL`.
            height: rows of the result; top + height is at most `MAX_SIDE`.
            width: columns of the result, at most `MAX_SIDE`.
            top: first row in the image. The values of a row do not depend on the other rows that are drawn with it.

        Returns:
            float32 (N, 3, height, width). Scratch memory does not grow with the size.
        """
        out = np.empty((len(self.noise_keys), 3, height, width), np.float32)
        # blocks of whole images if they are small, of whole rows if they are large
        images, rows = max(1, _BLOCK // (height * width)), max(1, min(height, _BLOCK // width))
        for i in range(0, len(self.noise_keys), images):
            for y in range(0, height, rows):
                self._fill(out[i : i + images, :, y : y + rows], step, slice(i, i + images), top + y)
        return out

    def _fill(self, block: F32, step: int, images: slice, top: int) -> None:
        """Write the noise of these images' rows, from row `top` on, into `block` (n, 3, rows, width)."""
        n, _, height, width = block.shape
        counter = np.empty((4, n, height, width), np.uint64)
        y = np.arange(top, top + height, dtype=np.uint64)[:, None] << np.uint64(16)
        counter[0] = y | np.arange(width, dtype=np.uint64)
        counter[1] = step
        counter[2] = (self.noise_keys[images] & _MASK)[:, None, None]
        counter[3] = (self.noise_keys[images] >> _SHIFT)[:, None, None]
        r = philox4x32(counter.reshape(4, -1), self._key).reshape(counter.shape)
        z = np.empty((3, n, height, width), np.float32)
        _box_muller(r[0], r[1], z[0], z[1])
        _box_muller(r[2], r[3], z[2], None)
        block[...] = z.transpose(1, 0, 2, 3)

    def choice(self, n: int) -> npt.NDArray[np.intp]:
        """Draw a number in 0..n-1 for each image: intp (N,)."""
        counter = np.zeros((4, len(self.noise_keys)), np.uint64)
        counter[1] = STEP_CHOICE
        counter[2] = self.noise_keys & _MASK
        counter[3] = self.noise_keys >> _SHIFT
        # multiply-shift, because a modulo would prefer small numbers; the bias is below 2^-32
        drawn: U64 = (philox4x32(counter, self._key)[0] * np.uint64(n)) >> _SHIFT
        return drawn.astype(np.intp)
