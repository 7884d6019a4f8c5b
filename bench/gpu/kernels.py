"""The kernels of the loop against the same work in plain torch and in torch.compile: time, bytes per second, ratios.

    python -m bench.gpu.kernels                  on the CPU: the g++ build of the kernels and NumPy, one thread
    python -m bench.gpu.kernels --device cuda:0  on a GPU: the fatbin
    python -m bench.gpu.kernels --quick          one canvas, few rounds, no torch.compile, no record

Canvases are 256x256, the transforms blur2+gray, the step is the one at t = 500; the last, which draws no noise, shows
what noise costs. Every contender is checked against zipsdk.sampling.sampler before it is timed. They take turns;
ratios are of medians, their spread the quartiles of the rounds' ratios. Time is CPU time of one core, or on a GPU what
passes between two events. Bytes are those that must be moved at least (13 an element for the step in float32, 11 with
half precision e), for every contender alike, and the share is of the bandwidth of a plain copy.

The shim is built for tests: it runs the CUDA threads one after the other. Contender "torch, paper" is the body of the
loop as the paper prints it (Algorithm 2, lines 5 to 11), every operation one torch call; "torch, x0 form" is the same
step with a third of the work, as zipsdk.sampling.sampler has it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import record
from bench.timing.torch_loops import LAMBDA, gray, paper_step, pool, rectified, repeat
from kernels.launch import Device, Host, MissingKernelError
from zipsdk.gpu import structs
from zipsdk.gpu.fatbin import build_info, fatbin_path
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import Step, StepTable, step_table
from zipsdk.sampling.tiling import TileLayout
from zipsdk.transforms import Blur, Grayscale, Linear

SIDE = 256
Work = Callable[[], Any]


def paper_body(x: torch.Tensor, e: torch.Tensor, x_p: torch.Tensor, k: Step, z: torch.Tensor | None) -> torch.Tensor:
    """Algorithm 2, lines 5 to 11, for A_1 = blur 2 and A_2 = grey."""
    z = (torch.randn_like(x) if z is None else z) if k.s else None
    return paper_step(x, e, rectified(x_p, repeat), z, k.ab, k.ab_next, k.s, k.d, repeat)


def x0_body(x: torch.Tensor, e: torch.Tensor, x_p: torch.Tensor, k: Step, z: torch.Tensor | None) -> torch.Tensor:
    """The same step as zipsdk.sampling.sampler does it."""
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
    """How many torch operations one call makes, views left out."""
    with _Count() as count:
        work()
    return count.calls


class Cpu:
    """The shim build and NumPy, on one core."""

    name = "cpu"

    def __init__(self) -> None:
        version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
        flags = ("-O3", "-march=native")
        self.compiler = f"g++ {version} {' '.join(flags)}"
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory()
        self.launch = Host(Path(self._folder.name), flags).launch

    def array(self, a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a.copy())

    def time(self, work: Work, calls: int) -> float:
        # of this process, so that other work on the machine counts less
        start = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - start) / calls

    def copy_bandwidth(self) -> float:
        source = np.ones(1 << 26, np.float32)
        target = np.empty_like(source)
        seconds = [self.time(lambda: np.copyto(target, source), 1) for _ in range(9)]
        return 2 * source.nbytes / statistics.median(seconds)


class Gpu:
    """The fatbin on the default stream, which torch uses too."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        torch.zeros(1, device=self.device)
        self._driver = Device(fatbin_path().read_bytes(), self.device.index or 0)
        self.name, self.launch = self._driver.name, self._driver.launch
        self.compiler = f"nvcc {build_info()['nvcc']}"

    def array(self, a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a.copy()).to(self.device)

    def time(self, work: Work, calls: int) -> float:
        start = self._driver.event()
        for _ in range(calls):
            work()
        return self._driver.elapsed(start, self._driver.event()) / calls

    def copy_bandwidth(self) -> float:
        source = torch.ones(1 << 28, device=self.device)
        target = torch.empty_like(source)
        self.time(lambda: target.copy_(source), 3)
        seconds = [self.time(lambda: target.copy_(source), 10) for _ in range(9)]
        return 2 * 4 * source.numel() / statistics.median(seconds)


def rows(row: np.void, n: int = 1) -> np.ndarray:
    return np.array([tuple(row)] * n, row.dtype)


def check(name: str, got: Any, want: np.ndarray, tolerance: float) -> None:
    got = got.cpu().numpy() if isinstance(got, torch.Tensor) else got
    error = np.abs(got.astype(np.float64) - want).max()
    if not error <= tolerance:
        raise SystemExit(f"{name}: error {error:.3g}, wanted at most {tolerance:.3g}; nothing is timed")


class Bench:
    """Inputs of one size, and for each kernel the contenders: name -> work, the first being the kernel."""

    def __init__(self, machine: Cpu | Gpu, canvases: int, seed: int, compiled: bool):
        self.machine, self.n, self.compiled = machine, canvases, compiled
        rng = np.random.default_rng(seed)
        shape = (canvases, 3, SIDE, SIDE)
        self.elements = int(np.prod(shape))
        spec = ModelSpec(name="bench", image_size=SIDE, multiple=SIDE, min_side=SIDE, max_side=SIDE)
        self.table = step_table(spec, lam=LAMBDA)
        self.guide = Guidance([Blur(2), Grayscale()])
        self.noise = Noise(seed, np.arange(canvases))
        self.x, self.e = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        self.rgb = rng.integers(0, 256, (canvases, SIDE, SIDE, 3), np.uint8)
        self.u8 = np.ascontiguousarray(self.rgb.transpose(0, 3, 1, 2))
        self.x_p = self.u8.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)

        layout = TileLayout(SIDE, SIDE, SIDE, SIDE)
        self.layout = structs.layout_row(layout, SIDE, SIDE)
        self.batch = machine.array(structs.batch_row(canvases, layout, seed).view(np.uint8))
        self.who = machine.array(structs.picture_rows(self.noise.noise_keys).view(np.uint8))
        row = structs.guide_row(self.guide)
        assert row is not None
        self.guides = machine.array(rows(row).view(np.uint8))
        self.out = machine.array(np.empty(shape, np.float32))
        self.at(500)

    def at(self, t: int) -> Bench:
        """The time step of the rows that follow."""
        self.step = next(s for s in self.table.steps if s.t == t)
        self.steps = self.machine.array(rows(structs.step_row(self.step), self.n).view(np.uint8))
        return self

    def launch(self, kernel: str, work: int, *arguments: Any, block: int = 256) -> None:
        self.machine.launch(kernel, -(-work // block), block,
                            *(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments))  # fmt: skip

    def reference(self, x: np.ndarray, e: np.ndarray, guide: Guidance) -> np.ndarray:
        """One step of zipsdk.sampling.sampler; `x` is changed."""
        noise = self.noise

        class Begun:
            def normal(self, step: int, height: int, width: int, top: int = 0) -> np.ndarray:
                if step == STEP_INITIAL:
                    return x[:, :, top : top + height]
                return noise.normal(step, height, width, top)

        return sampler.sample(lambda *_: e, self.x_p, StepTable((self.step,), warm=False), guide, Begun())

    def torch_bodies(self, e: torch.Tensor) -> dict[str, Work]:
        x, x_p, k = self.machine.array(self.x), self.machine.array(self.x_p), self.step
        bodies = {"torch, paper": paper_body, "torch, x0 form": x0_body}
        z = self.machine.array(self.noise.normal(k.t, SIDE, SIDE))
        want = self.reference(self.x.copy(), e.float().cpu().numpy(), self.guide)
        for name, body in bodies.items():
            check(name, body(x, e.float(), x_p, k, z), want, 1e-4)
        works: dict[str, Work] = {n: (lambda b=b: b(x, e.float(), x_p, k, None)) for n, b in bodies.items()}
        if self.compiled:
            torch.compiler.reset()
            for name, body in bodies.items():
                # fullgraph: an error in place of falling back to eager in silence
                fast = torch.compile(body, dynamic=False, fullgraph=True)
                check(name, fast(x, e.float(), x_p, k, z), want, 1e-4)
                fast(x, e.float(), x_p, k, None)
                works[name.replace("torch", "torch.compile")] = lambda f=fast: f(x, e.float(), x_p, k, None)
        return works

    def step_row(self, precision: str) -> tuple[int, dict[str, Work]]:
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
        pictures, u8 = self.machine.array(self.rgb), self.machine.array(np.zeros_like(self.u8))

        def kernel() -> None:
            self.launch("zip_ingest", self.elements // 12, pictures, u8, self.out, self.who, self.layout, self.batch)

        kernel()
        check("zip_ingest", u8, self.u8, 0)
        check("zip_ingest", self.out, self.noise.normal(STEP_INITIAL, SIDE, SIDE), 1e-4)
        works: dict[str, Work] = {"kernel": kernel}
        if isinstance(self.machine, Cpu):
            works["numpy"] = lambda: (np.ascontiguousarray(self.rgb.transpose(0, 3, 1, 2)),
                                      self.noise.normal(STEP_INITIAL, SIDE, SIDE))  # fmt: skip
        works["torch"] = lambda: (pictures.permute(0, 3, 1, 2).contiguous(), torch.randn_like(self.out))
        return 6 * self.elements, works

    def egress_row(self) -> tuple[int, dict[str, Work]]:
        x, pictures = self.machine.array(self.x), self.machine.array(np.zeros_like(self.rgb))
        flag = self.machine.array(np.zeros(1, np.uint32))

        def kernel() -> None:
            self.launch("zip_egress", self.elements // 12, x, pictures, flag, self.layout, self.batch)

        def numpy() -> np.ndarray:
            v = np.clip(np.rint((self.x + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
            return np.ascontiguousarray(v.transpose(0, 2, 3, 1))

        def plain() -> torch.Tensor:
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

        kernel()
        check("zip_egress", pictures, numpy(), 0)
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


def measure(machine: Cpu | Gpu, minimum: int, works: dict[str, Work], rounds: int, copy: float) -> dict[str, Any]:
    """Contenders in turns; each turn is long enough for the clock."""
    calls = {}
    for name, work in works.items():
        machine.time(work, 2)
        calls[name] = max(1, min(1000, int(0.02 / max(1e-6, machine.time(work, 1)))))
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(machine.time(work, calls[name]))
    table = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        row: dict[str, Any] = {"microseconds": round(median * 1e6, 2), "bytes_per_second": round(minimum / median),
                               "share_of_copy": round(minimum / median / copy, 4)}  # fmt: skip
        if name.startswith("torch,") or name == "torch":
            row["operations"] = operations(works[name])
        if name != "kernel":
            ratios = [a / b for a, b in zip(values, seconds["kernel"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            row["times_the_kernel"] = round(median / statistics.median(seconds["kernel"]), 2)
            row["quartiles"] = [round(low, 2), round(high, 2)]
        table[name] = row
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=25, help="turns of each contender")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one canvas, 5 rounds, no torch.compile, no record")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder for the record")
    options = parser.parse_args()
    if options.quick:
        options.canvases, options.rounds = [1], 5
    torch.manual_seed(options.seed)
    machine = Cpu() if options.device == "cpu" else Gpu(options.device)
    copy = machine.copy_bandwidth()
    print(f"{machine.name}: a copy moves {copy / 1e9:.1f} GB/s, read and written")
    results: list[dict[str, Any]] = []
    for canvases in options.canvases:
        bench = Bench(machine, canvases, options.seed, compiled=not options.quick)
        kernels = {
            "ingest": bench.ingest_row,
            "step f32": lambda b=bench: b.step_row("f32"),
            "last step f32": lambda b=bench: b.at(0).step_row("f32"),
            "step f16": lambda b=bench: b.at(500).step_row("f16"),
            "step bf16": lambda b=bench: b.step_row("bf16"),
            "egress": bench.egress_row,
            "linear": lambda b=bench: b.at(500).linear_row(),
        }
        for kernel, row in kernels.items():
            if isinstance(machine, Cpu) and kernel in ("step f16", "step bf16"):
                continue  # no engine on the CPU gives half precision
            try:
                minimum, works = row()
            except MissingKernelError as e:
                print(f"{kernel:13} {canvases:3} left out: {e}", flush=True)
                continue
            table = measure(machine, minimum, works, options.rounds, copy)
            results.append({"kernel": kernel, "canvases": canvases, "bytes": minimum, "contenders": table})
            for name, r in table.items():
                ratio = f"{r['times_the_kernel']:8.2f}x {r['quartiles']}" if "quartiles" in r else ""
                speed = f"{r['bytes_per_second'] / 1e9:8.2f} GB/s  {r['share_of_copy']:7.2%}"
                print(f"{kernel:13} {canvases:3} {name:24} {r['microseconds']:12.1f} us  {speed} {ratio}", flush=True)
    if not options.quick:
        payload = {
            "seed": options.seed,
            "device": machine.name,
            "threads": torch.get_num_threads(),
            "kernels": machine.compiler,
            "load_at_end": round(os.getloadavg()[0], 1),
            "copy_bytes_per_second": round(copy),
            "results": results,
        }
        print(record.write("kernels-cpu" if options.device == "cpu" else "kernels-gpu", payload, options.out))


if __name__ == "__main__":
    main()
