"""Hold what the user states about a checkpoint that the checkpoint itself does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from zipsdk.errors import ModelError

#: Takes one line of text for each value that was read from a file, assumed, or replaced by a flag.
OnProgress = Callable[[str], None]


def ignore(_: str) -> None:
    """Ignore a line of progress."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Hold the user's statements about a checkpoint; None and False mean "not given".

    Attributes:
        image_size: side of the training images, in pixels.
        heads: attention heads at every level (guided-diffusion's ``num_heads``).
        head_channels: channels per attention head (``num_head_channels``).
        norm_groups: groups of the normalization.
        attention_order: order of qkv's rows: "legacy" (per head q, k, v) or "new" (all q, all k, all v).
        rescale_timesteps: the network takes 1000 t / T (``rescale_timesteps``).
        noise_schedule: "linear", "scaled_linear" or "cosine".
        prediction: "epsilon", "v" or "sample".
        timesteps: T.
        beta_start, beta_end: first and last beta of the linear schedules.
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


def refuse(flags: Flags, names: Iterable[str], file: Path, source: str) -> None:
    """Refuse flags whose values are known without them.

    Args:
        flags: the flags.
        names: fields of `Flags` that are known.
        file: the checkpoint, for the message.
        source: what has the values, for the message.

    Raises:
        ModelError: one of the flags was given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(flags, name) not in (None, False)]
    if given:
        raise ModelError(f"{file}: got {', '.join(given)}, expected no such flag, because {source} fixes it; drop it")
