"""Read diffusers' UNet2DModel of the DDPM kind: its configuration, and its names of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from zipsdk._util.validation import is_int
from zipsdk.errors import ModelError

from .flags import ARCHITECTURE, Flags, OnProgress, ignore, refuse
from .json_config import JsonConfig
from .scheduler import find_scheduler, read_scheduler, resolve
from .tensor_names import Block, TensorNames
from .unet import UNetConfig

#: Keys whose other values this UNet does not compute, and the values that it does; diffusers' defaults come first.
_FIXED: dict[str, tuple[Any, ...]] = {
    "in_channels": (3,), "center_input_sample": (False,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "attn_norm_num_groups": (None,), "class_embed_type": (None,), "num_class_embeds": (None,),
}  # fmt: skip
_READ = {
    "sample_size", "out_channels", "freq_shift", "flip_sin_to_cos", "down_block_types", "up_block_types",
    "block_out_channels", "layers_per_block", "downsample_padding", "dropout", "attention_head_dim",
    "norm_num_groups", "norm_eps", "num_train_timesteps", "add_attention",
}  # fmt: skip
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


def read_config(path: Path, flags: Flags | None = None, on_progress: OnProgress = ignore) -> UNetConfig:
    """Read ``config.json``, and the pipeline's ``scheduler_config.json`` (`export.scheduler.find_scheduler`).

    Args:
        path: the configuration, beside the weights.
        flags: those of the noise process replace values of the scheduler's file; no others are allowed.
        on_progress: takes a line on what was read, assumed or replaced.

    Returns:
        The configuration of the same network as a `export.unet.UNet`.

    Raises:
        ModelError: not a UNet2DModel's configuration, or one that this UNet does not compute; the value is named.
    """
    flags = flags or Flags()
    refuse(flags, ARCHITECTURE, path, "the configuration")
    try:
        config = JsonConfig(path, "UNet2DModel")
        _check_keys(config)
        architecture = _levels(config) | _numbers(config)
    except (KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{path}: not a UNet2DModel's configuration ({e!r}); copy it again") from e
    scheduler = find_scheduler(path)
    missing = f"{path.parent}: no scheduler_config.json in it or in ../scheduler"
    noise = resolve(read_scheduler(scheduler) if scheduler else None, flags, str(scheduler or missing), on_progress)
    return UNetConfig(use_scale_shift_norm=False, **architecture, **asdict(noise))


def _check_keys(c: JsonConfig) -> None:
    """Refuse other classes, keys that are unknown, and values that this UNet does not compute."""
    c.require(c.get("in_channels", 3) != 4, "in_channels", 4, "3 (RGB), and 4 is a latent-diffusion UNet's")
    name = c.get("_class_name", "UNet2DModel")
    c.require(name == "UNet2DModel", "_class_name", name, "'UNet2DModel'")
    for key, value in c.values.items():
        if not key.startswith("_") and key not in _READ:
            c.require(key in _FIXED, key, value, "no such key")
            c.require(value in _FIXED[key], key, value, repr(_FIXED[key][0]))


def _levels(c: JsonConfig) -> dict[str, Any]:
    """Return the fields of `UNetConfig` that differ by level: widths and attention."""
    widths, down, up = c.values["block_out_channels"], c.values["down_block_types"], c.values["up_block_types"]
    for types, known in ((down, _DOWN), (up, _UP)):
        for kind in types:
            c.require(kind in known, "block type", kind, " or ".join(known))
    attention = [kind.startswith("Attn") for kind in down]
    mirrored = attention == [kind.startswith("Attn") for kind in reversed(up)] and len(widths) == len(down)
    c.require(mirrored, "up_block_types", up, f"the mirror image of {down}")
    middle = c.get("add_attention", True)
    expected = "attention in one of them" if middle else "no attention"
    c.require(any(attention) == middle, "down_block_types", down, expected)
    c.require(all(w % widths[0] == 0 for w in widths), "block_out_channels", widths, "multiples of the first")
    head = c.get("attention_head_dim", 8)
    c.require(head is None or (is_int(head) and head >= 1), "attention_head_dim", head, "a positive integer")
    attended = [w for w, a in zip((*widths, widths[-1]), (*attention, middle), strict=True) if a]
    divides = head is None or all(w % head == 0 for w in attended)
    c.require(divides, "attention_head_dim", head, f"a divisor of {attended}")
    return {
        "model_channels": widths[0],
        "channel_mult": tuple(w // widths[0] for w in widths),
        "attention_downsampling": tuple(2**n for n, a in enumerate(attention) if a),
        "num_head_channels": head or 0,
    }


def _numbers(c: JsonConfig) -> dict[str, Any]:
    """Return the other fields of `UNetConfig`."""
    padding = c.get("downsample_padding", 1)
    c.require(padding in (0, 1), "downsample_padding", padding, "0 or 1")
    size = c.get("sample_size")
    size = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
    c.require(is_int(size) and size > 0, "sample_size", size, "a positive integer")
    out_channels = c.get("out_channels", 3)
    c.require(out_channels in (3, 6), "out_channels", out_channels, "3 or 6")
    layers, groups, shift = c.get("layers_per_block", 2), c.get("norm_num_groups", 32), c.get("freq_shift", 0)
    c.require(is_int(layers) and layers >= 1, "layers_per_block", layers, "a positive integer")
    c.require(is_int(groups) and groups >= 1, "norm_num_groups", groups, "a positive integer")
    c.require(is_int(shift) and shift >= 0, "freq_shift", shift, "an integer of at least 0")
    return {
        "image_size": size,
        "num_res_blocks": layers,
        "out_channels": out_channels,
        "embedding_order": "cos_sin" if c.get("flip_sin_to_cos", True) else "sin_cos",
        "embedding_shift": shift,
        "norm_groups": groups,
        "norm_eps": c.get("norm_eps", 1e-5),
        "asymmetric_downsampling": padding == 0,
    }


class DiffusersNames(TensorNames):
    """Name the tensors as diffusers' UNet2DModel does.

    Args:
        found: the names in the file; attention has other names before diffusers 0.12.
    """

    outer: ClassVar = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip
    residual: ClassVar = {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    }  # fmt: skip
    attention_kernel: ClassVar = ()

    def __init__(self, found: Iterable[str]):
        old = any(name.endswith(".query.weight") for name in found)
        qkv, out = (("query", "key", "value"), "proj_attn") if old else (("to_q", "to_k", "to_v"), "to_out.0")
        self.attention = {"norm": ("group_norm",), "qkv": qkv, "proj_out": (out,)}

    def block_name(self, kind: str, block: Block) -> str:
        """Return the checkpoint's name of a block."""
        base = "mid_block" if block.part == "mid" else f"{block.part}_blocks.{block.level}"
        match kind:
            case "residual":
                return f"{base}.resnets.{block.index}"
            case "attention":
                return f"{base}.attentions.{block.index}"
        return f"{base}.{kind}rs.0.conv"
