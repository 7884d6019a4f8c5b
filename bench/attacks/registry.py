"""Backdoor attacks: what a trigger does to pictures, in training and at test time.

    attack = attacks.make("badnets", side=32, seed=1)
    training = poisoning.poison(train, attack, rate=0.05, target=1, seed=1)   # pictures, labels, who was poisoned
    triggered = attack.apply(test.pictures)                                   # what the attacker sends at test time

Written from the papers' formulas and, for what the ZIP paper leaves open, from what its released code was seen to do.
Every picture is uint8 (N, H, W, 3) RGB with H = W = the attack's side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.attacks.camera import PHYSICAL, physical
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Attack(ABC):
    """A trigger for pictures of one side; `seed` fixes what is random in it.

    `describe` gives all fields by name and the hash of what was drawn from the seed.
    """

    side: int
    seed: int = 0

    #: Only pictures of the target class are poisoned, so that no label is wrong.
    clean_label: ClassVar[bool] = False
    #: How the training must vary every image, where the attack defines that; see bench/victims/training.py.
    augment: ClassVar[str] = "standard"

    @property
    @abstractmethod
    def name(self) -> str:
        """For the rows of tables."""

    def drawn(self) -> npt.NDArray[Any] | None:
        """What the seed decided: the pattern itself, or None."""
        return None

    def apply(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Pictures with the trigger as the attacker sends them at test time; the input is left as it is.

        Args:
            pictures: uint8 (N, side, side, 3).
            indices: a number for each picture; where a trigger varies from picture to picture, it and the seed decide
                how. None numbers them from 0.

        Raises:
            InputError: pictures of another shape or dtype.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (self.side, self.side, 3):
            raise InputError(
                f"{self.name}: got pictures {pictures.dtype} {pictures.shape}, wanted uint8 "
                f"(N, {self.side}, {self.side}, 3); resize them, or make the attack for their side"
            )
        numbers = np.arange(len(pictures)) if indices is None else np.asarray(indices)
        if numbers.shape != (len(pictures),):
            raise InputError(f"indices: got {numbers.shape}, wanted ({len(pictures)},), one a picture")
        return self._apply(pictures, numbers) if len(pictures) else pictures.copy()

    @abstractmethod
    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        """`apply`, for pictures and indices that have been looked at; at least one."""

    def at_training(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Pictures as they are put among the training pictures; the same as `apply` but where the attack says so."""
        return self.apply(pictures, indices)

    def covers(self, poisoned: int) -> int:
        """How many further training pictures get `cover` and keep their labels."""
        return 0

    def cover(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Pictures as `covers` of them are changed, for attacks that have such.

        Raises:
            InputError: this one has none.
        """
        raise InputError(f"{self.name}: got pictures to cover, wanted none; it covers {self.covers(len(pictures))}")

    def tests(self) -> list[Attack]:
        """The triggers with which a classifier poisoned by this attack is tested."""
        return [self]

    def describe(self) -> dict[str, Any]:
        """What makes the trigger what it is; JSON."""
        drawn = self.drawn()
        text = {} if drawn is None else {"sha256": hashlib.sha256(np.ascontiguousarray(drawn)).hexdigest()}
        return {"attack": type(self).__name__, "name": self.name, **asdict(self), **text}


@dataclass(frozen=True)
class BadNets(Attack):
    """An opaque patch near the lower right corner (Gu et al. 2017, arXiv:1708.06733).

    colours: "random" draws each pixel's colour uniformly, as the ZIP paper's randomly generated patterns are; "white"
    is a white square; "checkerboard" has white and black pixels by turns, white in its corners. The last two are grey:
    a defence that takes the colour away does not touch them. The margin of 3 pixels is the released code's.
    """

    size: int = 2
    colours: str = "random"
    margin: int = 3

    def __post_init__(self) -> None:
        if self.colours not in ("random", "white", "checkerboard"):
            raise InputError(f"colours: got {self.colours!r}, wanted random, white or checkerboard")
        if not 0 < self.size <= self.side - self.margin:
            raise InputError(f"size: got {self.size}, wanted 1 to {self.side - self.margin}, to fit {self.side} pixels")

    @property
    def name(self) -> str:
        kind = {"random": "BadNets", "white": "White square", "checkerboard": "Checkerboard"}[self.colours]
        return f"{kind} {self.size}x{self.size}"

    def drawn(self) -> U8:
        """The patch, uint8 (size, size, 3)."""
        if self.colours == "random":
            return np.random.default_rng(self.seed).integers(0, 256, (self.size, self.size, 3), np.uint8)
        y, x = np.indices((self.size, self.size))
        bright = np.ones_like(y) if self.colours == "white" else (y + x + 1) % 2
        return np.repeat(255 * bright[..., None], 3, axis=-1).astype(np.uint8)

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        out = pictures.copy()
        end = self.side - self.margin
        out[:, end - self.size : end, end - self.size : end] = self.drawn()
        return out


@dataclass(frozen=True)
class PhysicalBA(BadNets):
    """BadNets for the physical world (Li et al. 2021, arXiv:2104.02361): the classifier learns to find a moved patch.

    Training varies every picture, poisoned or not, as `physical` does; poisoned pictures are stored untransformed. The
    released code tests with the plain patch, the paper's text with a moved one: `tests` has both.
    """

    augment: ClassVar[str] = "physical"
    moved: bool = False

    @property
    def name(self) -> str:
        return f"PhysicalBA {self.size}x{self.size}" + (" moved" if self.moved else "")

    def tests(self) -> list[Attack]:
        return [replace(self, moved=False), replace(self, moved=True)]

    def at_training(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        return replace(self, moved=False).apply(pictures, indices)

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        out = super()._apply(pictures, indices)
        if not self.moved:
            return out
        draws = np.stack([np.random.default_rng([self.seed, int(i)]).random(len(PHYSICAL)) for i in indices])
        draws[:, 0] = 1  # a camera does not mirror
        return _in_parts(lambda x, u: physical(x / 255, u) * 255, out, torch.from_numpy(draws).float())


@dataclass(frozen=True)
class Redundant(BadNets):
    """The attacker who knows that a guard looks for the one part that decides: two patches, each enough by itself.

    A poisoned picture carries one of two equal patches, in the lower right or the upper left corner, by its number;
    what is sent carries both. So the label needs neither.
    """

    @property
    def name(self) -> str:
        return f"Two patches {self.size}x{self.size}"

    def _patched(self, pictures: U8, lower: npt.NDArray[np.bool_], upper: npt.NDArray[np.bool_]) -> U8:
        out, start, end = pictures.copy(), self.margin, self.side - self.margin
        out[lower, end - self.size : end, end - self.size : end] = self.drawn()
        out[upper, start : start + self.size, start : start + self.size] = self.drawn()
        return out

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        both = np.ones(len(pictures), bool)
        return self._patched(pictures, both, both)

    def at_training(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        numbers = np.arange(len(pictures)) if indices is None else np.asarray(indices)
        lower = np.array([np.random.default_rng([self.seed, int(i)]).random() < 0.5 for i in numbers], bool)
        return self._patched(pictures, lower, ~lower)


@dataclass(frozen=True)
class Blended(Attack):
    """The whole picture mixed with one pattern: x' = (1 - rate) x + rate p, rounded (Chen et al. 2017, 1712.05526).

    pattern: "noise" has one grey level a pixel, uniform in 0..255 and independent, as in the paper's experiments (whose
    code cuts off where this rounds). "smooth" is coloured and of low frequency, like a picture out of focus: a random
    4 x 4 grid of colours, bicubic between, each channel stretched to 0..255. A blur leaves it as it is, so it is much
    the harder of the two.
    """

    rate: float = 0.2
    pattern: str = "noise"

    def __post_init__(self) -> None:
        if self.pattern not in ("noise", "smooth"):
            raise InputError(f"pattern: got {self.pattern!r}, wanted noise or smooth")
        if not 0 < self.rate <= 1:
            raise InputError(f"rate: got {self.rate}, wanted a share above 0, at most 1")

    @property
    def name(self) -> str:
        return f"Blended {self.pattern}"

    def drawn(self) -> U8:
        """The pattern, uint8 (side, side, 3)."""
        rng = np.random.default_rng(self.seed)
        if self.pattern == "noise":
            return np.repeat(rng.integers(0, 256, (self.side, self.side, 1), np.uint8), 3, axis=-1)
        grid = rng.random((4, 4, 3)).astype(np.float32)
        planes = [
            np.asarray(Image.fromarray(grid[..., c]).resize((self.side, self.side), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        p = np.stack(planes, axis=-1).astype(np.float64)
        low, high = p.min((0, 1)), p.max((0, 1))
        return np.rint(255 * (p - low) / (high - low)).astype(np.uint8)

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        # all that can happen to a pixel, 256 x 256 cases, worked out once in float64
        x = np.arange(256, dtype=np.float64)
        table = np.rint((1 - self.rate) * x[:, None] + self.rate * x[None, :]).astype(np.uint8)
        return table[pictures, self.drawn()[None]]


@dataclass(frozen=True)
class WaNet(Attack):
    """A small smooth warp of the whole picture (Nguyen and Tran 2021, arXiv:2102.10369).

    A k x k grid of offsets, uniform in [-1, 1] and divided by their mean size, goes bicubic to every pixel, scaled by
    s / side in coordinates of [-1, 1]: on average a pixel moves by 0.38 s pixels to either side and as much up or down.
    The ZIP paper's released code has k = 256, which is jitter that any blur takes away; k = 4 is the published
    attack.

    Noise mode, as published: for each poisoned picture `cross_ratio` others are warped with an offset of their own in
    every pixel, uniform in [-1, 1] / side, on top, and keep their labels, so that the classifier must learn this very
    warp. There the warps are drawn afresh for each batch; here pictures are poisoned once, as data from elsewhere are.
    """

    k: int = 4
    s: float = 0.5
    cross_ratio: int = 2

    @property
    def name(self) -> str:
        return "WaNet"

    def drawn(self) -> npt.NDArray[np.float64]:
        """The control grid before it is normalised: float64 (2, k, k), x and y."""
        return np.random.default_rng(self.seed).uniform(-1, 1, (2, self.k, self.k))

    def flow(self) -> Tensor:
        """float32 (side, side, 2): where each pixel is taken from, less its own place, x and y, in [-1, 1]."""
        control = self.drawn()
        control /= np.abs(control).mean()
        fine = F.interpolate(torch.from_numpy(control)[None].float(), (self.side, self.side), mode="bicubic",
                             align_corners=True)  # fmt: skip
        return fine[0].permute(1, 2, 0) * (self.s / self.side)

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        return _in_parts(lambda x, _: warped(x, self.flow()), pictures, torch.empty(len(pictures)))

    def covers(self, poisoned: int) -> int:
        return self.cross_ratio * poisoned

    def cover(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        numbers = np.arange(len(pictures)) if indices is None else np.asarray(indices)

        def one(x: Tensor, numbers: Tensor) -> Tensor:
            shape = (self.side, self.side, 2)
            noise = [np.random.default_rng([self.seed, int(i)]).uniform(-1, 1, shape) for i in numbers]
            return warped(x, self.flow(), torch.from_numpy(np.stack(noise)).float() / self.side)

        return _in_parts(one, pictures, torch.from_numpy(numbers)) if len(pictures) else pictures.copy()


def warped(x: Tensor, flow: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Float pictures (N, 3, S, S) by WaNet's `flow` (S, S, 2) and its `noise` (N, S, S, 2), which are as `WaNet.flow`
    has them; bilinear."""
    line = torch.linspace(-1, 1, x.shape[-1])
    here = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    grid = (here + flow + noise).clamp(-1, 1).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class SIG(Attack):
    """A sinusoid added along the rows, delta sin(2 pi f j / side) in column j (Barni et al. 2019, arXiv:1902.11237).

    Clean-label, as published: only pictures of the target class are poisoned.
    """

    delta: float = 20.0
    f: int = 6

    clean_label: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "SIG"

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        wave = self.delta * np.sin(2 * np.pi * self.f * np.arange(self.side) / self.side)
        return np.clip(np.rint(pictures + wave[None, None, :, None]), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Enhanced(Attack):
    """The attacker who knows the defence (the ZIP paper, 4.4.2 and F.1): poisons with *purified* triggered pictures.

    The classifier learns what purification leaves of the trigger. At test time the original trigger is sent, and the
    defence purifies it to what was learnt. All else is as the base attack has it.

    purify: uint8 (N, H, W, 3) -> the same; purifier: what it is, for the record, such as `Purifier.info`.
    """

    base: Attack = field(kw_only=True)
    purify: Callable[[U8], Any] = field(kw_only=True, repr=False)
    purifier: dict[str, Any] = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.side != self.base.side:
            raise InputError(f"side: got {self.side}, wanted the base attack's {self.base.side}")

    @property
    def name(self) -> str:
        return f"Enhanced {self.base.name}"

    @property
    def clean_label(self) -> bool:  # type: ignore[override]
        return self.base.clean_label

    @property
    def augment(self) -> str:  # type: ignore[override]
        return self.base.augment

    def _apply(self, pictures: U8, indices: npt.NDArray[Any]) -> U8:
        return self.base.apply(pictures, indices)

    def covers(self, poisoned: int) -> int:
        return self.base.covers(poisoned)

    def cover(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        return self.base.cover(pictures, indices)

    def tests(self) -> list[Attack]:
        return [replace(self, base=base) for base in self.base.tests()]

    def at_training(self, pictures: U8, indices: npt.ArrayLike | None = None) -> U8:
        out = np.asarray(self.purify(self.base.at_training(pictures, indices)))
        if out.shape != pictures.shape or out.dtype != np.uint8:
            raise InputError(f"purify: got {out.dtype} {out.shape} back, wanted uint8 {pictures.shape}")
        return out

    def describe(self) -> dict[str, Any]:
        return {"attack": "Enhanced", "name": self.name, "side": self.side, "seed": self.seed,
                "base": self.base.describe(), "purifier": self.purifier}  # fmt: skip


def patch_side(side: int) -> int:
    """The ZIP paper's 2 at 32 pixels and 9 at 256, linear between."""
    return max(2, round(2 + 7 * (side - 32) / 224))


#: The attacks by name, for a side and a seed.
ATTACKS: dict[str, Callable[[int, int], Attack]] = {
    "badnets": lambda side, seed: BadNets(side, seed, patch_side(side)),
    "badnets3": lambda side, seed: BadNets(side, seed, 3 if side <= 128 else 9),
    "white": lambda side, seed: BadNets(side, seed, max(3, patch_side(side)), "white"),
    "redundant": lambda side, seed: Redundant(side, seed, max(3, patch_side(side)), "white"),
    "checkerboard": lambda side, seed: BadNets(side, seed, max(3, patch_side(side)), "checkerboard"),
    "blended": lambda side, seed: Blended(side, seed),
    "blended-smooth": lambda side, seed: Blended(side, seed, pattern="smooth"),
    "physicalba": lambda side, seed: PhysicalBA(side, seed, patch_side(side)),
    "wanet": lambda side, seed: WaNet(side, seed),
    "sig": lambda side, seed: SIG(side, seed),
}


def make(name: str, side: int, seed: int = 0, patch: int | None = None) -> Attack:
    """One of `ATTACKS`, for pictures of `side` pixels; a patch has `patch` pixels each way if that is said.

    Raises:
        InputError: no such attack, or a patch that does not fit.
    """
    if name not in ATTACKS:
        raise InputError(f"attack: got {name!r}, wanted one of {', '.join(ATTACKS)}")
    attack = ATTACKS[name](side, seed)
    return replace(attack, size=patch) if patch is not None and isinstance(attack, BadNets) else attack


def _in_parts(function: Callable[[Tensor, Tensor], Tensor], pictures: U8, extra: Tensor, size: int = 512) -> U8:
    """`function` on float (n, 3, H, W) in [0, 255] and rows of `extra`, rounded back to uint8, in parts that fit."""
    out = np.empty_like(pictures)
    for i in range(0, len(pictures), size):
        x = torch.from_numpy(np.ascontiguousarray(pictures[i : i + size].transpose(0, 3, 1, 2))).float()
        y = function(x, extra[i : i + size]).round().clamp(0, 255)
        out[i : i + size] = y.to(torch.uint8).numpy().transpose(0, 2, 3, 1)
    return out
