"""diffusers' UNet2DModel of the DDPM kind, in terms of `export.unet`: its configuration, and its names of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.flags import ARCHITECTURE, Flags, Say, refuse, silent
from export.scheduler import find_scheduler, read_json, read_scheduler, resolve
from export.unet import AttentionBlock, Downsample, ResBlock, UNet, UNetConfig, Upsample
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
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
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


def _modules(model: UNet) -> dict[str, str]:
    """Our modules with weights -> diffusers' (qkv and proj_out keep their names: `names` knows what they are there)."""
    names = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip
    per_level = model.config.num_res_blocks + 1
    apart = len(model.middle_block) - 1  # 2 with attention between the residual blocks, 1 without
    layers = [(f"middle_block.{i}", layer, "mid_block", i // apart) for i, layer in enumerate(model.middle_block)]
    for ours, theirs, skipped in (("input_blocks", "down_blocks", 1), ("output_blocks", "up_blocks", 0)):
        for n, stage in enumerate(model.get_submodule(ours).children()):
            if n >= skipped:  # input_blocks.0 is conv_in
                level, j = divmod(n - skipped, per_level)
                block = f"{theirs}.{level}"
                layers += [(f"{ours}.{n}.{i}", layer, block, j) for i, layer in enumerate(stage.children())]
    for ours, layer, theirs, j in layers:
        match layer:
            case ResBlock():
                names |= {f"{ours}.{a}": f"{theirs}.resnets.{j}.{b}" for a, b in _RESNET.items()}
            case AttentionBlock():
                pairs = (("norm", "group_norm"), ("qkv", "qkv"), ("proj_out", "proj_out"))
                names |= {f"{ours}.{a}": f"{theirs}.attentions.{j}.{b}" for a, b in pairs}
            case Downsample():
                names[f"{ours}.op"] = f"{theirs}.downsamplers.0.conv"
            case Upsample():
                names[f"{ours}.conv"] = f"{theirs}.upsamplers.0.conv"
    return names


def names(model: UNet, found: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, tuple[int, ...]]]:
    """Where each of our tensors comes from (qkv from three), and the shape of each tensor that the file must hold.

    `found` are the names in the file: attention was named otherwise before diffusers 0.12.
    """
    old = any(name.endswith(".query.weight") for name in found)
    parts = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    modules = _modules(model)
    sources: dict[str, list[str]] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        shape = tuple(tensor.shape)
        base, _, last = modules[module].rpartition(".")
        if last == "qkv":  # one Conv1d here, three Linear there
            theirs, shape = [f"{base}.{p}" for p in parts[:3]], (shape[0] // 3, *shape[1:2])
        elif last == "proj_out":
            theirs, shape = [f"{base}.{parts[3]}"], shape[:2]
        else:
            theirs = [modules[module]]
        sources[key] = [f"{name}.{leaf}" for name in theirs]
        wanted |= dict.fromkeys(sources[key], shape)
    return sources, wanted
