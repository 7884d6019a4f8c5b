"""Load published checkpoints into `export.unet.UNet`; every tensor must be used, and none may be missing.

Four kinds of checkpoint are read:

- OpenAI's guided-diffusion ``.pt`` (or the same tensors as ``.safetensors``): a plain dict of tensors;
- ``ema.safetensors`` of `export.train`, which has its `UNetConfig` in its metadata;
- diffusers' ``UNet2DModel`` of the DDPM kind: a pipeline's folder, or its weights with ``config.json`` beside them, and
  the pipeline's ``scheduler_config.json``;
- Ho et al.'s layout: ``celeba_hq.ckpt`` of DDRM and DDNM, and ermongroup/ddim's training states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from zipsdk.errors import ModelError
from zipsdk.models.sidecar import sha256_file

from . import diffusers_names, guided_diffusion, ho, reading
from .diffusers_names import DiffusersNames
from .flags import ARCHITECTURE, NOISE, Flags, OnProgress, ignore, refuse
from .guided_diffusion import head_by_head
from .ho import HoNames
from .reading import State, some
from .tensor_names import TensorNames
from .unet import ADM256, UNet, UNetConfig

__all__ = ["Flags", "epsilon_only", "load", "random_adm"]


def load(path: str | Path, flags: Flags | None = None, on_progress: OnProgress = ignore) -> tuple[UNet, str]:
    """Load a checkpoint.

    Args:
        path: a file, or a folder of diffusers.
        flags: values that the checkpoint does not hold.
        on_progress: takes a line for each value that was read from a file, assumed, or replaced by a flag.

    Returns:
        The model (float32, on the CPU, in eval mode, with three output channels: epsilon, v or x0, without the
        variance) and the SHA-256 of the file with its weights.

    Raises:
        ModelError: the file is missing, holds other Python objects than tensors, is of an unknown or unsupported kind,
            has not exactly the architecture's tensors, or lacks a value that `flags` lack too.
    """
    path, flags = Path(path), flags or Flags()
    file, config_json = reading.find(path)
    state, metadata = reading.read(file, on_progress)
    if "config" in metadata:
        refuse(flags, (*ARCHITECTURE, *NOISE), file, "its own configuration")
        try:
            config = UNetConfig.from_dict(json.loads(metadata["config"]))
        except (ValueError, TypeError, AttributeError) as e:
            raise ModelError(
                f"{file}: its UNetConfig cannot be read ({e}); write the file again by python -m {__package__}.train"
            ) from e
        model = _fill(_empty(config, file), state, file)
    elif any(k.startswith("input_blocks.") for k in state):
        config = guided_diffusion.read_config(state, flags, file, on_progress)
        if flags.attention_order == "new":
            state = {k: head_by_head(v, config) if ".qkv." in k else v for k, v in state.items()}
        model = _fill(_empty(config, file), state, file)
    elif ho.is_ho(state):
        config = ho.read_config(state, flags, file, on_progress)
        model = _fill_renamed(_empty(config, file), HoNames(config), state, file)
    elif "conv_in.weight" in state:
        if config_json is None:
            raise ModelError(
                f"{file}: got diffusers weights without config.json, expected it beside them; copy it there"
            )
        config = diffusers_names.read_config(config_json, flags, on_progress)
        model = _fill_renamed(_empty(config, file), DiffusersNames(state), state, file)
    else:
        raise ModelError(f"{file}: {_unknown(state)}")
    return epsilon_only(model).requires_grad_(False).eval(), sha256_file(file)


def epsilon_only(model: UNet) -> UNet:
    """Cut the last convolution's six output channels (epsilon and the learned variance) to three, in place."""
    last = model.out[2]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    if model.config.out_channels == 6:
        last.weight = nn.Parameter(last.weight[:3].detach().clone())
        last.bias = nn.Parameter(last.bias[:3].detach().clone())
        last.out_channels = 3
        model.config = replace(model.config, out_channels=3)
    return model


def random_adm(channels: int = 256, seed: int = 0) -> UNet:
    """Build OpenAI's 256x256 architecture with random weights that the seed determines, for timing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return epsilon_only(UNet(replace(ADM256, model_channels=channels))).requires_grad_(False).eval()


def _unknown(state: Mapping[str, Tensor]) -> str:
    for prefix in ("model.", "ema.", "ema_model.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            return (
                f"got names that all begin with {prefix!r}, which a wrapper adds, expected names without it. Save the "
                "weights that you want (averaged or not) without it: "
                f"torch.save({{k.removeprefix({prefix!r}): v for k, v in state.items()}}, 'weights.pt')"
            )
    return (
        f"got an unknown kind of checkpoint with tensors {some(state)}, expected OpenAI's guided-diffusion "
        "(input_blocks...), diffusers' UNet2DModel (conv_in...), Ho et al.'s (temb.dense...) or "
        f"ema.safetensors of python -m {__package__}.train"
    )


def _empty(config: UNetConfig, file: Path) -> UNet:
    """Build the architecture without memory for weights; the checkpoint's own tensors become its weights."""
    try:
        with torch.device("meta"):
            return UNet(config)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError, IndexError) as e:
        raise ModelError(f"{file}: no UNet can be built for {config} ({e}); check the flags") from e


def _check(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], file: Path) -> None:
    missing = [k for k in expected if k not in state]
    extra = [k for k in state if k not in expected]
    shapes = [
        f"{k} (got {tuple(state[k].shape)}, expected {tuple(expected[k])})"
        for k in expected
        if k in state and tuple(state[k].shape) != tuple(expected[k])
    ]
    found = [
        (len(n), what, n) for what, n in (("missing", missing), ("extra", extra), ("of another shape", shapes)) if n
    ]
    if found:
        problems = "; ".join(f"{count} {what}: {some(names)}" for count, what, names in found)
        raise ModelError(
            f"{file}: got other tensors than the {len(expected)} of this architecture: {problems}; check the flags"
        )


def _fill(model: UNet, state: State, file: Path) -> UNet:
    _check({k: tuple(v.shape) for k, v in model.state_dict().items()}, state, file)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def _fill_renamed(model: UNet, names: TensorNames, state: State, file: Path) -> UNet:
    """Fill a model from tensors with other names, and join q, k and v."""
    sources = names.sources(model)
    _check({name: source.shape for source in sources.values() for name in source.names}, state, file)
    ours = {}
    for key, tensor in model.state_dict().items():
        joined = torch.cat([state[name] for name in sources[key].names]).reshape(tensor.shape)
        ours[key] = head_by_head(joined, model.config) if ".qkv." in key else joined
    return _fill(model, ours, file)
