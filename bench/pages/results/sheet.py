"""A page of pictures: clean, with the trigger, transformed, purified, and how that differs from the clean one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.attacks.base import Attack
from zipsdk.images.contact_sheet import contact_sheet, transformed
from zipsdk.sampling.guidance import Guidance
from zipsdk.transforms import parse

U8 = npt.NDArray[np.uint8]

COLUMNS = ("clean", "with trigger", "transformed", "purified", "(purified - clean) x 8 + 128")


def place(results: Path, dataset: str) -> Path:
    """Where the sheet of a data set is, beside its record."""
    return results / f"defense-{dataset}-pictures.png"


def draw(
    path: Path,
    pictures: U8,
    triggers: Mapping[str, Attack],
    transforms: Mapping[str, str],
    treat: Callable[[str, U8], U8],
    rows: int = 8,
) -> None:
    """Write the sheet.

    Args:
        pictures: clean test pictures, uint8 (N, H, W, 3), of which some are picked from beginning to end.
        triggers, transforms: of each attack, by its name.
        treat: purifies pictures that have the trigger of the attack that is named.
        rows: pictures in all, but one for each attack at least.
    """
    apart = max(1, len(pictures) // max(rows, len(triggers)))  # they stand class by class
    lines = []
    for i, (name, trigger) in enumerate(triggers.items()):
        guide = Guidance(parse(transforms[name]))
        picked = pictures[i * apart :: len(triggers) * apart][: max(1, rows // len(triggers))]
        triggered = trigger.apply(picked)
        for x, bad, good in zip(picked, triggered, treat(name, triggered), strict=True):
            away = np.clip(128 + 8 * (good.astype(int) - x), 0, 255).astype(np.uint8)
            lines.append([x, bad, transformed(guide, bad), good, away])
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(lines, COLUMNS).save(path)
