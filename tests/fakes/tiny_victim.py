"""Provide a victim that trains in milliseconds."""

from __future__ import annotations

import torch

from bench.victims import networks


class Tiny(torch.nn.Sequential):
    """Normalization, a convolution, batch normalization and a linear layer: all that a checkpoint must keep."""

    def __init__(self, classes: int, side: int):
        layers = [torch.nn.Conv2d(3, 4, 8, 8), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()]
        super().__init__(networks._Normalize(), *layers, torch.nn.Linear(4 * (side // 8) ** 2, classes))
