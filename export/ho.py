"""Read checkpoints in Ho et al.'s layout: pytorch_diffusion, ermongroup/ddim, ``celeba_hq.ckpt`` of DDRM and DDNM.

The network is that of diffusers' UNet2DModel of the DDPM kind: additive time input, strided convolutions padded at the
bottom and right, attention of one head. Names and shapes give all of it but the image size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from zipsdk.errors import ModelError

from .flags import Flags, OnProgress, refuse
from .scheduler import resolve
from .tensor_names import Block, TensorNames
from .unet import UNetConfig

#: Side in pixels at which published models of this kind have their attention.
_ATTENTION_SIDE = 16


def is_ho(state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors have this layout; diffusers' also has conv_in."""
    return "temb.dense.0.weight" in state


def read_config(state: Mapping[str, Tensor], flags: Flags, file: Path, on_progress: OnProgress) -> UNetConfig:
    """Return the configuration of a checkpoint.

    Args:
        state: its tensors.
        flags: the image size and the noise process; other flags are refused.
        file: the checkpoint, for messages.
        on_progress: takes a line on what was assumed.

    Raises:
        ModelError: a variant that `export.unet` does not compute, or flags that do not fit.
    """
    refuse(flags, ("heads", "head_channels", "attention_order", "rescale_timesteps"), file, "Ho et al.'s layout")
    if any(".conv_shortcut." in name for name in state):
        raise ModelError(
            f"{file}: got conv_shortcut, expected nin_shortcut; models with 3x3 shortcuts are not supported"
        )
    blocks = [(int(m[1]), int(m[2])) for k in state if (m := re.match(r"down\.(\d+)\.block\.(\d+)\.conv1\.weight", k))]
    levels = 1 + max((level for level, _ in blocks), default=-1)
    if not levels:
        raise ModelError(
            f"{file}: got no down.0.block.0.conv1.weight, expected one beside temb.dense; the file may be cut short"
        )
    if levels > 1 and "down.0.downsample.conv.weight" not in state:
        raise ModelError(
            f"{file}: got no downsample.conv, expected one; models with resamp_with_conv: false are not supported"
        )
    try:
        channels = state["temb.dense.0.weight"].shape[1]
        widths = [state[f"down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        colors, out_channels = state["conv_in.weight"].shape[1], state["conv_out.weight"].shape[0]
    except (KeyError, IndexError) as e:
        raise ModelError(f"{file}: 1 missing or of another shape: {e}; the file may be cut short") from e
    if colors != 3 or out_channels not in (3, 6):
        raise ModelError(f"{file}: got {colors} input and {out_channels} output channels, expected 3 and 3 (RGB)")
    if any(width % channels for width in widths):
        raise ModelError(f"{file}: got channels {widths}, expected multiples of the time embedding's {channels}")
    attention = tuple(2**n for n in range(levels) if f"down.{n}.attn.0.q.weight" in state)
    if not attention:
        raise ModelError(
            f"{file}: got no attention beside that in the middle, expected some; such models are not supported"
        )
    size = flags.image_size
    if size is None:
        size = _ATTENTION_SIDE * attention[0]
        on_progress(f"{file}: assuming image size {size}, with the first attention at {_ATTENTION_SIDE} pixels; "
                    "change it with --image-size")  # fmt: skip
    if size % 2 ** (levels - 1):
        raise ModelError(f"image size: got {size}, expected a multiple of {2 ** (levels - 1)}")
    noise = resolve(None, flags, f"{file}: Ho et al.'s layout has no noise process", on_progress)
    return UNetConfig(
        image_size=size,
        model_channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=1 + max(block for _, block in blocks),
        out_channels=out_channels,
        attention_downsampling=attention,
        num_head_channels=0,
        use_scale_shift_norm=False,
        embedding_order="sin_cos",
        embedding_shift=1,
        norm_groups=flags.norm_groups or 32,
        norm_eps=1e-6,
        asymmetric_downsampling=True,
        **asdict(noise),
    )


class HoNames(TensorNames):
    """Name the tensors as Ho et al.'s layout does."""

    outer: ClassVar = {
        "time_embed.0": "temb.dense.0", "time_embed.2": "temb.dense.1", "input_blocks.0.0": "conv_in",
        "out.0": "norm_out", "out.2": "conv_out",
    }  # fmt: skip
    residual: ClassVar = {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "temb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "nin_shortcut",
    }  # fmt: skip
    attention_kernel: ClassVar = (1, 1)

    def __init__(self, config: UNetConfig):
        self.levels = len(config.channel_mult)
        self.attention = {"norm": ("norm",), "qkv": ("q", "k", "v"), "proj_out": ("proj_out",)}

    def block_name(self, kind: str, block: Block) -> str:
        """Return the checkpoint's name of a block."""
        if block.part == "mid":
            base, index = "mid", f"_{block.index + 1}"
        else:
            level = self.levels - 1 - block.level if block.part == "up" else block.level  # up.0 is the finest
            base, index = f"{block.part}.{level}", f".{block.index}"
        match kind:
            case "residual":
                return f"{base}.block{index}"
            case "attention":
                return f"{base}.attn{index}"
        return f"{base}.{kind}.conv"
