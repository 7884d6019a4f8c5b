"""Purify four photographs of scikit-image's wheel, three of them with a trigger, by ``zipsdk purify``.

``sheet.png`` shows all as before / transformed / purified, ``closeup.png`` the triggers enlarged eight times, and
``restoration.png`` details of the clean photographs beside bicubic upsampling.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.quality.restoration import bicubic, blurred
from zipsdk import Blur, Purifier
from zipsdk.cli import main as zipsdk_cli
from zipsdk.images.contact_sheet import contact_sheet, transformed
from zipsdk.sampling.guidance import Guidance

SEED = 1
#: BadNets (Gu et al. 2017) at 256 px in the paper: a random 9 x 9 patch, 3 pixels from the corner.
PATCH = 9
#: Blended (Chen et al. 2017): the whole image mixed with a random pattern at this rate.
BLEND = 0.2
#: The long side at which the short side of each photograph is at least 64.
SMALLEST = 96


def photographs(side: int) -> dict[str, np.ndarray]:
    """Load four photographs, uint8 (H, W, 3), with a long side of `side`."""
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket")
    out = {}
    for name in names:
        image = Image.fromarray(getattr(data, name)())
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        out[name] = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return out


def with_patch(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of an image with a random patch."""
    x = x.copy()
    x[-PATCH - 3 : -3, -PATCH - 3 : -3] = rng.integers(0, 256, (PATCH, PATCH, 3))
    return x


def with_blend(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image mixed with gray noise."""
    noise = rng.integers(0, 256, (*x.shape[:2], 1))
    return np.rint((1 - BLEND) * x + BLEND * noise).astype(np.uint8)


def closeup(name: str, before: np.ndarray, after: np.ndarray, guide: Guidance) -> Image.Image:
    """Draw the lower right 32 x 32 pixels of an image before, blurred and purified, enlarged eight times."""
    crops = [x[-32:, -32:] for x in (before, transformed(guide, before), after)]
    page = Image.new("RGB", (3 * 264 + 8, 256 + 28), "white")
    draw = ImageDraw.Draw(page)
    for i, (crop, title) in enumerate(zip(crops, (name, "blurred", "purified"), strict=True)):
        draw.text((8 + i * 264, 8), title, fill="black")
        page.paste(Image.fromarray(crop).resize((256, 256), Image.Resampling.NEAREST), (8 + i * 264, 24))
    return page


def restoration(images: dict[str, np.ndarray]) -> Image.Image:
    """Draw details of 64 x 64 pixels without triggers: original, blurred, and restored in three ways."""
    corners = {"astronaut": (30, 140), "chelsea": (60, 110), "coffee": (60, 90), "rocket": (170, 170)}
    details = []
    for name, (top, left) in corners.items():
        height, width = images[name].shape[:2]
        y, x = min(top, height - 64), min(left, width - 64)  # smaller photographs: the nearest detail
        details.append(images[name][y : y + 64, x : x + 64])
    columns = [
        details,
        [blurred(x, 2) for x in details],
        [bicubic(x, 2) for x in details],
        *(Purifier("zip-tiny", "blur2", preset=p, seed=SEED).run(np.stack(details)) for p in ("paper", "fast")),
    ]
    titles = ("original", "blur 2", "bicubic", "purified, 20 steps", "purified, 4 steps")
    return contact_sheet(list(zip(*columns, strict=True)), titles)


def purify_photographs(output: Path, side: int, preset: str) -> tuple[dict[str, np.ndarray], float]:
    """Purify the photographs and draw the sheets into a folder; return what was purified, and the seconds.

    Raises:
        SystemExit: ``zipsdk purify`` failed, with its exit status.
    """
    rng = np.random.default_rng(SEED)
    images = photographs(side)
    before = {
        "astronaut": images["astronaut"],
        "chelsea-patch": with_patch(images["chelsea"], rng),
        "coffee-blended": with_blend(images["coffee"], rng),
        "rocket-patch": with_patch(images["rocket"], rng),
    }
    originals = output / "images"
    originals.mkdir(parents=True, exist_ok=True)
    for name, x in before.items():
        Image.fromarray(x).save(originals / f"{name}.png")

    started = time.perf_counter()
    clean = output / "purified"
    command = ["purify", str(originals), "-o", str(clean), "--seed", str(SEED), "--preset", preset,
               "--transforms", "blur2+gray", "--sheet", str(output / "sheet.png"), "--overwrite"]  # fmt: skip
    print("zipsdk " + " ".join(command))
    if code := zipsdk_cli(command):
        raise SystemExit(code)
    seconds = time.perf_counter() - started

    guide = Guidance([Blur(2)])
    rows = [
        closeup(name, x, np.asarray(Image.open(clean / f"{name}.png")), guide)
        for name, x in before.items()
        if name != "astronaut"
    ]
    page = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, i * row.height))
    page.save(output / "closeup.png")
    restoration(images).save(output / "restoration.png")
    return before, seconds
