"""Hold what the user says of a checkpoint, beside what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from zipsdk.errors import ModelError

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the user said of a checkpoint; None and False mean "nothing".

    Attributes:
        image_size: side that it was trained on, in pixels.
        heads: attention heads at every level (guided-diffusion's ``num_heads``).
        head_channels: channels of each attention head (``num_head_channels``).
        norm_groups: groups of the normalization.
        attention_order: "legacy" (rows of qkv: per head q, k, v) or "new" (all q, all k, all v).
        rescale_timesteps: the network sees 1000 t / T (``rescale_timesteps``).
        noise_schedule: "linear", "scaled_linear" or "cosine".
        prediction: "epsilon", "v" or "sample".
        timesteps, beta_start, beta_end: T, and the first and last beta of the linear schedules.
    """

    image_size: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    norm_groups: int | None = None
    attention_order: str | None = None
    rescale_timesteps: bool = False
    noise_schedule: str | None = None
    prediction: str | None = None
    timesteps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None


ARCHITECTURE = ("image_size", "heads", "head_channels", "norm_groups", "attention_order", "rescale_timesteps")
NOISE = ("noise_schedule", "prediction", "timesteps", "beta_start", "beta_end")


def refuse(flags: Flags, names: Iterable[str], file: Path, teller: str) -> None:
    """Refuse the flags in `names` that were given, because `teller` already says what they would.

    Raises:
        ModelError: one was given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(flags, name) not in (None, False)]
    if given:
        raise ModelError(f"{file}: got {', '.join(given)}, which {teller} already tells; drop the flag")
