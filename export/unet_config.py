"""Configure the UNet of `export.unet`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zipsdk.models.noise_schedule import SCHEDULES, NoiseSchedule

#: What a network's last convolution may give.
PREDICTIONS = ("epsilon", "v", "sample")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NoiseSchedule):
    """Everything that shapes cannot tell about a UNet, and what they can.

    `attention_downsampling` lists the downsampling factors (not the resolutions) that carry attention.
    `embedding_order` is "cos_sin" (OpenAI) or "sin_cos" (diffusers with ``flip_sin_to_cos=False``).
    `num_heads` is the number of attention heads at every level; 0 means that `num_head_channels` gives their width
    instead, and 0 for both means one head.
    `time_scale` multiplies t before the embedding: 1000 / T for guided-diffusion's ``rescale_timesteps``.
    `prediction` is what the last convolution gives: "epsilon", "v" (Salimans & Ho 2022) or "sample" (x0). `UNet` turns
    the latter two into epsilon with `alphas_cumprod`, so that the outside of every model is the same.

    Raises:
        ValueError: an unknown prediction, embedding order or schedule.
    """

    image_size: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int = 2
    in_channels: int = 3
    out_channels: int = 3
    attention_downsampling: tuple[int, ...] = ()
    num_head_channels: int = 64
    resblock_updown: bool = False
    use_scale_shift_norm: bool = True
    embedding_order: str = "cos_sin"
    embedding_shift: int = 0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    asymmetric_downsampling: bool = False
    prediction: str = "epsilon"
    # `to_dict` leaves out the defaults from here on, and of `beta_schedule` and `betas`, so that training states from
    # before these fields stay equal
    num_heads: int = 0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for field, known in (
            ("prediction", PREDICTIONS), ("embedding_order", ("cos_sin", "sin_cos")), ("beta_schedule", SCHEDULES)
        ):  # fmt: skip
            if (got := getattr(self, field)) not in known:
                raise ValueError(f"{field}: got {got!r}, expected one of {known}")

    def heads(self, channels: int) -> int:
        """Return the number of heads of an attention block of so many channels."""
        return self.num_heads or (channels // self.num_head_channels if self.num_head_channels > 0 else 1)

    @property
    def attention_widths(self) -> list[int]:
        """Channels of each level with attention, and of the middle, which has attention where any level has."""
        levels = [m for n, m in enumerate(self.channel_mult) if 2**n in self.attention_downsampling]
        return [self.model_channels * m for m in (*levels, self.channel_mult[-1])] if levels else []

    @property
    def downsampling(self) -> int:
        """Return the factor between the image and the coarsest feature map; image sides are multiples of it."""
        return 1 << (len(self.channel_mult) - 1)

    def to_dict(self) -> dict[str, Any]:
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        later = {"beta_schedule": "linear", "betas": [], "num_heads": 0, "time_scale": 1.0}
        return {k: v for k, v in fields.items() if k not in later or v != later[k]}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> UNetConfig:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        return cls(**fields)


#: OpenAI's ``256x256_diffusion_uncond``: 552,814,086 parameters with its six output channels.
ADM256 = UNetConfig(
    image_size=256, model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), out_channels=6,
    attention_downsampling=(8, 16, 32), resblock_updown=True,
)  # fmt: skip

#: The bundled model.
ZIP_TINY = UNetConfig(image_size=64, model_channels=32, channel_mult=(1, 2, 3), norm_groups=8, prediction="v")
