"""Describe a model: the metadata that travels with its file.

A `ModelSpec` is one JSON string under the key ``zipsdk`` of an ONNX file's metadata, and an entry of the JSON file
beside a TensorRT plan. Loaders check it before they run anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np

from zipsdk._util.validation import is_int, is_real
from zipsdk.errors import ModelError
from zipsdk.models.noise_schedule import MIN_ALPHA_BAR, SCHEDULES, NoiseSchedule

#: Format of the JSON text; other formats are refused.
FORMAT = 3
METADATA_KEY = "zipsdk"
#: Precisions that the exporter writes.
PRECISIONS = ("fp32", "fp16", "bf16")
#: Precision of the models that `python -m export.quantize` writes: 8-bit convolutions, the rest float32.
INT8 = "int8"

#: The check of a field's value, by the type of the field. JSON has lists in place of tuples.
_CHECKS: dict[object, Callable[[object], bool]] = {
    str: lambda value: isinstance(value, str),
    int: is_int,
    float: is_real,
    tuple[str, ...]: lambda value: isinstance(value, list | tuple) and all(isinstance(v, str) for v in value),
    tuple[float, ...]: lambda value: isinstance(value, list | tuple) and all(is_real(v) for v in value),
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec(NoiseSchedule):
    """Describe a diffusion model as the loop sees it: eps = model(x_t, t).

    Attributes:
        name: short name, e.g. "zip-tiny".
        image_size: side of the square images it was trained on, in pixels.
        multiple: sides must be multiples of this.
        min_side, max_side: smallest and largest side that it takes. If both equal `image_size`, no other size works.
        channels: of the images, 3 (RGB).
        beta_schedule, beta_start, beta_end, timesteps, betas: the noise schedule (`NoiseSchedule`); T is 2 to 100,000,
            betas are in (0, 1).
        prediction: output of the graph; only "epsilon" is known, and an exporter converts the others to it.
        precision: of the weights and the convolutions: "fp32", "fp16", "bf16" or "int8". Input and output are always
            float32.
        input_x, input_t, output: tensor names in the graph.
        source_sha256: of the checkpoint that it was exported from.
        license, training_data: free text.
        transforms: recommended transforms, e.g. ("blur2", "gray"); `zipsdk.transforms.recommended` parses them.
        lam: recommended lambda, in (0, inf].

    Raises:
        ModelError: a value of another type or out of range.
    """

    name: str
    image_size: int
    multiple: int
    min_side: int
    max_side: int
    channels: int = 3
    prediction: str = "epsilon"
    precision: str = "fp32"
    input_x: str = "x"
    input_t: str = "t"
    output: str = "eps"
    source_sha256: str = ""
    license: str = ""
    training_data: str = ""
    transforms: tuple[str, ...] = ("blur2", "gray")
    lam: float = 10.0

    def __post_init__(self) -> None:
        def check(ok: bool, expected: str, got: object) -> None:
            if not ok:
                raise ModelError(f"model spec: got {got!r}, expected {expected}; export the model again")

        for name, kind in get_type_hints(type(self)).items():
            if not _CHECKS[kind](value := getattr(self, name)):
                expected = kind.__name__ if isinstance(kind, type) else kind
                raise ModelError(f"model spec: {name}: got {value!r}, expected {expected}; export the model again")
            if isinstance(value, np.generic):  # JSON cannot hold NumPy's numbers
                object.__setattr__(self, name, value.item())
        object.__setattr__(self, "transforms", tuple(self.transforms))
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        check(self.channels == 3, "channels = 3 (RGB)", self.channels)
        check(self.beta_schedule in SCHEDULES, f"beta_schedule in {SCHEDULES}", self.beta_schedule)
        ends = (self.beta_start, self.beta_end)
        check(0 < self.beta_start < self.beta_end < 1, "0 < beta_start < beta_end < 1", ends)
        check(2 <= self.timesteps <= 100_000, "timesteps in 2..100000", self.timesteps)
        count = self.timesteps if self.beta_schedule == "betas" else 0
        check(len(self.betas) == count, f"{count} betas, as beta_schedule and timesteps say", len(self.betas))
        check(all(0 < beta < 1 for beta in self.betas), "betas in (0, 1)", [b for b in self.betas if not 0 < b < 1][:3])
        last = float(self.alphas_cumprod()[-1])
        check(last >= MIN_ALPHA_BAR, f"a schedule whose alpha-bar stays above {MIN_ALPHA_BAR:g}", last)
        check(self.prediction == "epsilon", "prediction = 'epsilon'", self.prediction)
        check(self.precision in (*PRECISIONS, INT8), f"precision in {(*PRECISIONS, INT8)}", self.precision)
        sides = {name: getattr(self, name) for name in ("multiple", "min_side", "image_size", "max_side")}
        check(
            1 <= self.min_side <= self.image_size <= self.max_side and self.multiple >= 1,
            "1 <= min_side <= image_size <= max_side and multiple >= 1",
            sides,
        )
        divided = all(side % self.multiple == 0 for side in sides.values())
        check(divided, f"sides that are multiples of {self.multiple}", sides)
        check(self.lam > 0, "lam in (0, inf]", self.lam)

    def __repr__(self) -> str:
        sides = f"{self.min_side}..{self.max_side}" if self.flexible else self.image_size
        return f"<ModelSpec {self.name}: {self.precision}, images of {sides} pixels>"

    @property
    def flexible(self) -> bool:
        """Whether sizes other than `image_size` work."""
        return self.min_side < self.max_side

    def to_json(self) -> str:
        """Return the spec as JSON, without the list of betas unless the schedule has one."""
        fields = dataclasses.asdict(self)
        if not self.betas:
            del fields["betas"]
        return json.dumps({"format": FORMAT, **fields}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> ModelSpec:
        """Read a spec; `where` names the file in errors.

        Raises:
            ModelError: not JSON, another format version, fields missing, unknown, or of the wrong type.
        """
        try:
            raw: Any = json.loads(text)
        except (ValueError, RecursionError) as e:  # numbers of thousands of digits, and deep nesting
            raise ModelError(f"{where}: its model spec is not JSON ({e}); export the model again") from e
        version = raw.pop("format", None) if isinstance(raw, dict) else type(raw).__name__
        if not (is_int(version) and version == FORMAT):
            raise ModelError(
                f"{where}: got model spec format {version!r}, expected {FORMAT}; export it again or update zipsdk"
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
        if (unknown := raw.keys() - fields.keys()) or (missing := required - raw.keys()):
            problem = f"unknown fields {sorted(unknown)}" if unknown else f"no {sorted(missing)}"
            raise ModelError(f"{where}: the model spec has {problem}; export it again or update zipsdk")
        try:
            return cls(**raw)
        except ModelError as e:
            raise ModelError(f"{where}: {e}") from e
