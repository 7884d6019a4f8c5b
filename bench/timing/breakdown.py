"""Break down the time of a purification, and measure the time from a cold start to the first image.

    python -m bench.timing.breakdown          prints both, for zip-tiny on the CPU

`bench.speed` records both. The parts on the CPU, each without the parts inside it:

    decode   files -> uint8 RGB                      UNet     the engine's calls
    copy     uint8 <-> float32, hashes, stacking     step     the rest of the loop: transforms, x0, x_next
    tile     images <-> frames, checks of eps      noise    random numbers
    encode   uint8 RGB -> PNG files, synced to disk
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import zipsdk
from bench.common.timing import Stopwatch, quartiles, ratios
from bench.timing.setup import LAMBDA, ROOT, TRANSFORMS, WARM, WEIGHTS, synthetic
from zipsdk import images, profiling
from zipsdk.types import Engine

U8 = npt.NDArray[np.uint8]
PARTS = ("decode", "copy", "tile", "UNet", "step", "noise", "encode")
#: The parts of `Purifier.run`, from arrays to arrays.
LOOP = ("copy", "tile", "UNet", "step", "noise")


def parts(engine: Engine, pixels: U8, side: int | None, steps: int | None, folder: Path) -> dict[str, float]:
    """Measure the seconds of each part for images that are read from and written to PNG files.

    Args:
        images: uint8 (N, H, W, 3).
        side: of the frame; None: the images' own size, or the only size of the engine.
        steps: number of steps; None: the paper's.
        folder: for the files.
    """
    watch = Stopwatch()
    files = [folder / f"{i}.png" for i in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    start = WARM if steps == 1 else None
    purifier = zipsdk.Purifier(engine, TRANSFORMS, lam=LAMBDA, tile_size=side, steps=steps, start=start)
    batch = [watch.timed("decode", lambda f: images.read_one(f).rgb)(file) for file in files]
    with profiling.profile() as events:
        clean = watch.timed("run", lambda: purifier.run(batch))()
    for file, image in zip(files, clean, strict=True):
        watch.timed("encode", images.save)(Image.fromarray(image), file.with_stem(file.stem + "-clean"))
    stages = profiling.total(events)
    seconds = {**watch.seconds, **stages, "copy": watch.seconds["run"] - sum(stages.values())}
    return {part: seconds[part] for part in PARTS}


def overhead(engine: Engine, pixels: U8, side: int | None, rounds: int, steps: int | None = None) -> dict[str, Any]:
    """Measure `parts` in several rounds, after a single step to warm up.

    Returns:
        The median milliseconds per image of each part, the share of `run` that is not the UNet, and the settings.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts(engine, pixels, side, 1, folder)
        each = [parts(engine, pixels, side, steps, folder) for _ in range(rounds)]
    shares = quartiles([1 - p["UNet"] / sum(p[k] for k in LOOP) for p in each])
    return {
        "images": len(pixels),
        "size": list(pixels.shape[1:3]),
        "rounds": rounds,
        "frame": side or (None if engine.spec.flexible else engine.spec.image_size),
        "total_steps": steps or 20,
        "ms": {k: 1e3 * float(np.median([p[k] for p in each])) / len(pixels) for k in PARTS},
        "not_unet": shares["median"],
        "not_unet_quartiles": shares,
    }


_START = "import json, sys, time\na = time.perf_counter()\n"
_END = """
run(np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8))
d = time.perf_counter()
print(json.dumps({"import": b - a, "load": c - b, "run": d - c, "done": time.time()}))
"""
ZIPSDK = f"""{_START}import zipsdk
b = time.perf_counter()
import numpy as np
model, threads, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run = zipsdk.Purifier(zipsdk.load_engine(model, device=sys.argv[4], threads=threads), "{TRANSFORMS}", lam={LAMBDA}).run
c = time.perf_counter(){_END}"""
TORCH = f"""{_START}import torch
b = time.perf_counter()
import numpy as np
from bench.timing.torch_loops import Loop, load_unet
model, threads, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads or torch.get_num_threads())
run = Loop(load_unet(model), "eager")
c = time.perf_counter(){_END}"""


def start(script: str, *words: object) -> dict[str, float]:
    """Measure the phases of a new process in seconds: import, load, run, and "first", from start to first image.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.time()
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the new process failed: {done.stderr.strip()[-500:]}")
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    phases["first"] = phases.pop("done") - began
    return phases


def startup(
    model: str, side: int, rounds: int, *, device: str = "auto", threads: int = 0, same_weights: bool = True
) -> dict[str, Any]:
    """Measure import and first image of zipsdk and torch in turns, each in a new process with files in the page cache.

    Args:
        same_weights: whether the model has the weights of export/zip-tiny.safetensors, which torch needs.
    """
    works: dict[str, tuple[str, tuple[object, ...]]] = {"zipsdk": (ZIPSDK, (model, threads, side, device))}
    if same_weights and find_spec("torch") and find_spec("safetensors"):
        works["torch"] = (TORCH, (WEIGHTS, threads, side))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (script, words) in works.items():
            times[name].append(start(script, *words))
    out: dict[str, Any] = {
        name: {phase: quartiles([t[phase] for t in each]) for phase in each[0]} for name, each in times.items()
    }
    if "torch" in works:
        first = {name: [t["first"] for t in each] for name, each in times.items()}
        out["sooner"] = ratios(first["torch"], first["zipsdk"])
    return {**out, "rounds": rounds, "image": side}


def main() -> None:
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    for n, side in ((64, 256), (64, None), (1, None)):
        got = overhead(engine, synthetic(n, 32), side, 3)
        where = f"on a frame of {side}" if side else "at their own size"
        times = ", ".join(f"{part} {ms:.3f}" for part, ms in got["ms"].items())
        print(f"{n} of 32x32 {where}: not the UNet {got['not_unet']:.2%}; ms per image: {times}", flush=True)
    got = startup("zip-tiny", 32, 3, device="cpu")
    for name in ("zipsdk", "torch"):
        if name in got:
            print(f"{name}: " + ", ".join(f"{k} {v['median']:.3f} s" for k, v in got[name].items()))


if __name__ == "__main__":
    main()
