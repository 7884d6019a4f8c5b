"""The paper's tables: which attacks, which defences, which settings; and what the paper reports, for comparison.

A defence is named by a line of text, as on the command line:

    none, shrinkpad, blur, diffpure, blur+diffpure, ddnm, blur+ddnm, sampdetox, bdmae
                                      what ZIP is compared with; add "published" for the published number of steps,
                                      and "range255" for the data range that SampDetox's released code gives its SSIM
    zip-paper                         ZIP as the paper sets it for this data set and this attack
    zip                               one setting for every attack: what `zipsdk.Purifier(engine)` does
    zip transforms=blur4 lam=2        options of `zipsdk.Purifier`, on top of either
    guard, guard calibrated           `zipsdk.Guard`, that learns from the first pictures it gets, of which 5% have the
                                      trigger, or that is calibrated on clean ones; no row has these pictures; with
                                      "scaleup" that detector in place of its own; options of `zipsdk.Purifier`

"blur" stands for the blur of the paper's setting for the data set and the attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.defenses.base import Defence
from bench.defenses.ddnm import DDNM
from bench.defenses.diffpure import DiffPure
from bench.defenses.guarded import Guarded
from bench.defenses.sampdetox import SampDetox
from bench.defenses.simple import BlurOnly, Nothing, ShrinkPad
from bench.defenses.zip import Zip
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import InputError
from zipsdk.sampling.schedule import PAPER_STEPS
from zipsdk.types import Engine

#: The paper's three attacks, and the others that we add: the released code's patch size, grey patches, a blend of low
#: frequency, a warp, and a clean-label sinusoid.
PAPER_ATTACKS = ("badnets", "blended", "physicalba")
ALL_ATTACKS = (*PAPER_ATTACKS, "badnets3", "white", "checkerboard", "blended-smooth", "wanet", "sig")
ENHANCED = "enhanced-"

#: The paper's Blended gets lambda 2, its patches 10 (appendix E.3). SIG and the smooth pattern are not in the paper;
#: they too are mixed with the whole picture. All else gets 10.
LAMBDA_2 = ("blended", "blended-smooth", "sig")


@dataclass(frozen=True)
class Table:
    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    about: str
    #: test pictures, if nothing is said: what takes long has rows of its own on fewer
    pictures: int = 1000


_ZIP = "zip-paper"
TABLES: dict[str, Table] = {
    "table1": Table(
        ALL_ATTACKS, ("none", "shrinkpad", "blur", _ZIP, "zip", "zip profile=fast"), "Table 1: all attacks"
    ),
    "table2": Table(
        PAPER_ATTACKS,
        ("none", *(f"{_ZIP} transforms={t}" for t in ("blur2", "blur4", "blur8", "gray", "blur2+gray")),
         f"{_ZIP} transforms=blur2+gray combine=joint"),
        "Table 2: ZIP with different transforms",
    ),
    "table3": Table(PAPER_ATTACKS, ("none", "bdmae", _ZIP), "Table 3: BDMAE"),
    "table4": Table(
        ("enhanced-badnets", "enhanced-blended"),
        ("none", "shrinkpad", "blur", *(f"{_ZIP} transforms={t}" for t in ("blur2+gray", "blur2", "gray"))),
        "Table 4: enhanced attacks, poisoned with what ZIP (blur2+gray) makes of triggered pictures",
    ),
    "table6": Table(
        PAPER_ATTACKS,
        ("none", "diffpure", "blur+diffpure", "ddnm", "blur+ddnm", "sampdetox", "sampdetox range255", _ZIP),
        "Table 6: restoration and purification methods with ZIP's transforms, steps and schedule",
    ),
    "published": Table(
        PAPER_ATTACKS,
        ("none", _ZIP,
         *(f"{d} published" for d in ("diffpure", "blur+diffpure", "ddnm", "blur+ddnm", "sampdetox")),
         f"{_ZIP} steps=1000"),
        "The rivals at their published numbers of steps, ZIP by Algorithm 1, and ZIP with 20 steps on these pictures",
        pictures=100,
    ),
    "lambda": Table(
        ("badnets", "blended"),
        tuple(f"zip profile=fast transforms=blur2+gray lam={lam}" for lam in (0.5, 1, 2, 5, 10, 20, 50)),
        "CA, ASR and PA over lambda, with 4 evaluations",
    ),
    "evaluations": Table(
        PAPER_ATTACKS,
        (*(f"zip start=400 steps={n}" for n in (1, 2, 3, 4, 6, 9)), "zip"),
        "CA, ASR and PA over the number of evaluations",
    ),
    "guarded": Table(
        ("badnets", "blended", "white"),
        (*(f"guard start=400 steps={n}" for n in (1, 2, 9)), "guard profile=fast", "guard"),
        "CA, ASR and PA behind the guard over the number of evaluations for what is flagged",
    ),
    "agnostic": Table(
        (*ALL_ATTACKS, "redundant", "enhanced-badnets", "enhanced-blended"),
        ("none", "shrinkpad", "blur", "zip", "zip profile=fast",
         *(f"zip profile=fast preset={p}" for p in ("patch", "blended", "random")),
         "guard scaleup profile=fast", "guard profile=fast", "guard calibrated profile=fast"),
        "One setting for every attack",
    ),
    "quick": Table(
        ("badnets",),
        ("none", "shrinkpad", "blur", "diffpure", "blur+diffpure", "ddnm", "blur+ddnm", "sampdetox", "bdmae",
         *(f"{_ZIP} transforms={t}" for t in ("blur2", "blur4", "blur8", "gray", "blur2+gray")),
         f"{_ZIP} transforms=blur2+gray combine=joint", "zip", "zip profile=fast", "guard profile=fast"),
        "One attack, all defences",
        pictures=200,
    ),
}  # fmt: skip


def preset(dataset: str, attack: str) -> dict[str, Any]:
    """The paper's setting for a data set and an attack.

    CIFAR-10: blur and grey; GTSRB and Imagenette: blur alone (4.1). Imagenette's blur is 2 for BadNets, 4 for Blended
    and PhysicalBA: those rows of Table 1 equal these cells of Table 2. For the others the paper names no size; 2 here.
    lambda: see `LAMBDA_2`. Data sets that the paper does not have are treated as CIFAR-10.
    """
    attack = attack.removeprefix(ENHANCED)
    transforms = {"gtsrb": "blur2", "imagenette": "blur4" if attack in (*LAMBDA_2, "physicalba") else "blur2"}
    return {"transforms": transforms.get(dataset, "blur2+gray"), "lam": 2.0 if attack in LAMBDA_2 else 10.0,
            "preset": "paper"}  # fmt: skip


@dataclass(frozen=True)
class Workshop:
    """What defences are made from."""

    engine: Engine
    dataset: str
    side: int
    #: makes BDMAE, which needs a masked autoencoder; called only where it is wanted
    bdmae: Any = None
    #: gives pictures that no row has, uint8 (N, H, W, 3), for a guard to learn from; called only where they are wanted
    unseen: Any = None

    def make(self, line: str, attack: str) -> Defence | Guarded:
        """The defence that a line of text names, for an attack where its setting depends on that.

        Raises:
            InputError: no such defence or option.
        """
        name, *words = line.split() or [""]
        paper = preset(self.dataset, attack)
        if name in ("zip", "zip-paper"):
            return Zip(self.engine, **{**(paper if name == "zip-paper" else {}), **_options(line, words)})
        if name == "guard":
            how = {"calibrated", "scaleup"} & set(words)
            if len(how) == 2:
                raise InputError(f'defence: got {line!r}, wanted one of "scaleup" and "calibrated"; SCALE-UP is not')
            inner = Zip(self.engine, **_options(line, [w for w in words if w not in how]))
            if "scaleup" in how:
                return Guarded(inner, ScaleUp())
            return Guarded(inner, **{"clean" if "calibrated" in how else "first": self.unseen()})
        if set(words) - {"published", *(["range255"] if name == "sampdetox" else [])}:
            raise InputError(f'defence: got {line!r}, wanted {name} alone or with "published"')
        blur = next(t for t in paper["transforms"].split("+") if t.startswith("blur"))
        t_star = DiffPure.published_t_star(self.side)
        # its published numbers of steps, or as many as ZIP's
        each_t, hundred = (None, 100) if "published" in words else (PAPER_STEPS, PAPER_STEPS)
        makers: dict[str, Any] = {
            "none": Nothing,
            "shrinkpad": ShrinkPad,
            "blur": lambda: BlurOnly(blur),
            "diffpure": lambda: DiffPure(self.engine, t_star, steps=each_t),
            "blur+diffpure": lambda: DiffPure(self.engine, t_star, blur, steps=each_t),
            "ddnm": lambda: DDNM(self.engine, paper["transforms"], steps=hundred),
            "blur+ddnm": lambda: DDNM(self.engine, blur, steps=hundred),
            "sampdetox": lambda: SampDetox(
                self.engine,
                budget=None if "published" in words else PAPER_STEPS,
                data_range=255.0 if "range255" in words else 1.0,
            ),
            "bdmae": self.bdmae,
        }
        if name not in makers:
            raise InputError(f"defence: got {line!r}, wanted one of zip, zip-paper, guard, {', '.join(makers)}")
        defence: Defence = makers[name]()
        return defence


_TYPES: dict[str, Any] = {"transforms": str, "combine": str, "profile": str, "preset": str, "lam": float, "eta": float,
                          "steps": int, "start": int}  # fmt: skip
#: Transforms and lambda of "preset=NAME" in a line. "profile=NAME" in a line is the option `preset` of `Purifier`. The
#: records name their rows so.
_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "patch": {"transforms": "blur2", "lam": 10.0},
    "blended": {"transforms": "gray", "lam": 2.0},
    "random": {"transforms": "blur2|gray|blur2+gray|blur4+gray", "lam": 10.0},
}


def _options(line: str, words: list[str]) -> dict[str, Any]:
    """Options of `Zip`."""
    out: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            out[name] = _TYPES[name](value)
        except (KeyError, ValueError) as e:
            raise InputError(f"defence: got {word!r} in {line!r}, wanted NAME=VALUE with {', '.join(_TYPES)}") from e
    setting = out.pop("preset", "default")
    if setting not in _SETTINGS:
        raise InputError(f"defence: got preset={setting} in {line!r}, wanted one of {', '.join(_SETTINGS)}")
    if "profile" in out:
        out["preset"] = out.pop("profile")
    return {**_SETTINGS[setting], **out}
