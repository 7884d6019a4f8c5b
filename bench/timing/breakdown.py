"""Where the time of a purification goes, and how long it takes from a cold start to the first picture.

    python -m bench.timing.breakdown          prints both, for zip-tiny on the CPU

`bench.speed` puts both into its record. What is told apart on the CPU, each without the parts inside it:

    decode   files -> uint8 RGB                      UNet     the engine's calls
    copy     uint8 <-> float32, hashes, stacking     step     the rest of the loop: transforms, x0, x_next
    tile     pictures <-> canvases, checks of eps    noise    drawing it
    encode   uint8 RGB -> PNG files, synced to disk
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from PIL import Image

import zipsdk
from bench.common.record import quartiles
from bench.timing.zip_rows import LAMBDA, ROOT, TRANSFORMS, WARM, WEIGHTS, synthetic
from zipsdk import images
from zipsdk.sampling import denoiser, noise, sampler
from zipsdk.types import Engine

U8 = npt.NDArray[np.uint8]
PARTS = ("decode", "copy", "tile", "UNet", "step", "noise", "encode")
#: The parts of `Purifier.run` itself, from arrays to arrays.
LOOP = ("copy", "tile", "UNet", "step", "noise")


class Stopwatch:
    """Seconds by part; a part that runs inside another is not counted there."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._clock, self._open, self._since = clock, ["copy"], 0.0

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time going to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def _switch(self) -> None:
        now = self._clock()
        if len(self._open) > 1:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class Watched:
    """An engine whose calls go to the part "UNet"."""

    def __init__(self, engine: Engine, watch: Stopwatch):
        self.spec, self._call = engine.spec, watch.around("UNet", engine)
        self.info = getattr(engine, "info", None)

    def __call__(self, x: npt.NDArray[np.float32], t: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        eps: npt.NDArray[np.float32] = self._call(x, t)
        return eps


def parts(engine: Engine, pictures: U8, side: int | None, steps: int | None, folder: Path) -> dict[str, float]:
    """Seconds by part for pictures that come from PNG files and go into some.

    Args:
        pictures: uint8 (N, H, W, 3).
        side: of the canvas, or None for their own size, or for the only one that the engine takes.
        steps: evaluations; None takes the paper's.
    """
    watch = Stopwatch()
    files = [folder / f"{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    purifier = zipsdk.Purifier(Watched(engine, watch), TRANSFORMS, lam=LAMBDA, tile_size=side, steps=steps,
                               start=WARM if steps == 1 else None)  # fmt: skip
    inside = [
        (sampler, "sample", "step"), (noise.Noise, "normal", "noise"), (denoiser.TiledDenoiser, "__call__", "tile"),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, part in inside:
            function = getattr(owner, name)
            timed = watch.around(part, function)
            # a plain function, so that it binds as the method that it stands for
            stack.enter_context(patch.object(owner, name, timed))
        batch = [watch.around("decode", images.read_one)(file).rgb for file in files]
        clean = watch.around("copy", purifier.run)(batch)
        for file, picture in zip(files, clean, strict=True):
            watch.around("encode", images.save)(Image.fromarray(picture), file.with_stem(file.stem + "-clean"))
    return watch.seconds


def overhead(engine: Engine, pictures: U8, side: int | None, rounds: int, steps: int | None = None) -> dict[str, Any]:
    """`parts` over several rounds, after one of a single evaluation to warm up.

    Returns:
        milliseconds a picture by part (medians), the share of `run` that is not the UNet, with what was measured.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts(engine, pictures, side, 1, folder)
        each = [parts(engine, pictures, side, steps, folder) for _ in range(rounds)]
    shares = quartiles([1 - p["UNet"] / sum(p[k] for k in LOOP) for p in each])
    return {
        "pictures": len(pictures), "size": list(pictures.shape[1:3]), "rounds": rounds,
        "canvas": side or (None if engine.spec.flexible else engine.spec.image_size),
        "evaluations": steps or 20,
        "ms": {k: 1e3 * float(np.median([p[k] for p in each])) / len(pictures) for k in PARTS},
        "not_unet": shares["median"], "not_unet_quartiles": shares,
    }  # fmt: skip


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
from bench.timing.torch_loops import Loop, load
model, threads, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads or torch.get_num_threads())
run = Loop(load(model), "eager")
c = time.perf_counter(){_END}"""


def start(script: str, *words: object) -> dict[str, float]:
    """Seconds of the phases of a fresh process: import, load, run, and "first", from its start to its first picture.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True,
                          env=environment, cwd=ROOT)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip()[-500:]}")
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    phases["first"] = phases.pop("done") - began
    return phases


def startup(model: str, side: int, rounds: int, *, device: str = "auto", threads: int = 0, same_weights: bool = True
            ) -> dict[str, Any]:  # fmt: skip
    """Import and first picture, zipsdk and torch in turns, each in a fresh process (files are in the page cache).

    Args:
        same_weights: whether the model's weights are those of export/zip-tiny.safetensors; torch has no others here.
    """
    works = {"zipsdk": (ZIPSDK, model, threads, side, device)}
    if same_weights and find_spec("torch") and find_spec("safetensors"):
        works["torch"] = (TORCH, WEIGHTS, threads, side)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, words in works.items():
            times[name].append(start(*words))
    out: dict[str, Any] = {
        name: {phase: quartiles([t[phase] for t in each]) for phase in each[0]} for name, each in times.items()
    }
    if "torch" in works:
        pairs = zip(times["torch"], times["zipsdk"], strict=True)
        out["sooner"] = quartiles([slow["first"] / fast["first"] for slow, fast in pairs])
    return {**out, "rounds": rounds, "picture": side}


def main() -> None:
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    for n, side in ((64, 256), (64, None), (1, None)):
        got = overhead(engine, synthetic(n, 32), side, 3)
        where = f"on a canvas of {side}" if side else "at their own size"
        times = ", ".join(f"{part} {ms:.3f}" for part, ms in got["ms"].items())
        print(f"{n} of 32x32 {where}: not the UNet {got['not_unet']:.2%}; ms a picture: {times}", flush=True)
    got = startup("zip-tiny", 32, 3, device="cpu")
    for name in ("zipsdk", "torch"):
        if name in got:
            print(f"{name}: " + ", ".join(f"{k} {v['median']:.3f} s" for k, v in got[name].items()))


if __name__ == "__main__":
    main()
