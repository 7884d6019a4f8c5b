"""Measure the loop on a GPU: its cost beside the UNet, its peers, and whether graphs and batches change images.

    python -m bench.gpu.loop                                   zip-tiny through the best installed engine
    python -m bench.gpu.loop --engine torch --random-adm       the 552.8 M-parameter architecture, random weights
    python -m bench.gpu.loop --model adm256.plan --batch 1,8   a plan

Times are the host's, around synchronized work. "UNet" is the same number of UNet calls as the loop's, through the same
engine, on the same stream and memory. Contenders take turns; ratios are computed round by round. The torch peers:
"eager" runs the loop as printed in the paper, operation by operation, and copies x_t to the host and back at each step
like the published implementation; "compiled" is torch.compile of UNet and step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import zipsdk
from bench.common import record
from bench.common.metrics import compare
from bench.common.timing import ratios, take_turns, timer
from zipsdk.errors import ZipSdkError
from zipsdk.gpu.loop import DeviceLoop
from zipsdk.sampling.tiling import plan_tiles, round_up


def measure_loop(engine: Any, batch: int, side: int, rounds: int, peers: dict[str, Any]) -> dict[str, Any]:
    """Measure one batch size: loop, loop without CUDA graph, UNet alone, peers.

    Args:
        engine: a `zipsdk.gpu.protocols.DeviceEngine`.
        batch: number of images.
        side: of the images.
        rounds: number of measurements of each contender.
        peers: contenders by name, uint8 (N, H, W, 3) -> the same.
    """
    device = engine.device
    purifier = zipsdk.Purifier(engine, "blur2+gray", seed=1)
    rgb = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    ids = np.arange(batch, dtype=np.uint64)
    layout = plan_tiles(engine.spec, side, side, 2)
    loops = {
        "loop": DeviceLoop(engine, purifier.table, purifier.guides),
        "no graph": DeviceLoop(engine, purifier.table, purifier.guides, cuda_graph=False),
    }
    has_graph = loops["loop"].cuda_graph
    if not has_graph:
        del loops["no graph"]  # equal to "loop"
    run: dict[str, Callable[[], Any]] = {
        name: partial(loop.run, rgb, layout, ids, 0, 1) for name, loop in loops.items()
    }
    first = run["loop"]()
    steps, frames = len(purifier.table), -(-batch // layout.images_per_frame)
    elements = frames * 3 * layout.frame_height * layout.frame_width
    stride = round_up(4 * frames, 256)  # TensorRT wants each address aligned
    visited = np.repeat(np.array([step.t for step in purifier.table.steps], np.float32), stride // 4)
    normals = np.random.default_rng(1).standard_normal(elements, np.float32)  # a UNet runs faster on zeros
    with device.active():
        x, t, eps = (device.alloc(4 * n) for n in (elements, visited.size, elements))
        for address, values in ((x, normals), (t, visited)):
            host = device.pinned(values.nbytes)
            host[:] = values.view(np.uint8)
            device.upload(address, host, device.compute)
            device.compute.synchronize()

    def enqueue_unet() -> None:
        size = (layout.frame_height, layout.frame_width)
        for k in range(steps):
            engine.enqueue(x, t + k * stride, eps, frames, device.compute.handle, size=size)

    with device.active():
        keep = engine.prepare(frames, layout.frame_height, layout.frame_width)
        enqueue_unet()
        device.compute.synchronize()
        captured = None
        if has_graph:  # like the loop, or the cost of launches would count as the UNet's
            with device.capture(device.compute) as captured:
                enqueue_unet()

    def unet() -> None:
        with device.active():
            enqueue_unet() if captured is None else captured.launch(device.compute)
            device.compute.synchronize()

    try:
        works: dict[str, Callable[[], Any]] = {
            **run,
            "UNet": unet,
            **{name: partial(peer, rgb) for name, peer in peers.items()},
        }
        times = take_turns({name: timer(work) for name, work in works.items()}, rounds, warmup=4)
    finally:
        with device.active():
            device.compute.synchronize()
            if captured is not None:
                captured.close()
            for address in (x, t, eps):
                device.free(address)
            del keep
    overhead = [1 - u / n for u, n in zip(times["UNet"], times["loop"], strict=True)]
    one_by_one = np.concatenate([purifier.run(p[None], noise_keys=[i]) for i, p in enumerate(rgb)])
    return {
        "batch": batch,
        "side": side,
        "total_steps": steps,
        "frames": frames,
        "rounds": rounds,
        "milliseconds": {name: round(1e3 * statistics.median(values), 4) for name, values in times.items()},
        "overhead_share": round(statistics.median(overhead), 5),
        "faster_than": {
            name: {k: round(v, 3) for k, v in ratios(times[name], times["loop"]).items()}
            for name in times
            if name not in ("loop", "UNet")
        },
        "repeats_bit_for_bit": bool((run["loop"]() == first).all()),
        "graph_off_equal": bool((run["no graph"]() == first).all()) if has_graph else None,
        "one_by_one": compare(one_by_one, purifier.run(rgb, noise_keys=ids)),
        "runs": purifier.info,
    }


def soak(engine: Any, seconds: float, sides: tuple[int, ...]) -> dict[str, Any]:
    """Purify batches of changing sizes for a time; return the free memory over time."""
    device, rng = engine.device, np.random.default_rng(0)
    purifier = zipsdk.Purifier(engine, "blur2+gray", preset="fast", seed=1)
    samples: list[int] = []
    done, start = 0, time.perf_counter()
    while not samples or time.perf_counter() - start < seconds:
        for side in sides:
            for n in (1, 3, 2):
                purifier.run(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8))
                done += n
        with device.active():
            samples.append(device.free_bytes())
    settled = samples[len(samples) // 4 :]
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "images": done,
        "free_bytes_first": samples[0],
        "free_bytes_lowest_later": min(settled),
        "free_bytes_last": samples[-1],
        "flat": settled[0] - settled[-1] < 1 << 20,
    }


def compare_with_cpu(engine: Any) -> dict[str, Any]:
    """Compare images purified by zip-tiny on the GPU and on the CPU."""
    cpu = zipsdk.load_engine("zip-tiny", device="cpu")
    rgb = np.random.default_rng(3).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    got, expected = (zipsdk.Purifier(e, "blur2+gray", seed=2).run(rgb) for e in (engine, cpu))
    return compare(got, expected)


def open_engine(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the engine on the GPU; return it and its torch module, which is None unless it is the torch engine."""
    if args.engine != "torch":
        return zipsdk.load_engine(args.model, device=args.device), None
    from zipsdk.gpu.device import open_device

    device = open_device(int(args.device.partition(":")[2] or 0))
    import torch

    from bench.gpu.torch_engine import TorchEngine
    from bench.gpu.torch_peers import torch_module

    torch.backends.cudnn.allow_tf32 = False  # TF32 has 10 bits of mantissa
    module, spec = torch_module(args.random_adm, args.channels, args.precision)
    return TorchEngine(module, spec, device, where=args.device), module


def arguments() -> argparse.ArgumentParser:
    """Make the command's parser."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.loop", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", default="zip-tiny", help="name, .onnx or .plan (default: zip-tiny)")
    parser.add_argument("--engine", choices=("auto", "torch"), default="auto")
    parser.add_argument("--random-adm", action="store_true", help="with --engine torch: OpenAI's 256x256 architecture")
    parser.add_argument("--channels", type=int, default=256, help="channels of --random-adm")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="with --engine torch")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch", default="1,7,8", help="batch sizes, of images of the model's size (default: 1,7,8)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--soak", type=float, default=60, help="seconds of the soak test (default: 60)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 5 seconds of soak, no torch.compile")
    parser.add_argument("--out", type=Path, help="folder of the record (default: bench/results)")
    return parser


def measure(
    engine: Any,
    module: Any,
    *,
    where: str,
    batches: Sequence[int],
    side: int,
    rounds: int,
    soak_seconds: float,
    compiled: bool,
) -> dict[str, Any]:
    """Measure an engine; return the content of the record.

    Args:
        engine: on the GPU.
        module: its torch module for the torch peers, or None.
        where: torch's name of the GPU.
        batches: batch sizes.
        side: of the images.
        rounds: number of measurements of each contender.
        soak_seconds: duration of the soak test.
        compiled: whether to measure torch.compile.
    """
    peers = {}
    if module is not None:
        from bench.gpu.torch_peers import torch_peers

        peers = torch_peers(module, where, engine.spec, compiled)
    rows = []
    for batch in batches:
        row = measure_loop(engine, batch, side, rounds, peers)
        ratio = ", ".join(f"{n} {r['median']}x" for n, r in row["faster_than"].items())
        times = f"{row['milliseconds']} ms; beside the UNet {row['overhead_share']:.2%}"
        print(f"batch {batch}: {times}; faster than {ratio}", flush=True)
        rows.append(row)
    payload: dict[str, Any] = {"gpu": engine.device.name, "rows": rows}
    if engine.spec.name == "zip-tiny":
        payload["against_cpu"] = compare_with_cpu(engine)
    payload["soak"] = soak(engine, soak_seconds, (32, 48, 64) if engine.spec.flexible else (engine.spec.image_size,))
    print(f"soak: {payload['soak']}")
    return payload


def passed(payload: dict[str, Any]) -> bool:
    """Tell whether the loop repeats bit for bit, with and without graph, and memory is constant."""
    exact = all(r["repeats_bit_for_bit"] and r["graph_off_equal"] is not False for r in payload["rows"])
    return exact and bool(payload["soak"]["flat"])


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.random_adm and args.engine != "torch":
        parser.error("--random-adm: expected --engine torch; for other engines run python -m export --random-adm")
    if args.quick:
        args.rounds, args.soak, args.no_compile = 3, 5, True
    try:
        engine, module = open_engine(args)
    except ZipSdkError as e:
        print(f"python -m bench.gpu.loop: {e}", file=sys.stderr)
        return 3
    payload = measure(
        engine,
        module,
        where=args.device,
        batches=[int(n) for n in args.batch.split(",")],
        side=engine.spec.image_size,
        rounds=args.rounds,
        soak_seconds=args.soak,
        compiled=not args.no_compile,
    )
    card = engine.device.name.lower().replace(" ", "-")
    kind = "engine" if module is None else "torch"
    name = f"loop-{engine.spec.name}-{engine.spec.precision}-{kind}-{card}"
    print(record.write(name, payload, args.out or record.RESULTS))
    return 0 if passed(payload) else 1


if __name__ == "__main__":
    sys.exit(main())
