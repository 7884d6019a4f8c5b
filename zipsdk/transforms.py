"""Define the linear transforms that destroy a trigger: A, its pseudo-inverse A^+, and the projection P = A^+ A.

The loop needs only P, which keeps the range-space part of an image. A and A^+ serve tests, display of y = A x, and
other methods. Arrays are float (N, 3, H, W); sides are multiples of `divisor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_int
from zipsdk.errors import InputError, ModelError
from zipsdk.models.spec import ModelSpec
from zipsdk.types import Array


@runtime_checkable
class Transform(Protocol):
    """Map images linearly. Any object with these members can be passed to `zipsdk.Purifier`.

    An optional attribute ``local = True`` declares that each cell of `divisor` x `divisor` pixels is transformed alone.
    Large images are then processed in strips of rows, which saves memory; other transforms get whole images.
    """

    @property
    def divisor(self) -> int:
        """Sides must be multiples of this."""

    def forward(self, x: Array) -> Array:
        """Return y = A x."""

    def pinv(self, y: Array) -> Array:
        """Return A^+ y, in the image's shape."""

    def project(self, x: Array) -> Array:
        """Return P x = A^+ A x, a new array of x's shape and dtype."""


@dataclass(frozen=True)
class Blur:
    """Average pooling over n x n cells; A^+ repeats each mean over its cell (paper, appendix C).

    Args:
        n: side of the cells in pixels, at least 2. Images whose sides it does not divide are padded by mirroring.

    Raises:
        InputError: n is below 2, or not an integer.
    """

    n: int
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_int(self.n) or self.n < 2:
            raise InputError(f"Blur: got n={self.n!r}, expected an integer of at least 2, the side of the cells")
        object.__setattr__(self, "n", int(self.n))  # NumPy's integers overflow

    @property
    def divisor(self) -> int:
        return self.n

    def forward(self, x: Array) -> Array:
        n, (*lead, h, w) = self.n, x.shape
        rows = x.reshape(*lead, h // n, n, w)
        # whole rows first, so that the strided additions take 1/n of the data
        total = rows[..., 0, :].copy()
        for i in range(1, n):
            total += rows[..., i, :]
        out = total[..., 0::n].copy()
        for j in range(1, n):
            out += total[..., j::n]
        out *= 1.0 / (n * n)
        return out

    def pinv(self, y: Array) -> Array:
        return np.repeat(np.repeat(y, self.n, axis=-1), self.n, axis=-2)

    def project(self, x: Array) -> Array:
        return self.pinv(self.forward(x))

    def __str__(self) -> str:
        return f"blur{self.n}"


@dataclass(frozen=True)
class Grayscale:
    """Average the three channels; A^+ repeats the mean (paper, appendix C: A = [1/3, 1/3, 1/3], not Rec. 601)."""

    local: ClassVar[bool] = True

    @property
    def divisor(self) -> int:
        return 1

    def forward(self, x: Array) -> Array:
        y = x[:, 0] + x[:, 1]
        y += x[:, 2]
        y *= 1.0 / 3.0
        return y[:, None]

    def pinv(self, y: Array) -> Array:
        return np.repeat(y, 3, axis=1)

    def project(self, x: Array) -> Array:
        return self.pinv(self.forward(x))

    def __str__(self) -> str:
        return "gray"


def _pinv(matrix: npt.ArrayLike, what: str) -> tuple[Array, Array]:
    """Return the matrix in float64 and its Moore-Penrose pseudo-inverse, by SVD."""
    a = np.asarray(matrix, dtype=np.float64)
    if a.ndim != 2 or 0 in a.shape or not np.isfinite(a).all():
        raise InputError(f"Linear: got {what} of shape {a.shape}, expected a finite matrix with rows and columns")
    return a, np.linalg.pinv(a)


class Linear:
    """Apply a matrix to each block of the image; the pseudo-inverse comes from the SVD.

    ``Linear(matrix, block=(h, w))`` flattens each h x w block with its channels, in the order (3, h, w), to a vector of
    3hw values; `matrix` is (m, 3hw). ``Linear(matrix)`` acts on the channels of each pixel: (m, 3).
    ``Linear.separable(rows, columns)`` acts on each channel: y = rows x columns^T for each block; rows is (p, h),
    columns (q, w). A block may be the whole image.

    Raises:
        InputError: no matrix, not finite, shapes that do not match, or a matrix that keeps everything (P = I).
    """

    local = True

    def __init__(self, matrix: npt.ArrayLike, block: tuple[int, int] = (1, 1)):
        sides = tuple(block) if isinstance(block, Iterable) else ()
        if len(sides) != 2 or not all(is_int(n) and n >= 1 for n in sides):
            raise InputError(f"Linear: got block={block!r}, expected (height, width), integers of at least 1")
        h, w = map(int, sides)
        self.block = (h, w)
        self._a, self._pinv = _pinv(matrix, "a matrix")
        if self._a.shape[1] != 3 * h * w:
            raise InputError(
                f"Linear: got a matrix of shape {self._a.shape} for blocks of {h}x{w}, expected {3 * h * w} columns"
            )
        self._p = self._pinv @ self._a
        if np.allclose(self._p, np.eye(len(self._p))):
            raise InputError(
                "Linear: got a matrix that keeps everything, so a trigger passes; expected one of lower rank"
            )

    @staticmethod
    def separable(rows: npt.ArrayLike, columns: npt.ArrayLike) -> SeparableLinear:
        """Return the transform y = rows x columns^T for each block and channel; see the class."""
        return SeparableLinear(rows, columns)

    @property
    def divisor(self) -> int:
        return lcm(*self.block)

    def _blocks(self, x: Array) -> Array:
        n, c, height, width = x.shape
        h, w = self.block
        blocks = x.reshape(n, c, height // h, h, width // w, w).transpose(0, 2, 4, 1, 3, 5)
        return blocks.reshape(n, height // h, width // w, c * h * w)

    def _image(self, blocks: Array) -> Array:
        n, rows, cols, _ = blocks.shape
        h, w = self.block
        return blocks.reshape(n, rows, cols, 3, h, w).transpose(0, 3, 1, 4, 2, 5).reshape(n, 3, rows * h, cols * w)

    def forward(self, x: Array) -> Array:
        """Return y = A x: (N, H/h, W/w, m)."""
        y: Array = self._blocks(x) @ self._a.T.astype(x.dtype)
        return y

    def pinv(self, y: Array) -> Array:
        return self._image(y @ self._pinv.T.astype(y.dtype))

    def project(self, x: Array) -> Array:
        return self._image(self._blocks(x) @ self._p.T.astype(x.dtype))

    def __str__(self) -> str:
        return "linear{}of{}x{}".format(self._a.shape[0], *self.block)

    def __repr__(self) -> str:
        return f"Linear(<{_size(self._a)} matrix>, block={self.block})"


class SeparableLinear:
    """Apply rows x columns^T to each block and channel; made by `Linear.separable`."""

    local = True

    def __init__(self, rows: npt.ArrayLike, columns: npt.ArrayLike):
        (self._r, self._r_pinv), (self._c, self._c_pinv) = _pinv(rows, "rows"), _pinv(columns, "columns")
        self._pr, self._pc = self._r_pinv @ self._r, self._c_pinv @ self._c
        if np.allclose(self._pr, np.eye(len(self._pr))) and np.allclose(self._pc, np.eye(len(self._pc))):
            raise InputError("Linear: got matrices that keep everything, so a trigger passes; expected lower rank")

    @property
    def divisor(self) -> int:
        return lcm(self._r.shape[1], self._c.shape[1])

    @staticmethod
    def _apply(left: Array, x: Array, right: Array) -> Array:
        """Return left x right^T for each block of (left.shape[1], right.shape[1])."""
        n, c, height, width = x.shape
        (p, h), (q, w) = left.shape, right.shape
        y = x.reshape(n, c, height, width // w, w) @ right.T.astype(x.dtype)
        y = y.reshape(n, c, height // h, h, width // w * q)
        out: Array = left.astype(x.dtype) @ y
        return out.reshape(n, c, height // h * p, width // w * q)

    def forward(self, x: Array) -> Array:
        return self._apply(self._r, x, self._c)

    def pinv(self, y: Array) -> Array:
        return self._apply(self._r_pinv, y, self._c_pinv)

    def project(self, x: Array) -> Array:
        return self._apply(self._pr, x, self._pc)

    def __str__(self) -> str:
        return f"linear{self._r.shape[0]}x{self._c.shape[0]}of{self._r.shape[1]}x{self._c.shape[1]}"

    def __repr__(self) -> str:
        return f"Linear.separable(<{_size(self._r)} matrix>, <{_size(self._c)} matrix>)"


def _size(matrix: Array) -> str:
    return "{}x{}".format(*matrix.shape)


def several(given: Transform | Iterable[Transform]) -> tuple[Transform, ...]:
    """Return one transform, or several that act together, as a tuple; `zipsdk.sampling.guidance` checks each.

    Raises:
        InputError: neither a transform nor an iterable.
    """
    if isinstance(given, Transform):
        return (given,)
    if not isinstance(given, Iterable):
        raise InputError(f"transforms: got {given!r}, expected one such as Blur(2), or a list of them")
    return tuple(given)


class OneOf:
    """Draw one of several transforms, or sets of transforms, for each image, by its seed and noise key.

    This is the paper's defense against an attacker who trains on purified images (section 4.4.2): the defender changes
    the transforms. ``OneOf(Blur(2), Blur(4), [Blur(2), Grayscale()])``.

    Args:
        choices: at least 2, each a transform or several that act together.

    Raises:
        InputError: fewer than 2, or a choice that is neither.
    """

    def __init__(self, *choices: Transform | Sequence[Transform]):
        if len(choices) < 2:
            raise InputError(
                f"OneOf: got {len(choices)} choices, expected at least 2; pass a single transform without OneOf"
            )
        self.choices = tuple(several(c) for c in choices)

    def __eq__(self, other: object) -> bool:
        return self.choices == other.choices if isinstance(other, OneOf) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.choices)

    def __repr__(self) -> str:
        return f"OneOf({', '.join(repr(c[0] if len(c) == 1 else list(c)) for c in self.choices)})"

    def __str__(self) -> str:
        return "|".join("+".join(map(str, c)) for c in self.choices)


#: Transforms that "random" draws from for each image: those of the paper, and gray with a coarser blur.
USUAL = "blur2|gray|blur2+gray|blur4+gray"


def parse(text: str) -> list[Transform] | OneOf:
    """Parse names of transforms: blurN and gray, several joined by "+", with "|" between the choices of `OneOf`.

    Examples: "blur2+gray", "blur2|blur4+gray". "random" is `USUAL`.

    Raises:
        InputError: an unknown name.
    """

    def one(name: str) -> Transform:
        if name == "gray":
            return Grayscale()
        if m := re.fullmatch(r"blur(\d{1,4})", name):
            return Blur(int(m[1]))
        where = "" if name == text else f" in {text!r}"
        raise InputError(
            f'transforms: got {name!r}{where}, expected blurN (blur2, ...) or gray, joined by + or |, or "random"'
        )

    plain = text.replace(" ", "").lower()
    choices = [[one(n) for n in part.split("+")] for part in (USUAL if plain == "random" else plain).split("|")]
    return OneOf(*choices) if len(choices) > 1 else choices[0]


def choose_transforms(
    given: Transform | Iterable[Transform] | OneOf | str | None, spec: ModelSpec
) -> tuple[Transform, ...] | OneOf:
    """Return the given transforms; the model's recommendation for None. Text is parsed.

    Raises:
        InputError: neither transforms nor their names.
        ModelError: the model recommends an unknown name.
    """
    if given is None:
        given = recommended(spec)
    elif isinstance(given, str):
        given = parse(given)
    return given if isinstance(given, OneOf) else several(given)


def recommended(spec: ModelSpec) -> list[Transform] | OneOf:
    """Parse the transforms that a model recommends.

    Raises:
        ModelError: an unknown name.
    """
    try:
        return parse("+".join(spec.transforms))
    except InputError as e:
        raise ModelError(f"{spec.name}: model spec: {e}; export the model again") from e
