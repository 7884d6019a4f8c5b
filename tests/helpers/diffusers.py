"""Save small UNets in the layout of diffusers; needs torch and safetensors."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

from export.unet import UNet, UNetConfig

DDPM = UNetConfig(
    image_size=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_downsampling=(2,),
    num_head_channels=0, use_scale_shift_norm=False, embedding_order="sin_cos", embedding_shift=1, norm_groups=4,
    norm_eps=1e-6, asymmetric_downsampling=True,
)  # fmt: skip


DDPM_JSON = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [8, 16], "center_input_sample": False, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 1,
    "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 4, "out_channels": 3, "sample_size": 16,
    "time_embedding_type": "positional", "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


#: Four heads and the defaults of diffusers, which HEADS_JSON leaves out.
HEADS = replace(
    DDPM,
    num_head_channels=4,
    embedding_order="cos_sin",
    embedding_shift=0,
    norm_eps=1e-5,
    asymmetric_downsampling=False,
)


DEFAULTS = ("flip_sin_to_cos", "freq_shift", "norm_eps", "downsample_padding")


HEADS_JSON = {k: v for k, v in DDPM_JSON.items() if k not in DEFAULTS} | {"attention_head_dim": 4}


#: Names of such a model's tensors, copied from a listing.
RESNETS = {
    "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.3.0": "down_blocks.1.resnets.0",
    "middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0", "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.2.0": "up_blocks.1.resnets.0", "output_blocks.3.0": "up_blocks.1.resnets.1",
}  # fmt: skip


ATTENTIONS = {
    "input_blocks.3.1": "down_blocks.1.attentions.0", "middle_block.1": "mid_block.attentions.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0", "output_blocks.1.1": "up_blocks.0.attentions.1",
}  # fmt: skip


OTHERS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv", "out.0": "conv_norm_out", "out.2": "conv_out",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
}  # fmt: skip


LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def diffusers_state(model, parts):
    """Return the weights of `model` under the names and in the order of diffusers.

    Args:
        parts: the names of q, k, v and the output projection.
    """
    names = dict(OTHERS)
    for ours, theirs in RESNETS.items():
        names |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in LAYERS.items()}
    for ours, theirs in ATTENTIONS.items():
        names |= {f"{ours}.norm": f"{theirs}.group_norm", f"{ours}.proj_out": f"{theirs}.{parts[3]}"}
    state = {}
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if module.endswith(".qkv"):
            width = tensor.shape[0] // 3
            head = model.config.num_head_channels or width
            for i, part in enumerate(parts[:3]):  # ours: q, k, v of each head in turn; diffusers: all q, all k, all v
                order = [3 * head * (row // head) + head * i + row % head for row in range(width)]
                rows = tensor[order].reshape(width, -1) if leaf == "weight" else tensor[order]
                state[f"{ATTENTIONS[module.removesuffix('.qkv')]}.{part}.{leaf}"] = rows
        else:
            squeezed = tensor[:, :, 0] if module.endswith(".proj_out") and leaf == "weight" else tensor
            state[f"{names[module]}.{leaf}"] = squeezed.clone()
    return state


def folder_of(config, config_json, folder):
    """Write a model with random weights to a folder; return the folder and the model."""
    torch.manual_seed(0)
    model = UNet(config).eval().requires_grad_(False)
    state = diffusers_state(model, ("to_q", "to_k", "to_v", "to_out.0"))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json))
    return folder, model
