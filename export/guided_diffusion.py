"""OpenAI's guided-diffusion and improved-diffusion checkpoints: their configuration, from shapes and flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from export.flags import Flags, Say
from export.scheduler import resolve
from export.unet import ADM256, UNetConfig
from zipsdk.errors import ModelError

#: guided-diffusion's own defaults of channel_mult by image size, and improved-diffusion's for 32.
_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64, (1, 2, 2, 2): 32}
#: What shapes tell. OpenAI's published 256x256 models have 64 channels a head, and agree in all of it.
_TOLD = ("model_channels", "channel_mult", "num_res_blocks", "out_channels", "attention_downsampling",
         "resblock_updown", "use_scale_shift_norm")  # fmt: skip


def read_config(state: Mapping[str, Tensor], flags: Flags, file: Path, say: Say) -> UNetConfig:
    """Return the configuration: as far as shapes tell it from them, the rest from `flags`.

    Raises:
        ModelError: not such a UNet, flags that do not fit it, or no flag for what its tensors cannot tell.
    """
    if "label_emb.weight" in state:
        raise ModelError(
            f"{file}: label_emb.weight makes it class-conditional, and a purifier does not know the class; "
            "give the unconditional model (256x256_diffusion_uncond.pt)"
        )
    order = flags.attention_order or "legacy"
    if order not in ("legacy", "new"):
        raise ModelError(f"attention order: got {order!r}, wanted 'legacy' or 'new'")
    config = _from_shapes(state, file)
    size = flags.image_size or _SIZES.get(config.channel_mult)
    if size is None:
        raise ModelError(f"{file}: its tensors do not tell the image size; give --image-size")
    if size % config.downsampling:
        raise ModelError(f"image size: got {size}, wanted a multiple of {config.downsampling}")
    noise = resolve(None, flags, f"{file}: a guided-diffusion checkpoint says nothing of its noise", say, rescaled=True)
    config = replace(
        config, image_size=size, norm_groups=flags.norm_groups or config.norm_groups,
        time_scale=1000 / noise.timesteps if flags.rescale_timesteps else 1.0, **asdict(noise),
    )  # fmt: skip
    if config.attention_downsampling:
        config = _with_heads(config, flags, file)
        heads = f"{config.num_heads} heads" if config.num_heads else f"{config.num_head_channels} channels a head"
        say(f"{file}: image size {size}, {heads}, {order} attention order")
    return config


def _from_shapes(state: Mapping[str, Tensor], file: Path) -> UNetConfig:
    outputs = {int(m[1]) for k in state if (m := re.match(r"output_blocks\.(\d+)\.", k))}
    upsampling = {m[1] for k in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.(in_layers\.|conv\.)", k))}
    levels = len(upsampling) + 1
    if not outputs or len(outputs) % levels:
        raise ModelError(f"{file}: {len(outputs)} output blocks with {levels} resolutions; a classifier, or cut short?")
    per_level = len(outputs) // levels
    try:
        channels = state["time_embed.0.weight"].shape[1]
        first = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]  # of each resolution
        widths = [state[f"{block}.0.in_layers.2.weight"].shape[0] for block in first]
        in_channels, out_channels = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]
        film = state[f"{first[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
    except (KeyError, IndexError) as e:
        raise ModelError(f"{file}: 1 missing or misshapen: {e}; not a guided-diffusion UNet, or cut short") from e
    if in_channels == 4:
        raise ModelError(f"{file}: got 4 input channels, expected 3 (RGB); a latent-diffusion UNet is not supported")
    if in_channels != 3:
        raise ModelError(f"{file}: got {in_channels} input channels, wanted 3: is it a super-resolution model?")
    if out_channels not in (3, 6):
        raise ModelError(f"{file}: got {out_channels} output channels, wanted 3, or 6 with learned variance")
    if any(w % channels for w in widths):
        raise ModelError(f"{file}: got channels {widths}, wanted multiples of {channels}, as the time embedding has")
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
    """Fill in the heads, which no tensor's shape depends on."""
    if flags.heads and flags.head_channels:
        raise ModelError(f"{file}: got --heads and --head-channels, expected one of them")
    channels = flags.head_channels
    if not flags.heads and not channels:
        if any(getattr(config, field) != getattr(ADM256, field) for field in _TOLD):
            raise ModelError(
                f"{file}: its tensors do not tell its attention heads, and it is not OpenAI's 256x256 model; give "
                "--heads N or --head-channels N as it was trained with (guided-diffusion's default is --heads 4)"
            )
        channels = ADM256.num_head_channels
    name, value = ("heads", flags.heads) if flags.heads else ("head_channels", channels)
    attended = config.attention_widths
    if not value or value < 0 or any(width % value for width in attended):
        raise ModelError(f"{file}: {name}={value} does not divide attention's {attended} channels")
    return replace(config, num_heads=flags.heads or 0, num_head_channels=channels or 0)


def head_by_head(tensor: Tensor, config: UNetConfig) -> Tensor:
    """Sort the rows of a qkv weight or bias from all q, all k, all v into q, k, v of each head in turn."""
    width = len(tensor) // 3
    heads = config.heads(width)
    return tensor.reshape(3, heads, width // heads, -1).transpose(0, 1).reshape(tensor.shape).contiguous()
