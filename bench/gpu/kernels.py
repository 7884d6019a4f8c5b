"""Compare the kernels of the loop with torch and torch.compile: time, bytes per second, ratios.

    python -m bench.gpu.kernels                  on the CPU: the g++ build of the kernels and NumPy, one thread
    python -m bench.gpu.kernels --device cuda:0  on a GPU: the fatbin
    python -m bench.gpu.kernels --quick          one frame, few rounds, no torch.compile, no record

Frames are 256x256, the transforms blur2+gray, the step is the one at t = 500; the last step draws no noise and shows
its cost. Every contender is checked against zipsdk.sampling.sampler before it is timed. They take turns; ratios are of
medians, with the quartiles of the rounds' ratios. Time is CPU time of one core, or on a GPU the time between two
events. Bytes are the minimum to move (13 for each element of the step in float32, 11 with half precision e), the same
for every contender, and the share is of the bandwidth of a plain copy.

The g++ build is made for tests: it runs the CUDA threads one after the other. Contender "torch, paper" is the body of
the loop as printed in the paper (Algorithm 2, lines 5 to 11), one torch call for each operation; "torch, x0 form" is
the same step with a third of the work, like zipsdk.sampling.sampler.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.common import record
from bench.common.timing import ratios, take_turns
from bench.gpu.kernel_setup import KernelSetup
from bench.gpu.machines import Cpu, Gpu
from bench.gpu.torch_bodies import Work, operations
from kernels.launch import MissingKernelError


def time_contenders(
    machine: Cpu | Gpu, minimum: int, works: dict[str, Work], rounds: int, copy: float
) -> dict[str, dict[str, Any]]:
    """Time contenders in turns, each turn long enough for the clock.

    Args:
        machine: measures the time.
        minimum: bytes to move.
        works: contenders by name, including "kernel".
        rounds: number of turns.
        copy: bytes per second of a plain copy.
    """
    timers: dict[str, Callable[[], float]] = {}
    for name, work in works.items():
        machine.time(work, 2)
        calls = max(1, min(1000, int(0.02 / max(1e-6, machine.time(work, 1)))))
        timers[name] = partial(machine.time, work, calls)
    seconds = take_turns(timers, rounds)
    table = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        row: dict[str, Any] = {
            "microseconds": round(median * 1e6, 2),
            "bytes_per_second": round(minimum / median),
            "share_of_copy": round(minimum / median / copy, 4),
        }
        if name.startswith("torch,") or name == "torch":
            row["operations"] = operations(works[name])
        if name != "kernel":
            spread = ratios(values, seconds["kernel"])
            row["times_the_kernel"] = round(median / statistics.median(seconds["kernel"]), 2)
            row["quartiles"] = [round(spread["low"], 2), round(spread["high"], 2)]
        table[name] = row
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=25, help="number of turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one frame, 5 rounds, no torch.compile, no record")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder for the record")
    options = parser.parse_args()
    if options.quick:
        options.frames, options.rounds = [1], 5
    torch.manual_seed(options.seed)
    machine = Cpu() if options.device == "cpu" else Gpu(options.device)
    copy = machine.copy_bandwidth()
    print(f"{machine.name}: a copy moves {copy / 1e9:.1f} GB/s, read and written")
    results: list[dict[str, Any]] = []
    for frames in options.frames:
        setup = KernelSetup(machine, frames, options.seed, compiled=not options.quick)
        kernels: dict[str, tuple[int, Callable[[], tuple[int, dict[str, Work]]]]] = {
            "ingest": (500, setup.ingest_row),
            "step f32": (500, partial(setup.step_row, "f32")),
            "last step f32": (0, partial(setup.step_row, "f32")),
            "step f16": (500, partial(setup.step_row, "f16")),
            "step bf16": (500, partial(setup.step_row, "bf16")),
            "egress": (500, setup.egress_row),
            "linear": (500, setup.linear_row),
        }
        for kernel, (t, row) in kernels.items():
            if isinstance(machine, Cpu) and kernel in ("step f16", "step bf16"):
                continue  # no CPU engine outputs half precision
            setup.at(t)
            try:
                minimum, works = row()
            except MissingKernelError as e:
                print(f"{kernel:13} {frames:3} left out: {e}", flush=True)
                continue
            table = time_contenders(machine, minimum, works, options.rounds, copy)
            results.append({"kernel": kernel, "frames": frames, "bytes": minimum, "contenders": table})
            for name, r in table.items():
                ratio = f"{r['times_the_kernel']:8.2f}x {r['quartiles']}" if "quartiles" in r else ""
                speed = f"{r['bytes_per_second'] / 1e9:8.2f} GB/s  {r['share_of_copy']:7.2%}"
                print(f"{kernel:13} {frames:3} {name:24} {r['microseconds']:12.1f} us  {speed} {ratio}", flush=True)
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
