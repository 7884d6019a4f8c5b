"""Draw road signs as templates that `zipsdk.testing.scenes` puts into scenes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from PIL import Image, ImageDraw, ImageFont

#: The classes, in the order of the labels.
CLASSES = ("stop", "yield", "no entry", "speed limit 30", "speed limit 50", "speed limit 80", "keep right",
           "pedestrian crossing", "priority road", "traffic signals")  # fmt: skip
#: Side of a template in pixels, about the largest size in a scene, and how much larger it is drawn, for smooth edges.
SIDE, SUPERSAMPLING = 112, 6
#: Coordinates of the drawings: the template reaches from -1 to 1 along both axes.
_SCALE = SIDE * SUPERSAMPLING / 2
_RED, _BLUE, _YELLOW = (190, 25, 35), (20, 80, 165), (248, 190, 20)
_WHITE, _BLACK = (245, 245, 242), (25, 25, 28)

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


@cache
def template(label: int) -> Image.Image:
    """Draw the sign of a class on a transparent background, as an RGBA image of `SIDE` x `SIDE` pixels."""
    page = Image.new("RGBA", (SIDE * SUPERSAMPLING,) * 2)
    _DRAW[CLASSES[label]](_Pen(page))
    return page.resize((SIDE, SIDE), Image.Resampling.BOX)


class _Pen:
    """Draw shapes in coordinates from -1 to 1; y points down."""

    def __init__(self, page: Image.Image):
        self._draw = ImageDraw.Draw(page)

    def disc(self, radius: float, color: Color, x: float = 0.0, y: float = 0.0) -> None:
        self.polygon(_regular(64, radius, 0.0, x, y), color)

    def polygon(self, points: Points, color: Color) -> None:
        self._draw.polygon([((x + 1) * _SCALE, (y + 1) * _SCALE) for x, y in points], fill=color)

    def bar(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def text(self, words: str, height: float, color: Color, weight: float) -> None:
        """Write centered text of this font size; `weight` is the width of the outline that makes it bold."""
        font = ImageFont.load_default(height * _SCALE)
        bold = round(weight * _SCALE)
        left, top, right, bottom = self._draw.textbbox((0, 0), words, font, stroke_width=bold)
        at = (_SCALE - (left + right) / 2, _SCALE - (top + bottom) / 2)
        self._draw.text(at, words, color, font, stroke_width=bold, stroke_fill=color)


def _regular(corners: int, radius: float, turn: float, x: float = 0.0, y: float = 0.0) -> Points:
    """Return the corners of a regular polygon; `turn` is the angle of the first corner in degrees."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _stop(pen: _Pen) -> None:
    pen.polygon(_regular(8, 1.0, 22.5), _WHITE)
    pen.polygon(_regular(8, 0.93, 22.5), _RED)
    pen.text("STOP", 0.6, _WHITE, 0.025)


def _yield(pen: _Pen) -> None:
    pen.polygon(_regular(3, 1.1, 90, y=-0.28), _RED)
    pen.polygon(_regular(3, 0.62, 90, y=-0.28), _WHITE)


def _no_entry(pen: _Pen) -> None:
    pen.disc(0.96, _WHITE)
    pen.disc(0.9, _RED)
    pen.bar(-0.65, -0.17, 0.65, 0.17, _WHITE)


def _speed_limit(pen: _Pen, limit: str) -> None:
    pen.disc(0.97, _RED)
    pen.disc(0.74, _WHITE)
    pen.text(limit, 1.0, _BLACK, 0.035)


def _keep_right(pen: _Pen) -> None:
    pen.disc(0.97, _WHITE)
    pen.disc(0.91, _BLUE)
    # an arrow to the lower right
    pen.polygon([(-0.57, -0.35), (-0.35, -0.57), (0.29, 0.07), (0.07, 0.29)], _WHITE)
    pen.polygon([(0.55, 0.55), (0.55, -0.22), (-0.22, 0.55)], _WHITE)


def _pedestrian_crossing(pen: _Pen) -> None:
    pen.bar(-0.92, -0.92, 0.92, 0.92, _WHITE)
    pen.bar(-0.86, -0.86, 0.86, 0.86, _BLUE)
    pen.polygon([(0, -0.72), (0.78, 0.66), (-0.78, 0.66)], _WHITE)
    pen.disc(0.1, _BLACK, 0.02, -0.3)
    pen.polygon([(-0.08, -0.18), (0.12, -0.18), (0.16, 0.16), (-0.06, 0.16)], _BLACK)
    for foot, knee in (((-0.26, 0.5), -0.02), ((0.28, 0.5), 0.1)):
        pen.polygon([(knee - 0.06, 0.12), (knee + 0.08, 0.12), (foot[0] + 0.08, 0.5), (foot[0] - 0.06, 0.5)], _BLACK)
    pen.polygon([(-0.06, -0.18), (0.0, -0.1), (-0.28, 0.14), (-0.34, 0.07)], _BLACK)
    pen.polygon([(0.1, -0.18), (0.04, -0.1), (0.28, 0.14), (0.34, 0.07)], _BLACK)


def _priority_road(pen: _Pen) -> None:
    pen.polygon(_regular(4, 1.0, 0), _BLACK)
    pen.polygon(_regular(4, 0.96, 0), _WHITE)
    pen.polygon(_regular(4, 0.64, 0), _YELLOW)


def _traffic_signals(pen: _Pen) -> None:
    pen.polygon(_regular(3, 1.1, 30, y=0.28), _RED)
    pen.polygon(_regular(3, 0.76, 30, y=0.28), _WHITE)
    pen.bar(-0.16, -0.2, 0.16, 0.6, _BLACK)
    for y, color in ((-0.06, (225, 40, 40)), (0.2, _YELLOW), (0.46, (40, 175, 80))):
        pen.disc(0.12, color, 0.0, y)


_DRAW: dict[str, Callable[[_Pen], None]] = {
    "stop": _stop,
    "yield": _yield,
    "no entry": _no_entry,
    "speed limit 30": lambda pen: _speed_limit(pen, "30"),
    "speed limit 50": lambda pen: _speed_limit(pen, "50"),
    "speed limit 80": lambda pen: _speed_limit(pen, "80"),
    "keep right": _keep_right,
    "pedestrian crossing": _pedestrian_crossing,
    "priority road": _priority_road,
    "traffic signals": _traffic_signals,
}
