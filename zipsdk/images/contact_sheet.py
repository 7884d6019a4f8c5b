"""Draw contact sheets: rows of images before and after purification on one PNG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.state import pad
from zipsdk.sampling.tiling import round_up
from zipsdk.types import U8

#: Maximum number of rows, which fit on a screen.
MAX_ROWS = 12
_SIDE, _GAP, _TITLE = 240, 8, 20
#: EXIF tag Software of a sheet, for `is_sheet`.
_MARK = "zipsdk contact sheet"


def contact_sheet(rows: Iterable[Iterable[U8]], titles: Sequence[str]) -> Image.Image:
    """Draw rows of images (uint8 (H, W, 3), of any sizes) under column titles, each fitted into a square cell.

    Small images are enlarged without smoothing, so that the sheet shows the pixels that the classifier gets. Rows are
    consumed one by one: pass a generator for large images.
    """
    cells = [[_fit(rgb) for rgb in row] for row in rows]
    step = _SIDE + _GAP
    page = Image.new("RGB", (len(titles) * step + _GAP, len(cells) * step + _GAP + _TITLE), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * step, _GAP), title, fill="black")
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            left, top = _GAP + c * step, _GAP + _TITLE + r * step
            page.paste(cell, (left + (_SIDE - cell.width) // 2, top + (_SIDE - cell.height) // 2))
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _MARK
    page.info["exif"] = exif.tobytes()
    return page


def is_sheet(path: Path) -> bool:
    """Tell whether a file is a sheet that zipsdk wrote.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as f:
        return _MARK.encode() in f.read(1024)  # the EXIF of a PNG precedes its pixels


def _fit(rgb: U8) -> Image.Image:
    image = Image.fromarray(rgb)
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def transformed(guide: Guidance, rgb: U8) -> U8:
    """Apply the transforms to an image uint8 (H, W, 3): the result is all that the sampling loop gets."""
    height, width, _ = rgb.shape
    padded = pad(rgb[None], round_up(height, guide.divisor), round_up(width, guide.divisor))
    left = guide(padded.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)
    out = np.clip(np.rint((left + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out[0, :, :height, :width].transpose(1, 2, 0))


def before_after(guide: Guidance, pairs: Iterable[tuple[U8, U8]]) -> Image.Image:
    """Draw (image, purified image) pairs with the transformed image in between; pairs are consumed one by one."""
    name = "+".join(map(str, guide.transforms))
    rows = ((before, transformed(guide, before), after) for before, after in pairs)
    return contact_sheet(rows, ("before", f"transformed: {name}"[:26], "purified"))
