"""Weights of victims that travel with the repository: float16 safetensors, named by the hash of their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ModelError

FOLDER = Path(__file__).parent / "weights"


def path_of(key: str, folder: Path = FOLDER) -> Path:
    """Return the file of a training's weights, whether it exists or not; `key` has 64 hex digits."""
    return folder / f"{key[:16]}.safetensors"


def round_to_half(model: nn.Module) -> None:
    """Round the parameters to float16, as `store` does: a network just trained then equals the loaded one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def store(state: dict[str, torch.Tensor], key: str, training: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write the weights of a state whose parameters are rounded; return the file.

    Tensors that float16 holds exactly are written in it. Statistics of batch normalization stay float32.

    Args:
        state: of the network.
        key: hash of the training.
        training: JSON values about it that are not in the key: precision, processor, versions.
        folder: of the weights.
    """
    tensors = {}
    for name, value in state.items():
        value = value.detach().cpu()
        half = value.half() if value.is_floating_point() else value
        tensors[name] = (half if torch.equal(half.to(value.dtype), value) else value).contiguous()
    path = path_of(key, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, {"key": key, "training": json.dumps(training)}))
    return path


def training_of(key: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return the description of the training that `store` got."""
    with safe_open(path_of(key, folder), "pt") as file:
        training: dict[str, Any] = json.loads(file.metadata()["training"])
    return training


def load_into(model: nn.Module, key: str, folder: Path = FOLDER) -> bool:
    """Load stored weights into a network; return whether there are any.

    Raises:
        ModelError: a damaged file, or weights of another network.
    """
    path = path_of(key, folder)
    if not path.is_file():
        return False
    try:
        model.load_state_dict(load(path.read_bytes()))
    except (SafetensorError, RuntimeError) as e:
        raise ModelError(
            f"{path}: got weights that cannot be used ({e}); restore the file, or delete it to train"
        ) from e
    return True
