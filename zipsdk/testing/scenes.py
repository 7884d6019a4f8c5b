"""Render photographs of road signs: a background, a sign in perspective, light, and a camera."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zipsdk.testing.signs import SIDE as TEMPLATE
from zipsdk.testing.signs import template
from zipsdk.types import F64, U8

#: Side of an image in pixels; signs are placed at twice the size.
SIDE = 64
_SCENE = 2 * SIDE
#: Half the size of a sign, as a share of the image's side.
_RADIUS = (0.27, 0.42)


def render(label: int, rng: np.random.Generator) -> U8:
    """Render one image of a sign, uint8 (SIDE, SIDE, 3); everything but its class is drawn from `rng`."""
    scene = Image.fromarray(_background(rng)).resize((_SCENE, _SCENE), Image.Resampling.NEAREST)
    radius = rng.uniform(*_RADIUS) * _SCENE
    slack = max(0.0, _SCENE / 2 - radius)
    x, y = _SCENE / 2 + rng.uniform(-0.9, 0.9, 2) * slack
    _draw_pole(scene, x, y, radius, rng)
    _place(scene, label, x, y, radius, rng)
    small = scene.resize((SIDE, SIDE), Image.Resampling.BOX)
    lit = _light(np.asarray(small, np.float64) / 255, rng)
    return _photograph(lit, rng)


def _clouds(rng: np.random.Generator, finest: int, roughness: float) -> F64:
    """Sum random patterns of 3, 6, 12, ... up to `finest` cells; (SIDE, SIDE), mean 0, mostly within -1 to 1."""
    total = np.zeros((SIDE, SIDE))
    cells, weight, norm = 3, 1.0, 0.0
    while cells <= finest:
        layer = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += weight * np.asarray(layer.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        norm += weight**2
        cells, weight = 2 * cells, weight * roughness
    return total / math.sqrt(norm)


def _background(rng: np.random.Generator) -> U8:
    """Compose sky, foliage or walls, and ground, uint8 (SIDE, SIDE, 3)."""
    down = np.linspace(0, 1, SIDE)[:, None, None]
    top, low = _shade(rng, (75, 115, 180), (160, 180, 205)), _shade(rng, (170, 185, 200), (232, 236, 240))
    scene = top + (low - top) * down + 18 * _clouds(rng, 12, 0.6)[..., None]
    kind = rng.choice(("foliage", "walls", "hills"))
    if kind == "foliage":
        green = _shade(rng, (38, 62, 25), (95, 120, 60))
        leaves = green + (_clouds(rng, 48, 0.85)[..., None] * rng.uniform(25, 55) * (0.9, 1.0, 0.6))
        edge = rng.uniform(-0.4, 0.6) + 0.25 * _clouds(rng, 12, 0.7)
        scene = np.where((down[..., 0] > edge)[..., None], leaves, scene)
    elif kind == "walls":
        for _ in range(rng.integers(1, 4)):
            left, width = rng.uniform(-0.2, 0.8), rng.uniform(0.25, 0.7)
            roof = rng.uniform(0, 0.5)
            columns = slice(max(0, int(left * SIDE)), max(0, int((left + width) * SIDE)))
            wall = scene[int(roof * SIDE) :, columns]
            wall[:] = _shade(rng, (125, 85, 70), (205, 195, 180)) + 8 * rng.normal(size=(*wall.shape[:2], 1))
            step, size = rng.integers(7, 13), rng.integers(3, 6)
            for r in range(2, wall.shape[0] - size, step):
                for c in range(2, wall.shape[1] - size, step):
                    wall[r : r + size + 1, c : c + size] = rng.uniform(40, 110)
    else:
        ridge = rng.uniform(0.35, 0.7) + 0.12 * _clouds(rng, 6, 0.5)[0]
        hills = _shade(rng, (62, 82, 58), (130, 140, 110)) + 14 * _clouds(rng, 24, 0.8)[..., None]
        scene = np.where((down[..., 0] > ridge)[..., None], hills, scene)
    ground = _shade(rng, (80, 80, 78), (140, 134, 124)) + 12 * _clouds(rng, 48, 0.9)[..., None]
    scene = np.where(down > rng.uniform(0.75, 1.1), ground, scene)
    return np.clip(scene, 0, 255).astype(np.uint8)


def _shade(rng: np.random.Generator, dark: tuple[int, int, int], bright: tuple[int, int, int]) -> F64:
    """Draw a color between two colors, and vary it a little."""
    shade: F64 = np.array(dark) + rng.random() * np.subtract(bright, dark) + rng.uniform(-7, 7, 3)
    return shade


def _draw_pole(scene: Image.Image, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    gray = int(rng.uniform(90, 170))
    width, lean = radius * rng.uniform(0.07, 0.12), rng.uniform(-0.04, 0.04) * _SCENE
    bottom = _SCENE + 1
    outline = [(x - width, y), (x + width, y), (x + width + lean, bottom), (x - width + lean, bottom)]
    ImageDraw.Draw(scene).polygon(outline, fill=(gray, gray, gray + 4))


def _place(scene: Image.Image, label: int, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    """Paste the sign in perspective."""
    angle = math.radians(rng.uniform(-9, 9))
    squeeze = rng.uniform(0.82, 1.0)  # seen from the side
    corners = np.array([(-squeeze, -1), (squeeze, -1), (squeeze, 1), (-squeeze, 1)])
    corners += rng.uniform(-0.07, 0.07, (4, 2))
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    target = corners @ turn.T * radius + (x, y)
    source = [(0, 0), (TEMPLATE, 0), (TEMPLATE, TEMPLATE), (0, TEMPLATE)]
    sign = template(label)
    placed = sign.transform(
        (_SCENE, _SCENE), Image.Transform.PERSPECTIVE, _homography(target, source), Image.Resampling.BILINEAR
    )
    scene.paste(placed, (0, 0), placed)


def _homography(to: F64, source: list[tuple[int, int]]) -> list[float]:
    """Return the eight coefficients that map the points of `to` to those of `source`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(to, source, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    return [float(c) for c in np.linalg.solve(np.array(rows), np.array(values, np.float64))]


def _light(scene: F64, rng: np.random.Generator) -> F64:
    """Change exposure, color temperature and contrast, and add a soft shadow; (SIDE, SIDE, 3) in [0, 1]."""
    warmth = rng.uniform(-0.08, 0.08)
    gain = rng.uniform(0.7, 1.25) * np.array([1 + warmth, 1, 1 - warmth])
    lit = np.clip(scene * gain, 0, 1) ** rng.uniform(0.8, 1.25)
    if rng.random() < 0.5:
        across = rng.uniform(-1, 1, 2) @ np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].reshape(2, -1)
        shadow = 1 / (1 + np.exp(-8 * (across - rng.uniform(-0.5, 0.5)))).reshape(SIDE, SIDE, 1)
        lit = lit * (1 - rng.uniform(0.15, 0.5) * shadow)
    return lit


def _photograph(scene: F64, rng: np.random.Generator) -> U8:
    """Blur as a lens does, and add the noise of a sensor; uint8."""
    image = Image.fromarray(np.rint(255 * scene).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))
    noisy = np.asarray(image, np.float64) + rng.normal(0, rng.uniform(1, 7), (SIDE, SIDE, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
