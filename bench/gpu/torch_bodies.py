"""One step of the loop in torch: as printed in the paper, and as zipsdk.sampling.sampler computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.timing.torch_loops import gray, paper_step, pool, rectified, repeat
from zipsdk.sampling.schedule import Step

Work = Callable[[], Any]


def paper_body(x: torch.Tensor, e: torch.Tensor, x_p: torch.Tensor, k: Step, z: torch.Tensor | None) -> torch.Tensor:
    """Compute Algorithm 2, lines 5 to 11, for A_1 = blur 2 and A_2 = gray."""
    z = (torch.randn_like(x) if z is None else z) if k.s else None
    return paper_step(x, e, rectified(x_p, repeat), z, k.ab, k.ab_next, k.s, k.d, repeat)


def x0_body(x: torch.Tensor, e: torch.Tensor, x_p: torch.Tensor, k: Step, z: torch.Tensor | None) -> torch.Tensor:
    """Compute the same step like zipsdk.sampling.sampler."""
    x_0 = k.a * x - k.b * e
    r = x_p - x_0
    x_0 = x_0 + (0.5 * k.w) * (repeat(pool(r)) + gray(r))
    x_next = k.c * x_0 + k.d * e
    return x_next + k.s * (torch.randn_like(x) if z is None else z) if k.s else x_next


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += "view" not in str(function) and "expand" not in str(function)
        return function(*args, **(kwargs or {}))


def operations(work: Work) -> int:
    """Count the torch operations of one call, without views."""
    with _Count() as count:
        work()
    return count.calls
