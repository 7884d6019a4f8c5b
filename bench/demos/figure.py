"""Draw the figure of the demo: one road sign clean and with each trigger, its labels, and the rates over all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.demos.labels import STAGES, Kind
from zipsdk.detectors.ablation_views import FEATURES, REGION, REGIONS
from zipsdk.testing.images import MARGIN, PATCH, SQUARE, TARGET
from zipsdk.testing.scenes import SIDE
from zipsdk.testing.signs import CLASSES
from zipsdk.types import F32, F64, U8

#: Twice the width in a README, in pixels.
WIDTH = 1600
_IMAGE, _CAPTION, _GAP = 256, 44, 26
_LEFT, _STEP, _TOP = 186, _IMAGE + 28, 108
_ROW = _IMAGE + _CAPTION + _GAP
_RATES = _LEFT + 3 * _STEP + 30
_GOOD, _BAD, _OTHER, _TEXT, _MUTED, _MARK = "#1f7a3d", "#c0272d", "#a9adb3", "#1b1f24", "#57606a", "#ffd33d"
#: Triggers that are squares near the lower right corner, and their sides.
_SQUARES: dict[str | None, int] = {"patch": PATCH, "white_square": SQUARE}


def draw(kinds: Sequence[Kind], label: str = "stop") -> Image.Image:
    """Draw the first sign of a class, one row for each kind of images."""
    page = Image.new("RGB", (WIDTH, _TOP + len(kinds) * _ROW), "white")
    pen = ImageDraw.Draw(page)
    for column, (title, below) in enumerate(
        (("as it arrives", "label of the classifier"), ("purified", "label of the classifier"), ("Guard", "its label"))
    ):
        x = _LEFT + column * _STEP
        _write(pen, x, 18, title, 34, _TEXT)
        _write(pen, x, 62, below, 24, _MUTED)
    _write(pen, _RATES, 18, f"{len(kinds[-1].truth)} to {len(kinds[0].truth)} images of each kind", 34, _TEXT)
    x = _RATES
    for color, words in ((_GOOD, "right"), (_BAD, f'"{CLASSES[TARGET]}"'), (_OTHER, "other")):
        pen.rectangle((x, 68, x + 20, 88), fill=color)
        x += 30 + _write(pen, x + 28, 62, words, 24, _MUTED) + 22
    for row, kind in enumerate(kinds):
        _draw_row(page, pen, _TOP + row * _ROW, kind, CLASSES.index(label))
    return page


def _draw_row(page: Image.Image, pen: ImageDraw.ImageDraw, y: int, kind: Kind, truth: int) -> None:
    i = int(np.flatnonzero(kind.truth == truth)[0])
    for n, word in enumerate(kind.name.split()):
        _write(pen, 24, y + 92 + 38 * n, word, 34, _TEXT)
    decision = kind.decisions[i]
    feature = decision.feature
    columns = ((kind.images[i], kind.before[i]), (kind.purified[i], kind.after[i]))
    for column, (rgb, scores) in enumerate(columns):
        x = _LEFT + column * _STEP
        page.paste(_enlarged(rgb), (x, y))
        _caption(pen, x, y + _IMAGE, scores, truth)
    if kind.trigger in _SQUARES:
        _ring(pen, _LEFT, y, _SQUARES[kind.trigger])
    x = _LEFT + 2 * _STEP
    page.paste(_enlarged(kind.purified[i] if decision.flagged else kind.images[i]), (x, y))
    if decision.flagged and feature in FEATURES[:REGIONS]:
        _outline(pen, x, y, FEATURES.index(feature))
    pen.rectangle((x, y, x + _IMAGE - 1, y + 36), fill=_TEXT)
    _write(pen, x + 10, y + 4, f"flagged: {feature or '-'}" if decision.flagged else "passed", 24, "white")
    _caption(pen, x, y + _IMAGE, decision.class_scores, truth)
    for n, stage in enumerate(STAGES):
        _bar(pen, _RATES, y + 12 + 96 * n, stage, kind)


def _enlarged(rgb: U8) -> Image.Image:
    return Image.fromarray(rgb).resize((_IMAGE, _IMAGE), Image.Resampling.NEAREST)


def _caption(pen: ImageDraw.ImageDraw, x: int, y: int, scores: F32 | F64 | None, truth: int) -> None:
    """Write the label of the largest score under an image, on green if it is right and on red if it is wrong."""
    label = None if scores is None else int(np.argmax(scores))
    pen.rectangle((x, y, x + _IMAGE - 1, y + _CAPTION - 1), fill=_GOOD if label == truth else _BAD)
    words = "abstained" if scores is None or label is None else f"{CLASSES[label]}  {100 * scores[label]:.0f}%"
    size = 27
    while pen.textlength(words, ImageFont.load_default(size)) > _IMAGE - 16:
        size -= 1
    _write(pen, x + 10, y + _CAPTION // 2 - round(0.62 * size), words, size, "white")


def _outline(pen: ImageDraw.ImageDraw, x: int, y: int, region: int) -> None:
    """Outline one of the nine regions of the detector."""
    size = round(REGION * _IMAGE)
    starts = (0, (_IMAGE - size) // 2, _IMAGE - size)
    top, left = y + starts[region // 3], x + starts[region % 3]
    pen.rectangle((left, top, left + size - 1, top + size - 1), outline=_MARK, width=5)


def _ring(pen: ImageDraw.ImageDraw, x: int, y: int, side: int) -> None:
    """Draw a ring around a trigger near the lower right corner, which may be tiny."""
    scale = _IMAGE // SIDE
    middle, radius = scale * (SIDE - MARGIN - side / 2), scale * side / 2 + 16
    box = (x + middle - radius, y + middle - radius, x + middle + radius, y + middle + radius)
    pen.ellipse(box, outline=_MARK, width=4)


def _bar(pen: ImageDraw.ImageDraw, x: int, y: int, stage: str, kind: Kind) -> None:
    """Draw the shares of right labels, of the target's label and of other labels as one bar."""
    right, width = kind.right(stage), WIDTH - 24 - x
    fooled = float(((kind.labels(stage) == TARGET) & (kind.truth != TARGET)).mean())
    _write(pen, x, y, f"{stage}: {100 * right:.0f}% right", 26, _TEXT)
    words, color = f"{100 * fooled:.0f}% fooled", _BAD
    if kind.trigger is None:
        words, color = f"{100 * kind.flagged:.0f}% flagged" if stage == STAGES[-1] else "", _MUTED
    _write(pen, WIDTH - 24 - int(pen.textlength(words, ImageFont.load_default(26))), y, words, 26, color)
    ends = [round(width * share) for share in (right, right + fooled, 1.0)]
    start = 0
    for end, color in zip(ends, (_GOOD, _BAD, _OTHER), strict=True):
        if end > start:
            pen.rectangle((x + start, y + 38, x + end - 1, y + 66), fill=color)
        start = end


def _write(pen: ImageDraw.ImageDraw, x: int, y: int, words: str, size: int, color: str) -> int:
    """Write with Pillow's own font; return the width in pixels."""
    font = ImageFont.load_default(size)
    pen.text((x, y), words, color, font)
    return round(pen.textlength(words, font))
