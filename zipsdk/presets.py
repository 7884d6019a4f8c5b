"""Define the presets: named defaults of the number of steps and of the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zipsdk._util.validation import check_choice
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.schedule import PAPER_STEPS, equivalent_step

PresetName = Literal["paper", "fast"]


@dataclass(frozen=True)
class Preset:
    """Hold the defaults of one preset.

    Attributes:
        steps: number of denoising steps.
        start: time step of 1000 to start from, or None for pure noise; see `start_for`.
    """

    steps: int
    start: int | None

    def start_for(self, spec: ModelSpec) -> int | None:
        """Return the time step of the model with as much noise as `start` of 1000, or None for pure noise."""
        return None if self.start is None else equivalent_step(spec, self.start)


#: The paper's 20 steps from pure noise, and 4 steps from the transformed image with noise added.
PRESETS: dict[PresetName, Preset] = {"paper": Preset(PAPER_STEPS, None), "fast": Preset(4, 400)}


def default_preset(spec: ModelSpec) -> PresetName:
    """Return the preset that follows from the model: "paper" for models that predict noise, that is for all today."""
    return "paper"


def preset_of(name: PresetName | None, spec: ModelSpec) -> Preset:
    """Return a preset by name; None takes the model's default.

    Raises:
        InputError: there is no such preset.
    """
    if name is None:
        name = default_preset(spec)
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
