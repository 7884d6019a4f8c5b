"""Read the configuration of OpenAI's guided-diffusion and improved-diffusion checkpoints from shapes and flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from zipsdk.errors import ModelError

from .flags import Flags, OnProgress
from .scheduler import resolve
from .unet import ADM256, UNetConfig

#: Image size by channel_mult: guided-diffusion's own defaults, and improved-diffusion's for 32.
_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64, (1, 2, 2, 2): 32}
#: Fields that shapes give. OpenAI's published 256x256 models agree in all of them, and have 64 channels per head.
_FROM_SHAPES = ("model_channels", "channel_mult", "num_res_blocks", "out_channels", "attention_downsampling",
                "resblock_updown", "use_scale_shift_norm")  # fmt: skip


def read_config(state: Mapping[str, Tensor], flags: Flags, file: Path, on_progress: OnProgress) -> UNetConfig:
    """Return the configuration of a checkpoint.

    Args:
        state: its tensors, whose shapes give most of the architecture.
        flags: the rest.
        file: the checkpoint, for messages.
        on_progress: takes a line on what was read or assumed.

    Raises:
        ModelError: not such a UNet, flags that do not fit it, or no flag for a value that shapes do not give.
    """
    if "label_emb.weight" in state:
        raise ModelError(
            f"{file}: got a class-conditional model (label_emb.weight), expected an unconditional one, such as "
            "256x256_diffusion_uncond.pt; use that"
        )
    order = flags.attention_order or "legacy"
    if order not in ("legacy", "new"):
        raise ModelError(f"attention order: got {order!r}, expected 'legacy' or 'new'")
    config = _from_shapes(state, file)
    size = flags.image_size or _SIZES.get(config.channel_mult)
    if size is None:
        raise ModelError(f"{file}: got no image size, which tensors do not give; give --image-size")
    if size % config.downsampling:
        raise ModelError(f"image size: got {size}, expected a multiple of {config.downsampling}")
    missing = f"{file}: guided-diffusion checkpoints have no noise process"
    noise = resolve(None, flags, missing, on_progress, rescaled=True)
    config = replace(
        config, image_size=size, norm_groups=flags.norm_groups or config.norm_groups,
        time_scale=1000 / noise.timesteps if flags.rescale_timesteps else 1.0, **asdict(noise),
    )  # fmt: skip
    if config.attention_downsampling:
        config = _with_heads(config, flags, file)
        heads = f"{config.num_heads} heads" if config.num_heads else f"{config.num_head_channels} channels per head"
        on_progress(f"{file}: image size {size}, {heads}, {order} attention order")
    return config


def _from_shapes(state: Mapping[str, Tensor], file: Path) -> UNetConfig:
    outputs = {int(m[1]) for k in state if (m := re.match(r"output_blocks\.(\d+)\.", k))}
    upsampling = {m[1] for k in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.(in_layers\.|conv\.)", k))}
    levels = len(upsampling) + 1
    if not outputs or len(outputs) % levels:
        raise ModelError(
            f"{file}: got {len(outputs)} output blocks at {levels} resolutions, expected as many at each; the file "
            "may be a classifier, or cut short"
        )
    per_level = len(outputs) // levels
    try:
        channels = state["time_embed.0.weight"].shape[1]
        first = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]  # of each resolution
        widths = [state[f"{block}.0.in_layers.2.weight"].shape[0] for block in first]
        in_channels, out_channels = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]
        film = state[f"{first[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
    except (KeyError, IndexError) as e:
        raise ModelError(
            f"{file}: 1 missing or of another shape: {e}; not a guided-diffusion UNet, or cut short"
        ) from e
    if in_channels == 4:
        raise ModelError(f"{file}: got 4 input channels, expected 3 (RGB); a latent-diffusion UNet is not supported")
    if in_channels != 3:
        raise ModelError(
            f"{file}: got {in_channels} input channels, expected 3 (RGB); super-resolution models are not supported"
        )
    if out_channels not in (3, 6):
        raise ModelError(f"{file}: got {out_channels} output channels, expected 3, or 6 with learned variance")
    if any(w % channels for w in widths):
        raise ModelError(f"{file}: got channels {widths}, expected multiples of the time embedding's {channels}")
    return UNetConfig(
        image_size=0,
        model_channels=channels,
        channel_mult=tuple(w // channels for w in widths),
        num_res_blocks=per_level - 1,
        out_channels=out_channels,
        attention_downsampling=tuple(2**n for n, block in enumerate(first) if f"{block}.1.qkv.weight" in state),
        num_head_channels=0,
        resblock_updown=any(".in_layers." in k for k in state if re.match(r"output_blocks\.\d+\.[12]\.", k)),
        use_scale_shift_norm=film,
    )


def _with_heads(config: UNetConfig, flags: Flags, file: Path) -> UNetConfig:
    """Fill in the attention heads, which no shape depends on."""
    if flags.heads and flags.head_channels:
        raise ModelError(f"{file}: got --heads and --head-channels, expected one of them")
    channels = flags.head_channels
    if not flags.heads and not channels:
        if any(getattr(config, field) != getattr(ADM256, field) for field in _FROM_SHAPES):
            raise ModelError(
                f"{file}: got no number of attention heads, which tensors do not give; it is not OpenAI's 256x256 "
                "model. Give --heads N or --head-channels N as in training (guided-diffusion's default is --heads 4)"
            )
        channels = ADM256.num_head_channels
    name, value = ("heads", flags.heads) if flags.heads else ("head_channels", channels)
    attended = config.attention_widths
    if not value or value < 0 or any(width % value for width in attended):
        raise ModelError(f"{file}: got {name}={value}, expected a divisor of attention's {attended} channels")
    return replace(config, num_heads=flags.heads or 0, num_head_channels=channels or 0)


def head_by_head(tensor: Tensor, config: UNetConfig) -> Tensor:
    """Reorder the rows of a qkv weight or bias from all q, all k, all v to q, k, v of each head in turn."""
    width = len(tensor) // 3
    heads = config.heads(width)
    return tensor.reshape(3, heads, width // heads, -1).transpose(0, 1).reshape(tensor.shape).contiguous()
