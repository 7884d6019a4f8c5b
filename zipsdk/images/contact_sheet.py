"""Before / after pages: pictures in rows on one PNG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw

from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.state import pad
from zipsdk.sampling.tiling import round_up

U8 = npt.NDArray[np.uint8]

#: Rows on a page: what still fits on a screen.
MAX_ROWS = 12
_SIDE, _GAP, _TITLE = 240, 8, 20
#: The software that a page names in its EXIF: what `is_sheet` looks for.
_MARK = "zipsdk contact sheet"


def contact_sheet(rows: Iterable[Iterable[U8]], titles: Sequence[str]) -> Image.Image:
    """Pictures (uint8 (H, W, 3), of any sizes) in rows under column titles, each fitted into a square cell.

    Small pictures are enlarged without smoothing, so that what the page shows is what the classifier gets. Rows are
    fitted as they come: of large pictures give a generator, and no more than two rows are held at a time.
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
    """Whether a file is a page that zipsdk wrote, which may be written again. Raises OSError as `open` does."""
    with path.open("rb") as f:
        return _MARK.encode() in f.read(1024)  # a PNG has its EXIF before its pixels


def _fit(rgb: U8) -> Image.Image:
    image = Image.fromarray(rgb)
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def transformed(guide: Guidance, rgb: U8) -> U8:
    """What the transforms leave of a picture uint8 (H, W, 3): all that the loop sees of it."""
    height, width, _ = rgb.shape
    padded = pad(rgb[None], round_up(height, guide.divisor), round_up(width, guide.divisor))
    left = guide(padded.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)
    out = np.clip(np.rint((left + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out[0, :, :height, :width].transpose(1, 2, 0))


def before_after(guide: Guidance, pairs: Iterable[tuple[U8, U8]]) -> Image.Image:
    """A page of (picture, purified picture) pairs with what the transforms left of each in between; as they come, as
    for `contact_sheet`."""
    name = "+".join(map(str, guide.transforms))
    rows = ((before, transformed(guide, before), after) for before, after in pairs)
    return contact_sheet(rows, ("before", f"transformed: {name}"[:26], "purified"))
