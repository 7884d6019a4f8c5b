"""The loop on a GPU: what it costs beside the UNet, whether graphs and batches change pictures, and its peers.

    python -m bench.gpu.loop                                   zip-tiny through the best engine that is here
    python -m bench.gpu.loop --engine torch --random-adm       the 552.8 M-parameter architecture, random weights
    python -m bench.gpu.loop --model adm256.plan --batch 1,8   a plan
    python -m bench.gpu.loop --rehearse --out DIR              everything at a tiny size, without a GPU

Time is the host's clock around work that is waited for. "UNet" is as many evaluations through the same engine, on the
same stream and memory, as the loop has. Contenders take turns; ratios are of medians, with the quartiles of the rounds'
ratios. Peers of torch: "eager" does the loop as the paper prints it, operation by operation, and carries x_t to the
host and back at each step as the published implementation does; "compiled" is torch.compile of UNet and step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import zipsdk
from bench.common import record
from bench.common.metrics import psnr
from zipsdk.errors import ZipError
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.tiling import plan_tiles, round_up


def _median(values: list[float]) -> float:
    return round(1e3 * statistics.median(values), 4)


def _ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster: the median, and the quartiles of the rounds."""
    each = [s / f for s, f in zip(slow, fast, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def take_turns(works: dict[str, Callable[[], Any]], rounds: int, warm: int = 4) -> dict[str, list[float]]:
    """Seconds of each in every round; each is called `warm` times before."""
    for work in works.values():
        for _ in range(warm):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def differences(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Of uint8 pictures, in grey levels; PSNR None where they are identical."""
    off = np.abs(a.astype(int) - b.astype(int))
    return {"largest": int(off.max()), "share": float((off > 0).mean()),
            "psnr_db": round(psnr(a, b), 2) if off.any() else None}  # fmt: skip


def measure(engine: Any, batch: int, side: int, rounds: int, peers: dict[str, Any]) -> dict[str, Any]:
    """One batch size: loop, UNet, graph, peers."""
    device = engine.device
    on, off = (zipsdk.Purifier(engine, "blur2+gray", seed=1, cuda_graph=graph) for graph in (True, False))
    rgb = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    ids = np.arange(batch, dtype=np.uint64)
    layout = plan_tiles(engine.spec, side, side, 2)
    loops = {"loop": on._dispatcher.device_loop, "no graph": off._dispatcher.device_loop}
    if not loops["loop"].cuda_graph:
        del loops["no graph"]  # the same thing
    run = {name: (lambda loop=loop: loop.run(rgb, layout, ids, 0, 1)) for name, loop in loops.items()}
    first = run["loop"]()
    steps, canvases = len(on.table), -(-batch // layout.images_per_frame)
    elements = canvases * 3 * layout.frame_height * layout.frame_width
    stride = round_up(4 * canvases, 256)  # TensorRT wants each address aligned
    visited = np.repeat(np.array([step.t for step in on.table.steps], np.float32), stride // 4)
    normals = np.random.default_rng(1).standard_normal(elements, np.float32)  # zeros would be multiplied faster
    with device.active():
        x, t, eps = (device.alloc(4 * n) for n in (elements, visited.size, elements))
        for address, values in ((x, normals), (t, visited)):
            host = device.pinned(values.nbytes)
            host[:] = values.view(np.uint8)
            device.upload(address, host, device.compute)
            device.compute.synchronize()

    def evaluations() -> None:
        for k in range(steps):
            engine.enqueue(x, t + k * stride, eps, canvases, device.compute.handle,
                           size=(layout.frame_height, layout.frame_width))  # fmt: skip

    with device.active():
        keep = engine.prepare(canvases, layout.frame_height, layout.frame_width)
        evaluations()
        device.compute.synchronize()
        captured = None
        if loops["loop"].cuda_graph:  # as the loop has them, or what launching costs would count as the UNet's
            with device.capture(device.compute) as captured:
                evaluations()

    def unet() -> None:
        with device.active():
            evaluations() if captured is None else captured.launch(device.compute)
            device.compute.synchronize()

    try:
        works = {**run, "UNet": unet, **{name: (lambda peer=peer: peer(rgb)) for name, peer in peers.items()}}
        times = take_turns(works, rounds)
    finally:
        with device.active():
            device.compute.synchronize()
            if captured is not None:
                captured.close()
            for address in (x, t, eps):
                device.free(address)
            del keep
    overhead = [1 - u / n for u, n in zip(times["UNet"], times["loop"], strict=True)]
    return {
        "batch": batch, "side": side, "evaluations": steps, "canvases": canvases, "rounds": rounds,
        "milliseconds": {name: _median(values) for name, values in times.items()},
        "overhead_share": round(statistics.median(overhead), 5),
        "faster_than": {name: _ratio(times[name], times["loop"]) for name in times if name not in ("loop", "UNet")},
        "repeats_bit_for_bit": bool((run["loop"]() == first).all()),
        "graph_off_equal": bool((run["no graph"]() == first).all()) if "no graph" in run else None,
        "one_by_one": differences(np.concatenate([on.run(p[None], noise_keys=[i]) for i, p in enumerate(rgb)]),
                                  on.run(rgb, noise_keys=ids)),
        "runs": on.info,
    }  # fmt: skip


def torch_peers(module: Any, where: str, spec: ModelSpec, compiled: bool) -> dict[str, Any]:
    """The loop in plain torch, and compiled."""
    import torch

    from bench.gpu.kernels import paper_body
    from zipsdk.sampling.schedule import step_table

    table = step_table(spec, lam=10.0)
    module = module.to(where).eval().requires_grad_(False)

    def loop(body: Any, carry: bool) -> Callable[[np.ndarray], np.ndarray]:
        @torch.inference_mode()
        def purify(rgb: np.ndarray) -> np.ndarray:
            x_p = torch.from_numpy(rgb).to(where).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
            x = torch.randn_like(x_p)
            for step in table.steps:
                t = torch.full((len(x),), float(step.t), device=where)
                x = body(x, t, x_p, step, torch.randn_like(x) if step.s else None)
                if carry:
                    x = x.to("cpu").to(where)
            out = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            return np.asarray(out.permute(0, 2, 3, 1).cpu().numpy())

        return purify

    def eager(x: Any, t: Any, x_p: Any, step: Any, z: Any) -> Any:
        return paper_body(x, module(x, t), x_p, step, z)

    peers = {"eager": loop(eager, True), "eager, x_t stays": loop(eager, False)}
    if compiled:
        network, body = torch.compile(module), torch.compile(paper_body)
        peers["compiled"] = loop(lambda x, t, x_p, step, z: body(x, network(x, t), x_p, step, z), False)
    return peers


def soak(engine: Any, seconds: float, sides: tuple[int, ...]) -> dict[str, Any]:
    """Batches of changing sizes for so long; free memory over time."""
    device, rng = engine.device, np.random.default_rng(0)
    purifier = zipsdk.Purifier(engine, "blur2+gray", preset="fast", seed=1)
    samples, done, start = [], 0, time.perf_counter()
    while not samples or time.perf_counter() - start < seconds:
        for side in sides:
            for n in (1, 3, 2):
                purifier.run(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8))
                done += n
        if hasattr(device, "_cuda"):
            with device.active():
                samples.append(device._cuda.mem_get_info()[0])
        else:
            samples.append(device.room - device.used)
    settled = samples[len(samples) // 4 :]
    return {"seconds": round(time.perf_counter() - start, 1), "pictures": done,
            "free_bytes_first": samples[0], "free_bytes_lowest_later": min(settled), "free_bytes_last": samples[-1],
            "flat": settled[0] - settled[-1] < 1 << 20}  # fmt: skip


def open_engine(args: argparse.Namespace) -> tuple[Any, Any, ModelSpec, str]:
    """(the engine on the GPU, its torch module or None, its spec, where torch runs)."""
    if args.rehearse:
        import tempfile

        from kernels.launch import Host

        sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
        from tests.fakes.device import FakeDevice

        device, where = FakeDevice(Host(Path(tempfile.mkdtemp()), ("-O2",))), "cpu"
        # a double that runs late would let torch read memory before it is written
        device.compute.push = _at_once(device.compute)
        device.copies.push = _at_once(device.copies)
    elif args.engine != "torch":
        return zipsdk.load_engine(args.model, device=args.device), None, None, args.device  # type: ignore[return-value]
    else:
        from zipsdk.gpu.device import open_device

        device, where = open_device(int(args.device.partition(":")[2] or 0)), args.device
    import torch

    from bench.gpu.torch_engine import TorchEngine
    from export import checkpoints

    if args.random_adm:
        module = checkpoints.random_adm(args.channels)
        name = f"adm256-{args.channels}ch-random-weights"
    else:
        module, _ = checkpoints.load(Path(__file__).parents[2] / "export" / "zip-tiny.safetensors")
        name = "zip-tiny"
    config = module.config
    sides = {"min_side": config.image_size, "max_side": config.image_size}
    if not config.attention_downsampling:
        sides = {"min_side": 32, "max_side": 512}
    if args.precision != "fp32":
        module.to_torso({"fp16": torch.float16, "bf16": torch.bfloat16}[args.precision])
    spec = ModelSpec(name=name, image_size=config.image_size, multiple=config.downsampling, precision=args.precision,
                     beta_schedule=config.beta_schedule, beta_start=config.beta_start, beta_end=config.beta_end,
                     timesteps=config.timesteps, betas=config.betas,
                     **sides)  # fmt: skip
    if where != "cpu":
        # float32 means float32: torch's default for convolutions has 10 bits of mantissa
        torch.backends.cudnn.allow_tf32 = False
    return TorchEngine(module, spec, device, where=where), module, spec, where


def _at_once(stream: Any) -> Callable[[str, Callable[[], None]], None]:
    push = type(stream).push

    def now(what: str, work: Callable[[], None]) -> None:
        push(stream, what, work)
        if stream.graph is None:
            stream.drain()

    return now


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.loop", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", default="zip-tiny", help="name, .onnx or .plan (default: zip-tiny)")
    parser.add_argument("--engine", choices=("auto", "torch"), default="auto")
    parser.add_argument("--random-adm", action="store_true", help="with --engine torch: OpenAI's 256x256 architecture")
    parser.add_argument("--channels", type=int, default=256, help="of --random-adm")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="with --engine torch")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch", default="1,7,8", help="pictures a batch, of the canvas' size (default: 1,7,8)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--soak", type=float, default=60, help="seconds (default: 60)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 5 seconds of soak, no torch.compile")
    parser.add_argument("--rehearse", action="store_true", help="with torch on a test double; the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="folder of the record (default: bench/results)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.random_adm and args.engine != "torch":
        parser.error("--random-adm wants --engine torch; for others export it: python -m export --random-adm")
    if args.quick or args.rehearse:
        args.rounds, args.soak, args.no_compile = (1, 0, True) if args.rehearse else (3, 5, True)
    if args.rehearse and args.out is None:
        parser.error("--rehearse: give --out, so that nothing is mistaken for a measurement")
    try:
        engine, module, spec, where = open_engine(args)
    except ZipError as e:
        print(f"python -m bench.gpu.loop: {e}", file=sys.stderr)
        return 3
    peers = {} if module is None else torch_peers(module, where, spec, not args.no_compile)
    side = 32 if args.rehearse and engine.spec.flexible else engine.spec.image_size
    rows = []
    for batch in map(int, args.batch.split(",")):
        rows.append(measure(engine, batch, side, args.rounds, peers))
        row = rows[-1]
        print(f"batch {batch}: {row['milliseconds']} ms; beside the UNet {row['overhead_share']:.2%}; faster than "
              + ", ".join(f"{n} {r['median']}x" for n, r in row["faster_than"].items()), flush=True)  # fmt: skip
    payload: dict[str, Any] = {"gpu": engine.device.name, "rehearsal": args.rehearse, "rows": rows}
    if engine.spec.name == "zip-tiny":
        cpu = zipsdk.load_engine("zip-tiny", device="cpu")
        rgb = np.random.default_rng(3).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
        got, want = (zipsdk.Purifier(e, "blur2+gray", seed=2).run(rgb) for e in (engine, cpu))
        payload["against_cpu"] = differences(got, want)
    payload["soak"] = soak(engine, args.soak, (32, 48, 64) if engine.spec.flexible else (engine.spec.image_size,))
    print(f"soak: {payload['soak']}")
    card = "rehearsal" if args.rehearse else engine.device.name.lower().replace(" ", "-")
    name = f"loop-{engine.spec.name}-{engine.spec.precision}-{'torch' if module is not None else 'engine'}-{card}"
    print(record.write(name, payload, args.out or record.RESULTS))
    return (
        0
        if all(r["repeats_bit_for_bit"] and r["graph_off_equal"] is not False for r in rows) and payload["soak"]["flat"]
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
