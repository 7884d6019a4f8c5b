"""Choose the keys of the counter-based noise, one for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_int
from zipsdk.errors import InputError
from zipsdk.types import U8, U64


def resolve_noise_keys(images: Sequence[U8], given: npt.ArrayLike | None, seed: int) -> U64:
    """Return the noise keys of images.

    Args:
        images: each uint8 (H, W, 3).
        given: integers in 0..2^64-1, one for each image, or None to hash the images.
        seed: keys the hash, so that an attacker who does not know it cannot choose the noise of an image.

    Returns:
        uint64 (N,).

    Raises:
        InputError: `given` has other values, or another number of them.
    """
    if given is None:
        return np.array([_hashed(image, seed) for image in images], np.uint64)
    # as objects: NumPy turns empty lists, and lists with integers on both sides of 2^63, into floats
    keys = np.asarray(given) if hasattr(given, "dtype") else np.array(given, object)
    bad = [k for k in keys.flat if not is_int(k) or not 0 <= int(k) < 2**64]
    if bad or keys.shape != (len(images),):
        got = repr(bad[0]) if bad else f"an array of shape {keys.shape}"
        raise InputError(
            f"noise_keys: got {got}, expected a flat list of {len(images)} integers in 0..2^64-1, one for each image"
        )
    return keys.astype(np.uint64)


def _hashed(image: U8, seed: int) -> int:
    hashed = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8, key=seed.to_bytes(8, "little"))
    hashed.update(str(image.shape).encode())
    return int.from_bytes(hashed.digest(), "big")
