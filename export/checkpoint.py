"""Published checkpoints -> `export.unet.UNet`, strictly: every tensor is used, and none is made up.

Three kinds of file are read:

- OpenAI's guided-diffusion ``.pt`` (or the same tensors as ``.safetensors``): a plain dict of tensors;
- ``ema.safetensors`` of `export.train`, which carries its `UNetConfig`;
- diffusers' ``UNet2DModel`` of the DDPM kind: the folder, or its weights with ``config.json`` beside them.

Nothing is ever unpickled but tensors: a pickle is a program, and a checkpoint comes from a stranger.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from export import from_diffusers
from export.unet import ADM256, UNet, UNetConfig
from zipsdk.errors import ModelError
from zipsdk.files import sha256_file

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the shapes of a guided-diffusion checkpoint cannot tell. The defaults are OpenAI's 256x256 model's.

    The other two kinds of checkpoint bring their own values and ignore these.
    `attention_order` is "legacy" (rows of qkv: per head q, k, v) or "new" (all q, all k, all v).
    """

    image_size: int = 256
    head_channels: int = 64
    norm_groups: int = 32
    attention_order: str = "legacy"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


def load(path: str | Path, flags: Flags | None = None) -> tuple[UNet, str]:
    """Read a checkpoint.

    Returns:
        The model (float32, CPU, eval, three output channels: epsilon or v, never the variance) and the SHA-256 of the
        file that its weights came from.

    Raises:
        ModelError: the file is missing, needs unpickling, is of an unknown or unsupported kind, or its tensors are not
            exactly the architecture's.
    """
    path, flags = Path(path), flags or Flags()
    file, config_json = _find(path)
    state, metadata = _read_safetensors(file) if file.suffix == ".safetensors" else (_read_pt(file), {})
    if "config" in metadata:
        try:
            config = UNetConfig.from_dict(json.loads(metadata["config"]))
        except (ValueError, TypeError, AttributeError) as e:
            raise ModelError(f"{file}: its UNetConfig cannot be read ({e}); train or convert it again") from e
        model = _fill(_empty(config, file), state, file)
    elif any(k.startswith("input_blocks.") for k in state):
        config = _openai_config(state, flags, file)
        if flags.attention_order == "new":
            state = {k: _head_by_head(v, config) if ".qkv." in k else v for k, v in state.items()}
        model = _fill(_empty(config, file), state, file)
    elif "conv_in.weight" in state:
        if config_json is None:
            raise ModelError(f"{file}: diffusers weights without config.json beside them; copy it there as well")
        model = _from_diffusers(state, config_json, file)
    else:
        raise ModelError(f"{file}: {_stranger(state)}")
    return epsilon_only(model).requires_grad_(False).eval(), sha256_file(file)


def epsilon_only(model: UNet) -> UNet:
    """Cut six output channels (epsilon and the learned variance) to the first three, in the last convolution itself."""
    last = model.out[2]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    if model.config.out_channels == 6:
        last.weight = nn.Parameter(last.weight[:3].detach().clone())
        last.bias = nn.Parameter(last.bias[:3].detach().clone())
        last.out_channels = 3
        model.config = replace(model.config, out_channels=3)
    return model


def random_adm(channels: int = 256, seed: int = 0) -> UNet:
    """OpenAI's 256x256 architecture with random weights, the same for the same seed: to time it without its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return epsilon_only(UNet(replace(ADM256, model_channels=channels))).requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------- reading files


def _find(path: Path) -> tuple[Path, Path | None]:
    """The file with the weights, and the config.json beside it when there is one."""
    if path.is_dir():
        names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
        file = next((path / n for n in names if (path / n).is_file()), None)
        if file is None:
            hint = f"; did you mean {path / 'unet'}?" if (path / "unet").is_dir() else ""
            raise ModelError(f"{path}: a folder with neither {names[0]} nor {names[1]}{hint}")
    elif path.is_file():
        file = path
    else:
        raise ModelError(f"{path}: no such file or folder")
    config = file.with_name("config.json")
    return file, config if config.is_file() else None


def _read_safetensors(file: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(file, "pt") as f:
            return {k: f.get_tensor(k).float() for k in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{file}: not a safetensors file, or cut short ({e}); copy or download it again") from e


def _read_pt(file: Path) -> State:
    try:
        with warnings.catch_warnings():
            # torch asks for a report of a pickle that is not its own, just before it refuses it
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # files from before torch 1.6 are no zip archives and cannot be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"{file}: it holds Python objects besides tensors, and unpickling these can run any code, so it is refused."
            " Where you trust the file, save its tensors alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from e
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        raise ModelError(f"{file}: not a torch checkpoint, or cut short ({e}); copy or download it again") from e
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        got = f"a dict of {_some(map(str, loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise ModelError(
            f"{file}: got {got}, wanted a plain dict of tensors. A training state holds one of these; save the averaged"
            " weights alone: torch.save(state['ema'], 'weights.pt'). Of python -m export.train, give ema.safetensors"
        )
    return {str(k): v.float() for k, v in loaded.items()}


def _stranger(state: Mapping[str, Tensor]) -> str:
    for prefix in ("module.", "model.", "ema.", "ema_model.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            return (
                f"every name begins with {prefix!r}, a wrapper's doing, and only you know which weights these are"
                " (averaged or not). Save them without it: "
                f"torch.save({{k.removeprefix({prefix!r}): v for k, v in state.items()}}, 'weights.pt')"
            )
    return (
        f"unknown kind of checkpoint, with tensors {_some(state)}; wanted OpenAI's guided-diffusion (input_blocks...), "
        "diffusers' UNet2DModel (conv_in...) or ema.safetensors of python -m export.train"
    )


# ---------------------------------------------------------------------------------------------- strictness


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _empty(config: UNetConfig, file: Path) -> UNet:
    """The architecture without memory for weights: those of the checkpoint are put in as they lie in the file."""
    try:
        with torch.device("meta"):
            return UNet(config)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError, IndexError) as e:
        raise ModelError(f"{file}: no UNet can be built for it ({e}); check the flags: {config}") from e


def _check(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], file: Path) -> None:
    missing = [k for k in wanted if k not in state]
    extra = [k for k in state if k not in wanted]
    shapes = [
        f"{k} (got {tuple(state[k].shape)}, wanted {tuple(wanted[k])})"
        for k in wanted
        if k in state and tuple(state[k].shape) != tuple(wanted[k])
    ]
    found = [(len(n), what, n) for what, n in (("missing", missing), ("extra", extra), ("misshapen", shapes)) if n]
    if found:
        problems = "; ".join(f"{count} {what}: {_some(names)}" for count, what, names in found)
        raise ModelError(f"{file}: not the tensors of this architecture ({len(wanted)} wanted): {problems}")


def _fill(model: UNet, state: State, file: Path) -> UNet:
    _check({k: tuple(v.shape) for k, v in model.state_dict().items()}, state, file)
    model.load_state_dict(state, strict=True, assign=True)
    return model


# ---------------------------------------------------------------------------------------------- guided-diffusion


def _openai_config(state: State, flags: Flags, file: Path) -> UNetConfig:
    """The configuration, as far as shapes reveal it from them, the rest from `flags`."""
    if "label_emb.weight" in state:
        raise ModelError(
            f"{file}: label_emb.weight makes it class-conditional, and a purifier does not know the class; "
            "give the unconditional model (256x256_diffusion_uncond.pt)"
        )
    if flags.attention_order not in ("legacy", "new"):
        raise ModelError(f"attention order: got {flags.attention_order!r}, wanted 'legacy' or 'new'")
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
    if in_channels != 3:
        raise ModelError(f"{file}: got {in_channels} input channels, wanted 3: is it a super-resolution model?")
    if out_channels not in (3, 6):
        raise ModelError(f"{file}: got {out_channels} output channels, wanted 3, or 6 with learned variance")
    if any(w % channels for w in widths):
        raise ModelError(f"{file}: got channels {widths}, wanted multiples of {channels}, as the time embedding has")
    config = UNetConfig(
        image_size=flags.image_size,
        model_channels=channels,
        channel_mult=tuple(w // channels for w in widths),
        num_res_blocks=per_level - 1,
        out_channels=out_channels,
        attention_downsampling=tuple(2**n for n, block in enumerate(first) if f"{block}.1.qkv.weight" in state),
        num_head_channels=flags.head_channels,
        resblock_updown=any(".in_layers." in k for k in state if re.match(r"output_blocks\.\d+\.[12]\.", k)),
        use_scale_shift_norm=film,
        norm_groups=flags.norm_groups,
        timesteps=flags.timesteps,
        beta_start=flags.beta_start,
        beta_end=flags.beta_end,
    )
    attended = [w for w, block in zip(widths, first, strict=True) if f"{block}.1.qkv.weight" in state]
    if attended and any(w % flags.head_channels for w in (*attended, widths[-1])):
        raise ModelError(f"{file}: head_channels={flags.head_channels} does not divide attention's {attended} channels")
    if flags.image_size % config.downsampling:
        raise ModelError(f"image size: got {flags.image_size}, wanted a multiple of {config.downsampling}")
    return config


def _head_by_head(tensor: Tensor, config: UNetConfig) -> Tensor:
    """Rows of a qkv weight or bias from all q, all k, all v into q, k, v of each head in turn."""
    width = len(tensor) // 3
    heads = width // config.num_head_channels if config.num_head_channels > 0 else 1
    return tensor.reshape(3, heads, width // heads, -1).transpose(0, 1).reshape(tensor.shape).contiguous()


# ---------------------------------------------------------------------------------------------- diffusers


def _from_diffusers(state: State, config_json: Path, file: Path) -> UNet:
    model = _empty(from_diffusers.read_config(config_json), file)
    sources, wanted = from_diffusers.names(model, state)
    _check(wanted, state, file)
    ours = {}
    for key, tensor in model.state_dict().items():
        joined = torch.cat([state[name] for name in sources[key]]).reshape(tensor.shape)
        ours[key] = _head_by_head(joined, model.config) if ".qkv." in key else joined
    return _fill(model, ours, file)
