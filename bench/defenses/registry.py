"""Name defenses and make them.

A `DefenseSpec` names a defense and its options. On the command line and as the name of a result row it is text:

    none, shrinkpad, blur, diffpure, blur+diffpure, ddnm, blur+ddnm, sampdetox, bdmae
                                      the baselines; "published" selects the published number of steps, "range255" the
                                      data range that SampDetox's released code gives its SSIM
    bicubic, bicubic scale=0.75       resized down, by 0.5 unless given, and back up
    sr                                resized down by 0.5, and back up by a network in one pass
    lite-bd, lite-bd bands=50         Lite-BD, blind; 20 bands unless given; "bicubic" replaces the network of sr
    scaleup, strip                    detectors that reject what they flag, calibrated on clean images that no row
                                      counts; "false_alarms=0.01" sets the share of those that is rejected, 0.05 unless
                                      given; "scaleup published" selects the published threshold
    zip-paper                         ZIP with the paper's setting for this data set and this attack
    zip                               one setting for every attack: `zipsdk.Purifier(engine)`
    zip transforms=blur4 lam=2        options of `zipsdk.Purifier`, for either
    guard, guard calibrated           `zipsdk.Guard`, which learns from its first images, of which 5% have the trigger,
                                      or is calibrated on clean ones; no row counts these images; "scaleup" selects
                                      that detector; options of `zipsdk.Purifier`

"blur" is the blur of the paper's setting for the data set and the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.defenses.base import U8, Defense
from bench.defenses.ddnm import DDNM
from bench.defenses.diffpure import DiffPure
from bench.defenses.guarded import Guarded
from bench.defenses.litebd import LiteBD
from bench.defenses.rejecting import Rejecting, scale_up, strip
from bench.defenses.resizing import Bicubic, Resized, Upsampler
from bench.defenses.sampdetox import SampDetox
from bench.defenses.simple import BlurOnly, Nothing, ShrinkPad
from bench.defenses.zip import Zip
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import InputError
from zipsdk.sampling.schedule import PAPER_STEPS
from zipsdk.types import Engine

#: Whatever `evaluate` measures.
AnyDefense = Defense | Guarded | Rejecting
#: Prefix of the names of attacks that know the defense.
ENHANCED = "enhanced-"
#: Attacks that mix the trigger with the whole image. The paper's Blended gets lambda 2, its patches 10 (appendix E.3);
#: SIG and the smooth pattern are not in the paper.
LAMBDA_2 = ("blended", "blended-smooth", "sig")

_ZIP = ("zip", "zip-paper")
_BASELINES = ("none", "shrinkpad", "blur", "diffpure", "blur+diffpure", "ddnm", "blur+ddnm", "sampdetox", "bdmae",
              "bicubic", "sr", "lite-bd", "scaleup", "strip")  # fmt: skip
#: Types of the options of `Zip`.
_OPTIONS: dict[str, Callable[[str], Any]] = {"transforms": str, "combine": str, "preset": str, "lam": float,
                                             "eta": float, "steps": int, "start": int}  # fmt: skip
#: Types of the options of single baselines.
_BASELINE_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "bicubic": {"scale": float}, "lite-bd": {"bands": int}, "scaleup": {"false_alarms": float},
    "strip": {"false_alarms": float}}  # fmt: skip
#: Texts in the keys of rows: rows of before the presets "patch", "blended" and "random" were removed keep their keys.
_KEYED_AS = {
    "zip preset=fast transforms=blur2 lam=10": "zip preset=fast setting=patch",
    "zip preset=fast transforms=gray lam=2": "zip preset=fast setting=blended",
    "zip preset=fast transforms=blur2|gray|blur2+gray|blur4+gray lam=10": "zip preset=fast setting=random",
}


@dataclass(frozen=True)
class DefenseSpec:
    """The name and the options of a defense; a flag is an option that is True.

    `str` gives the text form, `parse` reads it.

    Raises:
        InputError: an unknown name or option.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (*_ZIP, "guard", *_BASELINES)
        if self.name not in names:
            raise InputError(f"defense: got {str(self)!r}, expected one of {', '.join(names)}")
        unknown = set(self.options) - set(self._allowed())
        if unknown and self.name in _BASELINES:
            allowed = " or ".join(f"{o}=VALUE" if o in _BASELINE_OPTIONS.get(self.name, ()) else f'"{o}"'
                                  for o in self._allowed())  # fmt: skip
            alone = f"{self.name} alone" + (f" or with {allowed}" if allowed else "")
            raise InputError(f"defense: got {str(self)!r}, expected {alone}")
        if self.name == "scaleup" and len(self.options) > 1:
            raise InputError(f'defense: got {str(self)!r}, expected one of "published" and false_alarms')
        if unknown:
            raise InputError(f"defense: got {str(self)!r}, expected NAME=VALUE with {', '.join(_OPTIONS)}")
        if self.options.get("calibrated") and self.options.get("scaleup"):
            raise InputError(
                f'defense: got {str(self)!r}, expected one of "scaleup" and "calibrated"; SCALE-UP needs no calibration'
            )

    def _allowed(self) -> tuple[str, ...]:
        if self.name in _BASELINES:
            own = tuple(_BASELINE_OPTIONS.get(self.name, ()))
            flags = {"sampdetox": ("published", "range255"), "scaleup": ("published",), "sr": (),
                     "lite-bd": ("bicubic",)}  # fmt: skip
            return own + flags.get(self.name, () if own else ("published",))
        return (*_OPTIONS, "calibrated", "scaleup") if self.name == "guard" else tuple(_OPTIONS)

    @classmethod
    def parse(cls, text: str) -> DefenseSpec:
        """Read the text form.

        Raises:
            InputError: an unknown name or option, or a value of another type.
        """
        name, *words = text.split() or [""]
        types = _BASELINE_OPTIONS.get(name, _OPTIONS)
        options: dict[str, Any] = {}
        for word in words:
            option, equals, value = word.partition("=")
            try:
                options[option] = types[option](value) if equals or option in types else True
            except (KeyError, ValueError) as e:
                raise InputError(
                    f"defense: got {word!r} in {text!r}, expected NAME=VALUE with {', '.join(types)}"
                ) from e
        return cls(name, options)

    def __str__(self) -> str:
        values = {k: f"{v:g}" if isinstance(v, float) else v for k, v in self.options.items()}
        return " ".join([self.name, *(k if v is True else f"{k}={v}" for k, v in values.items())])

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def key(self) -> str:
        """The text in the keys of rows."""
        # `preset` was named `profile`, and `setting` was named `preset`: rows of that time keep their keys
        text = _KEYED_AS.get(str(self), str(self))
        return text.replace("preset=", "profile=").replace("setting=", "preset=")

    @property
    def stochastic(self) -> bool:
        """Whether rows for several seeds are counted."""
        return self.name not in _BASELINES

    @property
    def needs_training(self) -> bool:
        """Whether the defense trains a network of its own."""
        return self.name in ("bdmae", "sr") or (self.name == "lite-bd" and not self.options.get("bicubic"))


def paper_options(dataset: str, attack: str) -> dict[str, Any]:
    """Return the paper's options of ZIP for a data set and an attack.

    CIFAR-10: blur and gray; GTSRB and Imagenette: blur alone (section 4.1). Imagenette's blur is 2 for BadNets, 4 for
    Blended and PhysicalBA: those rows of Table 1 equal these cells of Table 2. For the others the paper names no size;
    2 here. lambda: see `LAMBDA_2`. Data sets that the paper does not have are treated as CIFAR-10.
    """
    attack = attack.removeprefix(ENHANCED)
    transforms = {"gtsrb": "blur2", "imagenette": "blur4" if attack in (*LAMBDA_2, "physicalba") else "blur2"}
    return {"transforms": transforms.get(dataset, "blur2+gray"), "lam": 2.0 if attack in LAMBDA_2 else 10.0,
            "preset": "paper"}  # fmt: skip


@dataclass(frozen=True)
class DefenseFactory:
    """Make defenses for an engine, a data set and its side in pixels.

    Args:
        bdmae: makes BDMAE, which needs a masked autoencoder; called only for it.
        super_resolution: makes the upsampler of sr and lite-bd, which needs training; called only for them.
        unseen: returns images that no row counts, uint8 (N, H, W, 3), for a guard to learn from; called only for that.
    """

    engine: Engine
    dataset: str
    side: int
    bdmae: Callable[[], Defense]
    super_resolution: Callable[[], Upsampler]
    unseen: Callable[[], U8]

    def make(self, spec: DefenseSpec, attack: str) -> AnyDefense:
        """Make a defense; the attack decides the paper's setting.

        Raises:
            InputError: an option out of range.
        """
        if spec.name == "guard":
            return self._guard(dict(spec.options))
        return self.zip(spec, attack) if spec.name in _ZIP else self._baseline(spec, attack)

    def zip(self, spec: DefenseSpec, attack: str) -> Zip:
        """Make ZIP by a spec that is named zip or zip-paper.

        Raises:
            InputError: an option out of range.
        """
        defaults = paper_options(self.dataset, attack) if spec.name == "zip-paper" else {}
        return Zip(self.engine, **{**defaults, **spec.options})

    def _guard(self, options: dict[str, Any]) -> Guarded:
        calibrated, scaleup = (options.pop(flag, False) for flag in ("calibrated", "scaleup"))
        inner = Zip(self.engine, **options)
        if scaleup:
            return Guarded(inner, ScaleUp())
        return Guarded(inner, clean=self.unseen()) if calibrated else Guarded(inner, first=self.unseen())

    def _baseline(self, spec: DefenseSpec, attack: str) -> Defense | Rejecting:
        transforms = paper_options(self.dataset, attack)["transforms"]
        blur = next(t for t in transforms.split("+") if t.startswith("blur"))
        t_star = DiffPure.published_t_star(self.side)
        # the published numbers of steps, or as many as ZIP's
        published = spec.options.get("published", False)
        diffpure_steps, ddnm_steps, budget = (None, 100, None) if published else (PAPER_STEPS,) * 3
        data_range = 255.0 if spec.options.get("range255") else 1.0
        options = {name: value for name, value in spec.options.items() if name not in ("published", "bicubic")}
        makers: dict[str, Callable[[], Defense | Rejecting]] = {
            "none": Nothing,
            "shrinkpad": ShrinkPad,
            "blur": lambda: BlurOnly(blur),
            "diffpure": lambda: DiffPure(self.engine, t_star, steps=diffpure_steps),
            "blur+diffpure": lambda: DiffPure(self.engine, t_star, blur, steps=diffpure_steps),
            "ddnm": lambda: DDNM(self.engine, transforms, steps=ddnm_steps),
            "blur+ddnm": lambda: DDNM(self.engine, blur, steps=ddnm_steps),
            "sampdetox": lambda: SampDetox(self.engine, budget=budget, data_range=data_range),
            "bdmae": self.bdmae,
            "bicubic": lambda: Resized(**options),
            "sr": lambda: Resized(0.5, self.super_resolution()),
            "lite-bd": lambda: LiteBD(Bicubic() if spec.options.get("bicubic") else self.super_resolution(), **options),
            "scaleup": lambda: scale_up(self.unseen(), **({"false_alarms": None} if published else options)),
            "strip": lambda: strip(self.unseen(), **options),
        }
        return makers[spec.name]()
