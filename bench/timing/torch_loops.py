"""ZIP's loop in plain torch, in four variants, to compare the SDK's loop with. Imports torch and no part of zipsdk.

    authors     the paper's lines one by one, with the overhead of the published implementation at each step: it
                computes the schedule again, twice; it creates the upsampled image as zeros on the host and copies it to
                the device, for each of its two uses; it copies x_t to the host and back
    eager       the same lines without that overhead
    scheduler   the `step` of a DDIM scheduler, like pipelines of diffusers, plus the correction of x0; written here,
                without diffusers
    compiled    `eager` through torch.compile, UNet and step

All have the paper's setting for CIFAR-10: A_1 averages cells of 2 x 2 pixels, A_2 is the mean of the colors, lambda 10,
eta 1, 20 steps. Operators and formulas are from the paper (3.2, algorithm 2), without code of the published
implementation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

U8 = npt.NDArray[np.uint8]
#: Draws standard normals for a time step, -1 for x_T: float32 like the state.
Draw = Callable[[int], Tensor]
#: The key of x_T's draw.
FIRST = -1
LAMBDA = 10.0
KINDS = ("authors", "eager", "scheduler", "compiled")


class ScheduleRow(NamedTuple):
    """One step: time, alpha-bar at this and at the next visited step, standard deviation of the new noise."""

    t: int
    ab: float
    ab_next: float
    s: float

    @property
    def d(self) -> float:
        """The coefficient of the predicted noise."""
        return max(0.0, 1.0 - self.ab_next - self.s**2) ** 0.5


def schedule(
    steps: int = 20, beta_start: float = 1e-4, beta_end: float = 0.02, timesteps: int = 1000
) -> list[ScheduleRow]:
    """Make the schedule: linear betas, a stride of T / steps, ancestral noise."""
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    ab = (1 - betas).cumprod(0).tolist()
    stride = timesteps // steps
    rows = []
    for t in range((steps - 1) * stride, -1, -stride):
        after = ab[t - stride] if t else 1.0
        s = ((1 - after) / (1 - ab[t]) * (1 - ab[t] / after)) ** 0.5
        rows.append(ScheduleRow(t, ab[t], after, s))
    return rows


def pool(x: Tensor) -> Tensor:
    """Average cells of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def repeat(y: Tensor) -> Tensor:
    """Repeat each pixel 2 x 2 times."""
    return y.repeat_interleave(2, -1).repeat_interleave(2, -2)


def gray(x: Tensor) -> Tensor:
    """Average the colors."""
    return x.mean(1, keepdim=True)


def spread(y: Tensor) -> Tensor:
    """Repeat one plane as three colors."""
    return y.repeat(1, 3, 1, 1)


def repeat_through_host(y: Tensor) -> Tensor:
    """Compute `repeat` by adding to zeros that are created on the host."""
    n, c, h, w = y.shape
    zeros = torch.zeros(n, c, h, 2, w, 2).to(y.device)
    return (zeros + y.view(n, c, h, 1, w, 1)).view(n, c, 2 * h, 2 * w)


def rectified(x_p: Tensor, up: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Compute A_n^+ A_n x_P of both transforms, which are constant over the steps."""
    return up(pool(x_p)), spread(gray(x_p))


def paper_step(
    x: Tensor, e: Tensor, guides: tuple[Tensor, Tensor], z: Tensor | None, ab: Any, ab_next: Any, s: Any, d: Any,
    up: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Compute Algorithm 2, lines 5 to 11.

    Args:
        z: the new noise; None: no noise is added.
        ab, ab_next, s, d: coefficients, numbers or tensors.
        up: the blur's pseudo-inverse.
    """
    hats = []
    for guide, a, pinv in ((guides[0], pool, up), (guides[1], gray, spread)):
        hats.append(ab**0.5 * guide + (x - pinv(a(x))) + pinv(a((1 - ab) ** 0.5 * e)))
    x_hat = (hats[0] + hats[1]) / 2
    x_tilde = (1 - ab**LAMBDA) * x_hat + ab**LAMBDA * x
    x_0 = (x_tilde - (1 - ab) ** 0.5 * e) / ab**0.5
    x_next = ab_next**0.5 * x_0 + d * e
    return x_next if z is None else x_next + s * z


class Scheduler:
    """DDIM (Song et al. 2021, equation 12) in the interface of diffusers' schedulers."""

    def __init__(self, rows: list[ScheduleRow]):
        self.timesteps = [row.t for row in rows]
        self._rows = {row.t: row for row in rows}

    def step(self, e: Tensor, t: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x at the next step and the estimate of x0."""
        row = self._rows[t]
        x_0 = (x - (1 - row.ab) ** 0.5 * e) / row.ab**0.5
        return row.ab_next**0.5 * x_0 + row.d * e + row.s * z, x_0

    def corrected(self, x_next: Tensor, x_0: Tensor, x_p: Tensor, t: int) -> Tensor:
        """Correct x_next so that x0 keeps A x_P, like a callback of a pipeline."""
        row = self._rows[t]
        off = x_p - x_0
        projected = (repeat(pool(off)) + spread(gray(off))) / 2
        return x_next + row.ab_next**0.5 * (1 - row.ab**LAMBDA) * projected


class Loop:
    """Purifies images: ``Loop(module, "eager")(uint8 (N, H, W, 3))``.

    Args:
        module: (x float32 (N, 3, H, W), t (N,)) -> eps like x; it is moved to `where`.
        kind: one of `KINDS`.
        steps: number of steps.
        where: a torch device.
        betas: beta_start, beta_end, timesteps.
    """

    def __init__(self, module: nn.Module, kind: str, steps: int = 20, where: str = "cpu",
                 betas: tuple[float, float, int] = (1e-4, 0.02, 1000)):  # fmt: skip
        self.module = module.to(where).eval().requires_grad_(False)
        self.kind, self.where, self.betas = kind, torch.device(where), betas
        self.rows = schedule(steps, *betas)
        self._sample: Callable[[Tensor, Draw], Tensor] = getattr(self, f"_{kind}")
        if kind == "compiled":
            self._network, self._step = torch.compile(self.module), torch.compile(paper_step)

    @torch.inference_mode()
    def __call__(self, images: U8, draw: Draw | None = None) -> U8:
        """Purify images.

        Args:
            draw: the noise by time step; None: torch's random numbers.
        """
        # contiguous, like images from data loaders; `randn_like` copies the memory order
        x_p = torch.from_numpy(images).to(self.where).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        x = self._sample(x_p, draw or (lambda t: torch.randn_like(x_p)))
        out = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(out.permute(0, 2, 3, 1).cpu().numpy())

    def _times(self, x: Tensor, t: int) -> Tensor:
        return torch.full((len(x),), float(t), device=x.device)

    def _authors(self, x_p: Tensor, draw: Draw) -> Tensor:
        start, end, count = self.betas
        betas = torch.linspace(start, end, count, device=self.where)

        def alpha_bar(t: int) -> Tensor:
            before = torch.cat([torch.zeros(1, device=self.where), betas])
            return (1 - before).cumprod(0).index_select(0, torch.tensor([t + 1], device=self.where)).view(1, 1, 1, 1)

        times, guides = [row.t for row in self.rows], rectified(x_p, repeat_through_host)
        kept = [draw(FIRST).cpu()]
        for t, after in zip(times, [*times[1:], -1], strict=True):
            ab, ab_next = alpha_bar(t), alpha_bar(after)
            x = kept[-1].to(self.where)
            e = self.module(x, self._times(x, t))
            s = (1 - ab / ab_next).sqrt() * ((1 - ab_next) / (1 - ab)).sqrt()
            d = (1 - ab_next - s**2).clamp_min(0).sqrt()
            kept.append(paper_step(x, e, guides, draw(t), ab, ab_next, s, d, repeat_through_host).cpu())
        return kept[-1].to(self.where)

    def _eager(self, x_p: Tensor, draw: Draw) -> Tensor:
        x, guides = draw(FIRST), rectified(x_p, repeat)
        for row in self.rows:
            e = self.module(x, self._times(x, row.t))
            x = paper_step(x, e, guides, draw(row.t), row.ab, row.ab_next, row.s, row.d, repeat)
        return x

    def _compiled(self, x_p: Tensor, draw: Draw) -> Tensor:
        x, guides = draw(FIRST), rectified(x_p, repeat)
        for row in self.rows:
            # tensors, because torch.compile would compile numbers in, once for each step
            ab, ab_next, s, d = (torch.tensor(v, device=self.where) for v in (row.ab, row.ab_next, row.s, row.d))
            e = self._network(x, self._times(x, row.t))
            x = self._step(x, e, guides, draw(row.t), ab, ab_next, s, d, repeat)
        return x

    def _scheduler(self, x_p: Tensor, draw: Draw) -> Tensor:
        scheduler, x = Scheduler(self.rows), draw(FIRST)
        for t in scheduler.timesteps:
            e = self.module(x, self._times(x, t))
            x_next, x_0 = scheduler.step(e, t, x, draw(t))
            x = scheduler.corrected(x_next, x_0, x_p, t)
        return x


def load_unet(path: str | Path) -> nn.Module:
    """Load a UNet from a safetensors file of `export.train`, with as few imports as possible."""
    from safetensors import safe_open

    from export.unet import UNet, UNetConfig

    with safe_open(path, "pt") as file:
        config = UNetConfig.from_dict(json.loads(file.metadata()["config"]))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = UNet(config)
    model.load_state_dict(state, assign=True)
    return model.float().eval().requires_grad_(False)
