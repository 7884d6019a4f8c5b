"""Networks of the victims: the paper's ResNet-34, and two for CPU cores: a small one and a strong one of 32 pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Normalize(nn.Module):
    """Map [0, 1] to mean 0 and deviation 1 of each color channel of the training images."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


def _conv(inside: int, out: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if relu else [])]


class _Block(nn.Module):
    """ResNet's basic block (He et al. 2016, arXiv:1512.03385), with a projection where the size changes."""

    def __init__(self, inside: int, out: int, stride: int = 1):
        super().__init__()
        self.inner = nn.Sequential(*_conv(inside, out, 3, stride), *_conv(out, out, relu=False))
        same = stride == 1 and inside == out
        self.outer = nn.Identity() if same else nn.Sequential(*_conv(inside, out, 1, stride, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.outer(x), inplace=True)


def resnet34(classes: int, side: int) -> nn.Module:
    """Build ResNet-34; up to 64 pixels with the stem for small images (3 x 3, no pooling), else with ImageNet's."""
    small = side <= 64
    layers = _conv(3, 64) if small else [*_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for i in range(blocks):
            out = 64 << stage
            layers.append(_Block(width, out, 2 if stage and not i else 1))
            width = out
    return nn.Sequential(_Normalize(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def small_resnet(classes: int, side: int) -> nn.Module:
    """Build a network of eight convolutions at half resolution and below; doubling `side` above 32 adds one."""
    layers = _conv(3, 32, stride=2)
    for _ in range(max(0, round(math.log2(side / 32)))):
        layers += _conv(32, 32, stride=2)
    for inside, out in ((32, 64), (64, 128)):
        layers += [*_conv(inside, out), nn.MaxPool2d(2), _Block(out, out)]
    return nn.Sequential(_Normalize(), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, classes))


class _Residual(nn.Module):
    """Add two convolutions of the maps to the maps."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(*_conv(width, width), *_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x)
        return y


def strong_resnet(classes: int, side: int) -> nn.Module:
    """Build a ResNet of ten convolutions and 1.3 M parameters, of the kind that wins races on CIFAR-10.

    After Page's ResNet-9 (DAWNBench 2018), narrower: maps are pooled after the first convolution of a stage and before
    its batch normalization. Doubling `side` above 32 adds a pooled convolution.
    """
    layers, width = _conv(3, 24), 24
    for _ in range(max(0, round(math.log2(side / 32)))):
        layers += _pooled(24, 24)
    for out in (48, 128, 192):
        layers += [*_pooled(width, out), _Residual(out)]
        width = out
    return nn.Sequential(_Normalize(), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _pooled(inside: int, out: int) -> list[nn.Module]:
    conv, norm, relu = _conv(inside, out)
    return [conv, nn.MaxPool2d(2), norm, relu]


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "small": small_resnet,
    "strong": strong_resnet,
    "resnet34": resnet34,
}
