"""The tables that bench/defense.py can fill: attacks, defenses and the number of test images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.defenses.registry import DefenseSpec

#: The paper's three attacks, and the others that we add: the released code's patch size, gray patches, a blend of low
#: frequency, a warp, and a clean-label sinusoid.
PAPER_ATTACKS = ("badnets", "blended", "physicalba")
ALL_ATTACKS = (*PAPER_ATTACKS, "badnets3", "white", "checkerboard", "blended-smooth", "wanet", "sig")


@dataclass(frozen=True)
class Table:
    """The attacks and the defenses of a table."""

    attacks: tuple[str, ...]
    defenses: tuple[DefenseSpec, ...]
    about: str
    #: test images by default; slow defenses have rows of their own on fewer
    images: int = 1000

    @property
    def row_names(self) -> tuple[str, ...]:
        """The defenses as rows name them."""
        return tuple(map(str, self.defenses))


def _zip(name: str = "zip", **options: Any) -> DefenseSpec:
    return DefenseSpec(name, options)


def _named(*names: str, **options: Any) -> tuple[DefenseSpec, ...]:
    return tuple(DefenseSpec(name, options) for name in names)


def _paper(transforms: Iterable[str]) -> tuple[DefenseSpec, ...]:
    """ZIP with the paper's settings but these transforms."""
    return tuple(DefenseSpec("zip-paper", {"transforms": t}) for t in transforms)


_PAPER_ZIP, _FAST = _zip("zip-paper"), _zip(preset="fast")
_JOINT = _zip("zip-paper", transforms="blur2+gray", combine="joint")
_GUARD = DefenseSpec("guard", {"preset": "fast"})
_TRANSFORMS = ("blur2", "blur4", "blur8", "gray", "blur2+gray")
_DIFFUSION = ("diffpure", "blur+diffpure", "ddnm", "blur+ddnm")
TABLES: dict[str, Table] = {
    "table1": Table(
        ALL_ATTACKS,
        (*_named("none", "shrinkpad", "blur"), _PAPER_ZIP, _zip(), _FAST),
        "Table 1: all attacks",
    ),
    "table2": Table(
        PAPER_ATTACKS,
        (*_named("none"), *_paper(_TRANSFORMS), _JOINT),
        "Table 2: ZIP with different transforms",
    ),
    "table3": Table(PAPER_ATTACKS, (*_named("none", "bdmae"), _PAPER_ZIP), "Table 3: BDMAE"),
    "table4": Table(
        ("enhanced-badnets", "enhanced-blended"),
        (*_named("none", "shrinkpad", "blur"), *_paper(("blur2+gray", "blur2", "gray"))),
        "Table 4: enhanced attacks, poisoned with triggered images that ZIP (blur2+gray) purified",
    ),
    "table6": Table(
        PAPER_ATTACKS,
        (*_named("none", *_DIFFUSION, "sampdetox"), *_named("sampdetox", range255=True), _PAPER_ZIP),
        "Table 6: restoration and purification methods with ZIP's transforms, steps and schedule",
    ),
    "published": Table(
        PAPER_ATTACKS,
        (*_named("none"), _PAPER_ZIP, *_named(*_DIFFUSION, "sampdetox", published=True), _zip("zip-paper", steps=1000)),
        "The baselines at their published numbers of steps, ZIP by Algorithm 1, ZIP with 20 steps on the same images",
        images=100,
    ),
    "lambda": Table(
        ("badnets", "blended"),
        tuple(_zip(preset="fast", transforms="blur2+gray", lam=float(lam)) for lam in (0.5, 1, 2, 5, 10, 20, 50)),
        "CA, ASR and PA over lambda, with 4 steps",
    ),
    "steps": Table(
        PAPER_ATTACKS,
        (*(_zip(start=400, steps=n) for n in (1, 2, 3, 4, 6, 9)), _zip()),
        "CA, ASR and PA over the number of steps",
    ),
    "guarded": Table(
        ("badnets", "blended", "white"),
        (*(DefenseSpec("guard", {"start": 400, "steps": n}) for n in (1, 2, 9)), _GUARD, *_named("guard")),
        "CA, ASR and PA behind the guard over the number of steps for flagged images",
    ),
    "agnostic": Table(
        (*ALL_ATTACKS, "redundant", "enhanced-badnets", "enhanced-blended"),
        (*_named("none", "shrinkpad", "blur"), _zip(), _FAST,
         _zip(preset="fast", transforms="blur2", lam=10.0), _zip(preset="fast", transforms="gray", lam=2.0),
         _zip(preset="fast", transforms="blur2|gray|blur2+gray|blur4+gray", lam=10.0),
         DefenseSpec("guard", {"scaleup": True, "preset": "fast"}), _GUARD,
         DefenseSpec("guard", {"calibrated": True, "preset": "fast"})),
        "One setting for every attack",
    ),
    "quick": Table(
        ("badnets",),
        (*_named("none", "shrinkpad", "blur", *_DIFFUSION, "sampdetox", "bdmae"), *_paper(_TRANSFORMS), _JOINT, _zip(),
         _FAST, _GUARD),
        "One attack, all defenses",
        images=200,
    ),
}  # fmt: skip
