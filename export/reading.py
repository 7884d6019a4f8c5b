"""Find and read checkpoint files, unpickling tensors and plain numbers only: other pickles can run any code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zipsdk.errors import ModelError

from .flags import OnProgress
from .json_config import read_json

State = dict[str, Tensor]
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def find(path: Path) -> tuple[Path, Path | None]:
    """Find the file with the weights, and the config.json beside it if there is one.

    Args:
        path: a file, a folder with diffusers' weights, or a diffusers pipeline (a folder with ``unet/``).

    Raises:
        ModelError: there is no such file, or the folder is not a pixel-space pipeline of diffusers.
    """
    if path.is_dir():
        _check_pipeline(path)
        folders = (path, path / "unet") if (path / "unet").is_dir() else (path,)
        file = next((f / n for f in folders for n in _WEIGHTS if (f / n).is_file()), None)
        if file is None:
            raise ModelError(
                f"{path}: got a folder with neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}, expected one{_hint(folders[-1])}"
            )
    elif path.is_file():
        file = path
    else:
        raise ModelError(f"{path}: no such file or folder; check the path")
    config = file.with_name("config.json")
    return file, config if config.is_file() else None


def _check_pipeline(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        return
    parts = read_json(index)
    kind = parts.get("_class_name", "a pipeline")
    if latent := {"vae", "vqvae", "movq"} & parts.keys():
        raise ModelError(
            f"{index}: {kind} has a {latent.pop()}, so its UNet denoises latents, expected pixels; "
            "use a pixel-space model, such as a DDPMPipeline"
        )
    unet = parts.get("unet")
    if unet is not None and "UNet2DModel" not in unet:
        raise ModelError(f"{index}: {kind} has a {unet[-1]}, expected a UNet2DModel; this model is not supported")
    if unet is None and "_class_name" in parts:
        raise ModelError(f"{index}: {kind} has no unet, expected a UNet2DModel; this model is not supported")


def _hint(folder: Path) -> str:
    others = sorted(f.name for f in folder.glob("diffusion_pytorch_model*"))
    return f"; {', '.join(others[:3])} is another variant or a part: save the model in one file" if others else ""


def read(file: Path, on_progress: OnProgress) -> tuple[State, dict[str, str]]:
    """Read all tensors as float32, and the metadata of a safetensors file.

    Args:
        file: a safetensors file, or one that torch.save wrote.
        on_progress: takes a line on which weights of a training state were taken.

    Raises:
        ModelError: the file is damaged, or holds other Python objects than tensors.
    """
    if file.suffix == ".safetensors":
        state, metadata = _read_safetensors(file)
    else:
        state, metadata = _read_pt(file, on_progress), {}
    if state and all(k.startswith("module.") for k in state):  # torch's DataParallel adds it
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state, metadata


def _read_safetensors(file: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(file, "pt") as f:
            return {k: f.get_tensor(k).float() for k in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{file}: not a safetensors file, or cut short ({e}); copy or download it again") from e


def _read_pt(file: Path, on_progress: OnProgress) -> State:
    try:
        with file.open("rb") as f:
            # a zip archive's, or the pickle's of torch before 1.6; torch would call another file foreign objects
            if f.read(1) not in (b"P", b"\x80"):
                raise ModelError(f"{file}: not a torch checkpoint, or damaged; copy or download it again")
        with warnings.catch_warnings():
            # torch warns of a foreign pickle, then refuses it.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # Files from before torch 1.6 are not zip archives and cannot be mapped.
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"{file}: got Python objects besides tensors, expected tensors; unpickling other objects can run any code. "
            "If you trust the file, save its tensors alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from e
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        raise ModelError(f"{file}: not a torch checkpoint, or cut short ({e}); copy or download it again") from e
    if isinstance(loaded, list):
        loaded = _training_list(loaded, file, on_progress)
    if not _is_state(loaded):
        got = f"a dict of {some(map(str, loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise ModelError(
            f"{file}: got {got}, expected a plain dict of tensors. From a training state, save the averaged weights "
            f"alone: torch.save(state['ema'], 'weights.pt'). From python -m {__package__}.train, use ema.safetensors"
        )
    return {str(k): v.float() for k, v in loaded.items()}


def _is_state(loaded: object) -> bool:
    return isinstance(loaded, dict) and bool(loaded) and all(isinstance(v, Tensor) for v in loaded.values())


def _training_list(loaded: list[Any], file: Path, on_progress: OnProgress) -> Any:
    """Return the weights of ermongroup/ddim's training state: [model, optimizer, epoch, step, averaged weights]."""
    if not loaded or not _is_state(loaded[0]):
        return loaded
    if len(loaded) == 5 and _is_state(loaded[4]):
        on_progress(f"{file}: a training state; taking its averaged weights")
        return loaded[4]
    on_progress(f"{file}: a training state without averaged weights; taking its last weights")
    return loaded[0]


def some(names: Iterable[Any]) -> str:
    """Return the first three names and the number of the others, as text."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
