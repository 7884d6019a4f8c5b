"""Configure the UNet of `export.unet`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zipsdk.models.noise_schedule import SCHEDULES, NoiseSchedule

#: What the last convolution of a network may predict.
PREDICTIONS = ("epsilon", "v", "sample")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NoiseSchedule):
    """Extend the noise schedule by the architecture of a UNet.

    Attributes:
        image_size: side of the training images, in pixels.
        model_channels: width of the network; `channel_mult` gives the width of each level as a multiple of it.
        num_res_blocks: residual blocks per level on the way down; there is one more on the way up.
        attention_downsampling: downsampling factors (not resolutions) with attention.
        num_heads: attention heads at every level; if 0, `num_head_channels` gives their width; if both are 0, one head.
        resblock_updown: residual blocks change the resolution, not convolutions.
        use_scale_shift_norm: the time embedding scales and shifts (FiLM), instead of being added.
        embedding_order: "cos_sin" (OpenAI) or "sin_cos" (diffusers with ``flip_sin_to_cos=False``).
        embedding_shift: see `export.unet.timestep_embedding`.
        asymmetric_downsampling: convolutions that halve are padded at the bottom and right only.
        prediction: what the last convolution predicts: "epsilon", "v" (Salimans & Ho 2022) or "sample" (x0); `UNet`
            turns all of them into epsilon.
        time_scale: factor of t before the embedding: 1000 / T for guided-diffusion's ``rescale_timesteps``.

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
    # `to_dict` leaves out defaults from here on, and of `beta_schedule` and `betas`: older training states, without
    # these fields, must compare equal
    num_heads: int = 0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for field, known in (
            ("prediction", PREDICTIONS), ("embedding_order", ("cos_sin", "sin_cos")), ("beta_schedule", SCHEDULES)
        ):  # fmt: skip
            if (got := getattr(self, field)) not in known:
                raise ValueError(f"{field}: got {got!r}, expected one of {known}")

    def heads(self, channels: int) -> int:
        """Return the number of heads of an attention block with that many channels."""
        return self.num_heads or (channels // self.num_head_channels if self.num_head_channels > 0 else 1)

    @property
    def attention_widths(self) -> list[int]:
        """Channels of each level with attention and of the middle, which has attention if any level has."""
        levels = [m for n, m in enumerate(self.channel_mult) if 2**n in self.attention_downsampling]
        return [self.model_channels * m for m in (*levels, self.channel_mult[-1])] if levels else []

    @property
    def downsampling(self) -> int:
        """Factor between the image and the coarsest feature map; sides must be multiples of it."""
        return 1 << (len(self.channel_mult) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the later ones that have their defaults."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        later = {"beta_schedule": "linear", "betas": [], "num_heads": 0, "time_scale": 1.0}
        return {k: v for k, v in fields.items() if k not in later or v != later[k]}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> UNetConfig:
        """Build a configuration from what `to_dict` returned.

        Raises:
            TypeError: a field is missing or unknown.
            ValueError: a value is unknown.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        return cls(**fields)


#: OpenAI's ``256x256_diffusion_uncond``: 552,814,086 parameters with its six output channels.
ADM256 = UNetConfig(
    image_size=256, model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), out_channels=6,
    attention_downsampling=(8, 16, 32), resblock_updown=True,
)  # fmt: skip

#: The bundled model.
ZIP_TINY = UNetConfig(image_size=64, model_channels=32, channel_mult=(1, 2, 3), norm_groups=8, prediction="v")
