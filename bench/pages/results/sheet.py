"""Draw a contact sheet: clean, triggered, transformed and purified images, and the difference from the clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.attacks.base import Attack
from zipsdk.images.contact_sheet import contact_sheet, transformed
from zipsdk.sampling.guidance import Guidance
from zipsdk.transforms import OneOf, parse

U8 = npt.NDArray[np.uint8]

COLUMNS = ("clean", "with trigger", "transformed", "purified", "(purified - clean) x 8 + 128")


def place(figures: Path, dataset: str) -> Path:
    """Return the path of the sheet of a data set in the folder of the figures."""
    return figures / f"defense-{dataset}-images.png"


def draw(
    path: Path,
    images: U8,
    triggers: Mapping[str, Attack],
    transforms: Mapping[str, str],
    purify: Callable[[str, U8], U8],
    rows: int = 8,
) -> None:
    """Write the sheet.

    Args:
        images: clean test images, uint8 (N, H, W, 3); some are picked at equal distances.
        triggers, transforms: by the name of the attack.
        purify: (name of the attack, triggered images) -> purified images.
        rows: images in all, but at least one for each attack.
    """
    step = max(1, len(images) // max(rows, len(triggers)))  # images are ordered by class
    lines = []
    for i, (name, trigger) in enumerate(triggers.items()):
        chosen = parse(transforms[name])
        assert not isinstance(chosen, OneOf)
        guidance = Guidance(chosen)
        picked = images[i * step :: len(triggers) * step][: max(1, rows // len(triggers))]
        triggered = trigger.apply(picked)
        for x, bad, good in zip(picked, triggered, purify(name, triggered), strict=True):
            difference = np.clip(128 + 8 * (good.astype(int) - x), 0, 255).astype(np.uint8)
            lines.append([x, bad, transformed(guidance, bad), good, difference])
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(lines, COLUMNS).save(path)
