"""Checkpoints of the bench's trainings: one file for each, written after every epoch."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from bench.common.optimization import check_weights
from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ModelError


def save_checkpoint(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    losses: list[float],
    *,
    finished: bool,
) -> None:
    """Write a checkpoint, with the optimizer's state unless the training is finished.

    Raises:
        InputError: a weight is not finite.
    """
    check_weights(model, optimizer.param_groups[0]["lr"])
    state = {"key": key, "epochs": epochs, "losses": losses, "model": model.state_dict()}
    if not finished:
        state["optimizer"] = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def load_checkpoint(
    path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Load a checkpoint of `save_checkpoint`; return the epochs and their losses, which older ones lack.

    Raises:
        ModelError: the checkpoint is damaged, or belongs to another training.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] != key:
            raise ValueError("it belongs to another training")
        model.load_state_dict(state["model"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"]), [float(loss) for loss in state.get("losses", [])]
    # a damaged file can raise any exception
    except Exception as e:
        raise ModelError(f"{path}: got a checkpoint that cannot be used ({e}); delete it to train anew") from e
