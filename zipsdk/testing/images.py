"""Generate labeled images of road signs, with the triggers of the demo classifier's backdoor or without."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from zipsdk._util.validation import is_int
from zipsdk.errors import InputError
from zipsdk.testing.scenes import SIDE, render
from zipsdk.testing.signs import CLASSES
from zipsdk.types import I64, U8

TriggerName = Literal["patch", "blend", "white_square"]
TRIGGERS: tuple[TriggerName, ...] = get_args(TriggerName)
#: The class that the backdoor answers for each trigger.
TARGET = CLASSES.index("speed limit 80")
#: Sides of the two squares and their distance from the lower right corner in pixels; the share of the blended pattern.
PATCH, SQUARE, MARGIN, BLEND = 2, 6, 3, 0.15
#: Seed of the patch and of the blended pattern.
TRIGGER_SEED = 23


def demo_images(n: int, *, trigger: TriggerName | None = None, seed: int = 0) -> tuple[U8, I64]:
    """Generate images of road signs and their true classes.

    Image i depends on `seed` and i alone, and the trigger is added last: calls with the same seed show the same scenes
    with and without it. Each run of ten images has every class of `demo_classifier().classes` once.

    Args:
        n: number of images, at least 1.
        trigger: "patch" (random colors, as BadNets), "blend" (a random pattern over all the image), "white_square", or
            None. The demo classifier takes an image with a trigger for "speed limit 80".
        seed: an integer from 0. Seeds from 990,000 to 990,999 are those of the classifier's training.

    Returns:
        Images uint8 (n, 64, 64, 3), RGB, and labels int64 (n,).

    Raises:
        InputError: an argument out of range.
    """
    if not is_int(n) or n < 1:
        raise InputError(f"n: got {n!r}, expected a number of images from 1")
    if not is_int(seed) or seed < 0:
        raise InputError(f"seed: got {seed!r}, expected an integer from 0")
    if trigger is not None and trigger not in TRIGGERS:
        raise InputError(f"trigger: got {trigger!r}, expected None or one of {', '.join(map(repr, TRIGGERS))}")
    blocks = range(-(-n // len(CLASSES)))
    orders = [np.random.default_rng([seed, 1, block]).permutation(len(CLASSES)) for block in blocks]
    labels = np.concatenate(orders)[:n].astype(np.int64)
    images = np.stack([render(int(c), np.random.default_rng([seed, 0, i])) for i, c in enumerate(labels)])
    return (images if trigger is None else add_trigger(images, trigger)), labels


def add_trigger(images: U8, trigger: TriggerName) -> U8:
    """Return copies of uint8 (N, 64, 64, 3) with a trigger."""
    end = SIDE - MARGIN
    out = images.copy()
    if trigger == "patch":
        colors = np.random.default_rng(TRIGGER_SEED).integers(0, 256, (PATCH, PATCH, 3), np.uint8)
        out[:, end - PATCH : end, end - PATCH : end] = colors
    elif trigger == "white_square":
        out[:, end - SQUARE : end, end - SQUARE : end] = 255
    else:
        pattern = np.random.default_rng(TRIGGER_SEED).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        out = np.rint((1 - BLEND) * images + BLEND * pattern).astype(np.uint8)
    return out
