"""The inputs and contenders of `bench.gpu.kernels`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from bench.gpu.machines import Cpu, Gpu
from bench.gpu.torch_bodies import Work, paper_body, x0_body
from bench.timing.torch_loops import LAMBDA
from zipsdk.gpu import structs
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import StepTable, step_table
from zipsdk.sampling.tiling import TileLayout
from zipsdk.transforms import Blur, Grayscale, Linear

SIDE = 256


def rows(row: np.void, n: int = 1) -> np.ndarray:
    """Repeat a struct n times."""
    return np.array([row] * n, row.dtype)


def check(name: str, got: Any, want: np.ndarray, tolerance: float) -> None:
    """Exit unless a contender's result is within a tolerance of the reference."""
    got = got.cpu().numpy() if isinstance(got, torch.Tensor) else got
    error = np.abs(got.astype(np.float64) - want).max()
    if not error <= tolerance:
        raise SystemExit(f"{name}: got an error of {error:.3g}, expected at most {tolerance:.3g}; nothing is timed")


class KernelSetup:
    """Inputs of one size. The `*_row` methods return the bytes to move and the contenders, with the kernel first."""

    def __init__(self, machine: Cpu | Gpu, frames: int, seed: int, compiled: bool):
        self.machine, self.n, self.compiled = machine, frames, compiled
        rng = np.random.default_rng(seed)
        shape = (frames, 3, SIDE, SIDE)
        self.elements = int(np.prod(shape))
        spec = ModelSpec(name="bench", image_size=SIDE, multiple=SIDE, min_side=SIDE, max_side=SIDE)
        self.table = step_table(spec, lam=LAMBDA)
        self.guide = Guidance([Blur(2), Grayscale()])
        self.noise = Noise(seed, np.arange(frames))
        self.x, self.e = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        self.rgb = rng.integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8)
        self.u8 = np.ascontiguousarray(self.rgb.transpose(0, 3, 1, 2))
        self.x_p = self.u8.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)

        layout = TileLayout(SIDE, SIDE, SIDE, SIDE)
        self.layout = structs.layout_row(layout, SIDE, SIDE)
        self.batch = machine.array(structs.batch_row(frames, layout, seed).view(np.uint8))
        self.who = machine.array(structs.image_rows(self.noise.noise_keys).view(np.uint8))
        row = structs.guide_row(self.guide)
        assert row is not None
        self.guides = machine.array(rows(row).view(np.uint8))
        self.out = machine.array(np.empty(shape, np.float32))
        self.at(500)

    def at(self, t: int) -> KernelSetup:
        """Set the time step of the next rows."""
        self.step = next(s for s in self.table.steps if s.t == t)
        self.steps = self.machine.array(rows(structs.step_row(self.step), self.n).view(np.uint8))
        return self

    def launch(self, kernel: str, work: int, *arguments: Any, block: int = 256) -> None:
        """Launch a kernel with one thread for each unit of work; pass tensors by address."""
        self.machine.launch(kernel, -(-work // block), block,
                            *(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments))  # fmt: skip

    def reference(self, x: np.ndarray, e: np.ndarray, guide: Guidance) -> np.ndarray:
        """Run one step of zipsdk.sampling.sampler; it modifies `x`."""
        noise = self.noise

        class NoiseFromX:
            def normal(self, step: int, height: int, width: int, top: int = 0) -> np.ndarray:
                if step == STEP_INITIAL:
                    return x[:, :, top : top + height]
                return noise.normal(step, height, width, top)

        return sampler.sample(lambda *_: e, self.x_p, StepTable((self.step,), warm=False), guide, NoiseFromX())

    def torch_bodies(self, e: torch.Tensor) -> dict[str, Work]:
        """Make the torch contenders of the step."""
        x, x_p, k = self.machine.array(self.x), self.machine.array(self.x_p), self.step
        bodies = {"torch, paper": paper_body, "torch, x0 form": x0_body}
        z = self.machine.array(self.noise.normal(k.t, SIDE, SIDE))
        want = self.reference(self.x.copy(), e.float().cpu().numpy(), self.guide)
        for name, body in bodies.items():
            check(name, body(x, e.float(), x_p, k, z), want, 1e-4)
        works: dict[str, Work] = {name: partial(body, x, e.float(), x_p, k, None) for name, body in bodies.items()}
        if self.compiled:
            torch.compiler.reset()
            for name, body in bodies.items():
                # fullgraph: raise an error instead of falling back to eager
                fast = torch.compile(body, dynamic=False, fullgraph=True)
                check(name, fast(x, e.float(), x_p, k, z), want, 1e-4)
                fast(x, e.float(), x_p, k, None)
                works[name.replace("torch", "torch.compile")] = partial(fast, x, e.float(), x_p, k, None)
        return works

    def step_row(self, precision: str) -> tuple[int, dict[str, Work]]:
        """The step."""
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[precision]
        x, u8, e = self.machine.array(self.x), self.machine.array(self.u8), self.machine.array(self.e).to(kind)
        warps = self.n * (SIDE // 16) ** 2

        def kernel() -> None:
            self.launch(f"zip_step_{precision}", 32 * warps, x, e, u8, self.out, self.who, self.guides, self.steps,
                        self.layout, self.batch)  # fmt: skip

        kernel()
        value = e.float().cpu().numpy()
        check(f"zip_step_{precision}", self.out, self.reference(self.x.copy(), value, self.guide), 1e-5)
        works: dict[str, Work] = {"kernel": kernel}
        if isinstance(self.machine, Cpu):
            works["numpy"] = lambda: self.reference(self.x.copy(), value, self.guide)
        return (13 if precision == "f32" else 11) * self.elements, {**works, **self.torch_bodies(e)}

    def ingest_row(self) -> tuple[int, dict[str, Work]]:
        """The start: images to planes, and the initial noise."""
        images, u8 = self.machine.array(self.rgb), self.machine.array(np.zeros_like(self.u8))

        def kernel() -> None:
            self.launch("zip_ingest", self.elements // 12, images, u8, self.out, self.who, self.layout, self.batch)

        kernel()
        check("zip_ingest", u8, self.u8, 0)
        check("zip_ingest", self.out, self.noise.normal(STEP_INITIAL, SIDE, SIDE), 1e-4)
        works: dict[str, Work] = {"kernel": kernel}
        if isinstance(self.machine, Cpu):
            works["numpy"] = lambda: (np.ascontiguousarray(self.rgb.transpose(0, 3, 1, 2)),
                                      self.noise.normal(STEP_INITIAL, SIDE, SIDE))  # fmt: skip
        works["torch"] = lambda: (images.permute(0, 3, 1, 2).contiguous(), torch.randn_like(self.out))
        return 6 * self.elements, works

    def egress_row(self) -> tuple[int, dict[str, Work]]:
        """The end: state to uint8 images."""
        x, images = self.machine.array(self.x), self.machine.array(np.zeros_like(self.rgb))
        flag = self.machine.array(np.zeros(1, np.uint32))

        def kernel() -> None:
            self.launch("zip_egress", self.elements // 12, x, images, flag, self.layout, self.batch)

        def numpy() -> np.ndarray:
            v = np.clip(np.rint((self.x + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
            return np.ascontiguousarray(v.transpose(0, 2, 3, 1))

        def plain() -> torch.Tensor:
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

        kernel()
        check("zip_egress", images, numpy(), 0)
        check("torch", plain(), numpy(), 0)
        works: dict[str, Work] = {"kernel": kernel, "torch": plain}
        return 5 * self.elements, {**works, **({"numpy": numpy} if isinstance(self.machine, Cpu) else {})}

    def linear_row(self) -> tuple[int, dict[str, Work]]:
        """A separable transform of rank 4 on 8 x 8 blocks: four kernels, with two more passes over memory."""
        rng = np.random.default_rng(1)
        transform = Linear.separable(rng.standard_normal((4, 8)), rng.standard_normal((4, 8)))
        left, right = (m.astype(np.float32) for m in (transform._pr, transform._pc))
        x, u8, e = (self.machine.array(a) for a in (self.x, self.u8, self.e))
        r, half = torch.empty_like(x), torch.empty_like(x)
        matrices = [self.machine.array(m) for m in (right, left)]
        one, zero, eight = np.float32(1), np.float32(0), np.uint32(8)

        def kernel() -> None:
            quarter, tables = self.elements // 12, (self.layout, self.batch)
            self.launch("zip_residual_f32", quarter, x, e, u8, r, self.steps, *tables)
            self.launch("zip_apply", self.elements, r, half, matrices[0], eight, np.uint32(0), one, zero, *tables)
            self.launch("zip_apply", self.elements, half, r, matrices[1], eight, np.uint32(1), one, zero, *tables)
            self.launch("zip_finish_f32", quarter, x, e, r, self.out, self.who, self.steps, *tables)

        x_p, k, (pr, pc) = self.machine.array(self.x_p), self.step, (matrices[1], matrices[0])

        def plain(z: torch.Tensor | None = None) -> torch.Tensor:
            x_0 = k.a * x - k.b * e
            blocks = (x_p - x_0).reshape(self.n, 3, SIDE // 8, 8, SIDE // 8, 8).transpose(3, 4)
            p = (pr @ blocks @ pc.T).transpose(3, 4).reshape(x.shape)
            return k.c * (x_0 + k.w * p) + k.d * e + k.s * (torch.randn_like(x) if z is None else z)

        kernel()
        want = self.reference(self.x.copy(), self.e, Guidance([transform]))
        check("Linear", self.out, want, 1e-5)
        check("torch", plain(self.machine.array(self.noise.normal(k.t, SIDE, SIDE))), want, 1e-4)
        works: dict[str, Work] = {"kernel": kernel, "torch": plain}
        if isinstance(self.machine, Cpu):
            works["numpy"] = lambda: self.reference(self.x.copy(), self.e, Guidance([transform]))
        return 13 * self.elements, works
