"""diffusers' UNet2DModel of the DDPM kind, in terms of `export.unet`: its configuration, and its names of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from export.flags import ARCHITECTURE, Flags, Say, refuse, silent
from export.scheduler import find_scheduler, read_json, read_scheduler, resolve
from export.tensor_names import Block, TensorNames
from export.unet import UNetConfig
from zipsdk._util.validation import is_whole
from zipsdk.errors import ModelError

#: What else a UNet2DModel can be told, and the one value of each that this UNet computes; diffusers' defaults all.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "in_channels": (3,), "center_input_sample": (False,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "attn_norm_num_groups": (None,), "class_embed_type": (None,), "num_class_embeds": (None,),
}  # fmt: skip


def read_config(path: Path, flags: Flags | None = None, say: Say = silent) -> UNetConfig:
    """Read ``config.json``, and the pipeline's ``scheduler_config.json`` (`export.scheduler.find_scheduler`).

    Args:
        path: the configuration, beside the weights.
        flags: those of the noise process win over the scheduler's file.
        say: takes a line on what was read, assumed or replaced.

    Returns:
        The same network's configuration here.

    Raises:
        ModelError: not a UNet2DModel's configuration, or one that this UNet does not compute; the value is named.
    """
    flags = flags or Flags()
    refuse(flags, ARCHITECTURE, path, "it")
    try:
        return _config(path, flags, say)
    except (KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{path}: not a UNet2DModel's configuration ({e!r}); copy it again") from e


def _config(path: Path, flags: Flags, say: Say) -> UNetConfig:
    c = read_json(path)

    def want(ok: bool, key: str, value: object, wanted: str) -> None:
        if not ok:
            raise ModelError(f"{path}: {key}: got {value!r}, wanted {wanted}; this UNet2DModel is not supported")

    known = {
        "sample_size", "out_channels", "freq_shift", "flip_sin_to_cos", "down_block_types", "up_block_types",
        "block_out_channels", "layers_per_block", "downsample_padding", "dropout", "attention_head_dim",
        "norm_num_groups", "norm_eps", "num_train_timesteps", "add_attention",
    }  # fmt: skip
    want(c.get("in_channels", 3) != 4, "in_channels", 4, "3 (RGB), and 4 is a latent-diffusion UNet's")
    want(c.get("_class_name", "UNet2DModel") == "UNet2DModel", "_class_name", c.get("_class_name"), "'UNet2DModel'")
    for key, value in c.items():
        if not key.startswith("_") and key not in known:
            want(key in _PLAIN, key, value, "no such key")
            want(value in _PLAIN[key], key, value, repr(_PLAIN[key][0]))
    widths, down, up = c["block_out_channels"], c["down_block_types"], c["up_block_types"]
    for types, kinds in ((down, ("DownBlock2D", "AttnDownBlock2D")), (up, ("UpBlock2D", "AttnUpBlock2D"))):
        for kind in types:
            want(kind in kinds, "block type", kind, " or ".join(kinds))
    attention = [kind.startswith("Attn") for kind in down]
    mirrored = attention == [kind.startswith("Attn") for kind in reversed(up)] and len(widths) == len(down)
    want(mirrored, "up_block_types", up, f"the mirror image of {down}")
    middle = c.get("add_attention", True)
    want(any(attention) == middle, "down_block_types", down, "attention in one of them" if middle else "no attention")
    want(all(w % widths[0] == 0 for w in widths), "block_out_channels", widths, "multiples of the first")
    padding = c.get("downsample_padding", 1)
    want(padding in (0, 1), "downsample_padding", padding, "0 or 1")
    size = c.get("sample_size")
    size = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
    want(is_whole(size) and size > 0, "sample_size", size, "a whole number")
    want(c.get("out_channels", 3) in (3, 6), "out_channels", c.get("out_channels"), "3 or 6")
    wholes = {"layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": 8, "freq_shift": 0}
    for key, default in wholes.items():
        value = c.get(key, default)
        nullable = key == "attention_head_dim" and value is None
        want(nullable or (is_whole(value) and value >= (key != "freq_shift")), key, value, "a whole number")
    head = c.get("attention_head_dim", 8)
    attended = [w for w, a in zip((*widths, widths[-1]), (*attention, middle), strict=True) if a]
    want(head is None or all(w % head == 0 for w in attended), "attention_head_dim", head, f"a divisor of {attended}")

    scheduler = find_scheduler(path)
    missing = f"{path.parent}: no scheduler_config.json in it or in ../scheduler"
    noise = resolve(read_scheduler(scheduler) if scheduler else None, flags, str(scheduler or missing), say)
    return UNetConfig(
        image_size=size,
        model_channels=widths[0],
        channel_mult=tuple(w // widths[0] for w in widths),
        num_res_blocks=c.get("layers_per_block", 2),
        out_channels=c.get("out_channels", 3),
        attention_downsampling=tuple(2**n for n, a in enumerate(attention) if a),
        num_head_channels=c.get("attention_head_dim", 8) or 0,
        use_scale_shift_norm=False,
        embedding_order="cos_sin" if c.get("flip_sin_to_cos", True) else "sin_cos",
        embedding_shift=c.get("freq_shift", 0),
        norm_groups=c.get("norm_num_groups", 32),
        norm_eps=c.get("norm_eps", 1e-5),
        asymmetric_downsampling=padding == 0,
        **asdict(noise),
    )


class DiffusersNames(TensorNames):
    """Name the tensors as diffusers' UNet2DModel does.

    Args:
        found: the names in the file, which tell the names of attention before diffusers 0.12 from later ones.
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
