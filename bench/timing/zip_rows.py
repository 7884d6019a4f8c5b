"""What `bench.speed` measures: its rows, each made when its turn comes, because some take seconds and packages to make.

Every ZIP row is the paper's setting for CIFAR-10, "blur2+gray" and lambda 10, and so is every loop of torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import zipsdk
from bench.data import datasets
from bench.quality.restoration import psnr
from zipsdk.errors import InputError
from zipsdk.images import sources
from zipsdk.models.sidecar import sha256_file
from zipsdk.presets import PRESETS, PresetName
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import PAPER_STEPS
from zipsdk.types import Engine

U8 = npt.NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "export" / "zip-tiny.safetensors"
TRANSFORMS, LAMBDA, SEED = "blur2+gray", 10.0, 7
#: Where a single evaluation starts: from pure noise the purifier takes no fewer than two. Any costs as much.
WARM = 400


class LeftOut(Exception):
    """This row cannot be measured here; the text says why."""


@dataclass
class Work:
    """A row that is ready.

    call: the work that is timed; if it gives a dict, that is kept with the time: what the guard has counted.
    runs: engine and providers that really run it.
    warm: called once before anything is timed.
    check: how far its pictures are from the reference's; see `compare`.
    """

    call: Callable[[], Any]
    runs: dict[str, Any]
    warm: Callable[[], Any] = lambda: None
    check: Callable[[], dict[str, Any]] | None = None


@dataclass
class Row:
    """One line of the table.

    key: its name in the state and the record.
    letter: of its group: a classifier, b ZIP whole, c ZIP tiled, d guard, e BDMAE, f other peers, g loops of torch.
    pictures: of one call; the time is divided by it.
    evaluations: of the generative model, for one picture or for the canvas that it shares.
    measured: how many of these a call really makes; the time is scaled up to all.
    rounds: how often it is measured at most.
    note: what a reader must know beside it.
    """

    key: str
    letter: str
    label: str
    pictures: int
    evaluations: int
    make: Callable[[], Work]
    rounds: int
    measured: int | None = None
    note: str = ""

    @property
    def scale(self) -> float:
        return self.evaluations / self.measured if self.measured else 1.0

    def describe(self) -> dict[str, Any]:
        return {"key": self.key, "letter": self.letter, "label": self.label, "pictures_a_call": self.pictures,
                "evaluations": self.evaluations, "measured_evaluations": self.measured or self.evaluations,
                "note": self.note}  # fmt: skip


def compare(got: U8, wanted: U8) -> dict[str, Any]:
    """PSNR of uint8 pictures in dB, None where they are identical."""
    largest = int(np.abs(got.astype(int) - wanted.astype(int)).max())
    return {"psnr_db": round(psnr(got, wanted), 2) if largest else None, "identical": not largest, "largest": largest}


def resized(pictures: U8, side: int) -> U8:
    """(N, h, w, 3) -> (N, side, side, 3), Pillow's bicubic."""
    if pictures.shape[1:3] == (side, side):
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures])


def synthetic(n: int, side: int, seed: int = 0) -> U8:
    """Smooth blotches of colour with some grain, for timing without any data: uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
    grain = rng.normal(0, 6, (n, side, side, 3))
    return np.uint8(np.clip(resized(coarse, side) + grain, 0, 255))


class Whole:
    """The paper's un-tiled setting: each picture is enlarged to a canvas of its own, purified, and made small again."""

    def __init__(self, purifier: zipsdk.Purifier, canvas: int):
        self.purifier, self.canvas = purifier, canvas

    def run(self, batch: Any, **options: Any) -> U8:
        """uint8 (N, S, S, 3) or a list of (S, S, 3) -> uint8 (N, S, S, 3)."""
        pictures = np.stack(list(batch))
        return resized(self.purifier.run(resized(pictures, self.canvas), **options), pictures.shape[1])


class Reference:
    """An engine that evaluates a torch module in float32."""

    def __init__(self, spec: zipsdk.ModelSpec, module: Any, where: str):
        self.spec, self.module, self.where = spec, module.to(where), where

    def __call__(self, x: npt.NDArray[np.float32], t: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            eps = self.module(torch.from_numpy(x).to(self.where), torch.from_numpy(t).to(self.where))
        return np.asarray(eps.cpu().numpy())


def export_random_adm(folder: Path, channels: int, precision: str) -> Path:
    """The ONNX file of the 256x256 architecture with random weights, exported once."""
    name = "adm256" + ("" if channels == 256 else f"-{channels}ch") + "-random-weights"
    path = folder / (f"{name}.onnx" if precision == "fp32" else f"{name}-{precision}.onnx")
    if not path.exists():
        print(f"exporting {path.name}: it is made once and takes a while ...", file=sys.stderr, flush=True)
        words = ["--random-adm", "--channels", str(channels), "--precision", precision, "-o", str(folder)]
        done = subprocess.run([sys.executable, "-m", "export", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"--random-adm: the export failed: {done.stderr.strip()[-300:]}; it needs zipsdk[export]")
    return path


class Bench:
    """The engine, the pictures and what several rows share.

    Args:
        args: of `bench.speed`'s command line.
        cache: folder for exported models.
        engine: in place of the one that `args` name.
    """

    def __init__(self, args: argparse.Namespace, cache: Path, engine: Engine | None = None):
        self.args = args
        if engine is None:
            model = args.engine
            if args.random_adm:
                model = export_random_adm(cache / "models", args.channels, args.precision)
            engine = zipsdk.load_engine(model, device=args.device, threads=args.threads)
        self.engine, self.spec = engine, engine.spec
        self.side = args.side
        self.canvas = args.canvas or (min(256, self.spec.max_side) if self.spec.flexible else self.spec.image_size)
        if self.canvas % self.side:
            raise InputError(f"--side: got {self.side}, wanted one that divides the canvas of {self.canvas}")
        self.tiles = (self.canvas // self.side) ** 2
        self.info: dict[str, Any] = dict(getattr(engine, "info", None) or {"engine": type(engine).__name__})
        on_gpu = any("CPU" not in p for p in self.info.get("providers", ["CPU"])[:1])
        self.where = "cpu" if not on_gpu else args.device if args.device.startswith("cuda") else "cuda"
        self.dataset: datasets.Dataset | None = None
        if args.dataset:
            self.dataset = datasets.load(args.dataset, "test", args.data, side=self.side, limit=args.limit)
            self.pictures, self.source = self.dataset.pictures, self.dataset.name
        elif args.photos:
            files = list(zip(range(args.limit), sources.read_files(args.photos), strict=False))
            if not files:
                raise InputError(f"--photos: got no picture in {args.photos.name}, wanted at least one")
            self.pictures = np.stack([sources.decode(f, self.side) for _, f in files])
            self.source = args.photos.name
        else:
            self.pictures, self.source = synthetic(256, self.side), "synthetic"

    def some(self, n: int) -> U8:
        return np.take(self.pictures, np.arange(n) % len(self.pictures), axis=0)

    @cached_property
    def torch(self) -> Any:
        import torch

        torch.set_num_threads(self.info.get("threads") or torch.get_num_threads())
        if self.where != "cpu":
            if not torch.cuda.is_available():
                raise LeftOut("this torch has no CUDA, and the engine runs on the GPU")
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        return torch

    @cached_property
    def module(self) -> Any:
        """The torch module with the engine's weights, float32.

        Raises:
            LeftOut: there is none for this engine.
        """
        _ = self.torch
        if self.args.random_adm:
            from export.checkpoints import random_adm

            return random_adm(self.args.channels)
        if self.spec.source_sha256 and sha256_file(WEIGHTS) == self.spec.source_sha256:
            from bench.timing.torch_loops import load

            return load(WEIGHTS)
        raise LeftOut(f"there are no torch weights here for {self.spec.name}")

    # ---- rows

    def rows(self) -> list[Row]:
        """ZIP's and those of the loops of torch, in the order in which they take turns."""
        args, side, canvas = self.args, self.side, self.canvas
        one, many = f"1 to a {canvas} canvas", f"{self.tiles} to a {canvas} canvas"
        rows = [self._zip("whole", "b", f"ZIP, {one}", "whole", 1)]
        if self.tiles > 1:
            rows.append(self._zip("tiled", "c", f"ZIP, {many}", "tiled", self.tiles))
        rows.append(self._zip("whole-fast", "b", f"ZIP fast, {one}", "whole", 1, "fast"))
        if self.tiles > 1:
            rows.append(self._zip("tiled-fast", "c", f"ZIP fast, {many}", "tiled", self.tiles, "fast"))
        kinds = {"authors": "authors' loop, eager torch", "eager": "clean loop, eager torch",
                 "scheduler": "scheduler pipeline, eager torch", "compiled": "clean loop, torch.compile"}  # fmt: skip
        for kind, name in kinds.items():
            if kind != "compiled" or args.compile:
                rows.append(self._torch(kind, f"{name}, {one}", kind, 1, canvas))
        if self.spec.flexible and side < canvas:
            for n in (1, self.tiles):
                here = f"{n} of {side} px at own size"
                rows.append(self._zip(f"own-{n}", "c", f"ZIP, {here}", "own", n))
                rows.append(self._torch(f"authors-{n}", f"authors' loop, eager torch, {here}", "authors", n, side))
                rows.append(self._torch(f"eager-{n}", f"clean loop, eager torch, {here}", "eager", n, side))
        return rows

    def _zip(self, key: str, letter: str, label: str, how: str, n: int, preset: PresetName = "paper") -> Row:
        evaluations = PRESETS[preset].steps
        part = min(self.args.measure or evaluations, evaluations)
        pictures, ids = self.some(n), np.arange(n)

        def make() -> Work:
            runner, first = (self.runner(how, preset=preset, steps=k) for k in (part, 1))

            def check() -> dict[str, Any]:
                steps = min(self.args.check, evaluations)
                reference = Reference(self.spec, self.module, self.where)
                got, wanted = (
                    self.runner(how, preset=preset, steps=steps, seed=SEED, engine=engine).run(pictures, noise_keys=ids)
                    for engine in (None, reference)
                )
                return {**compare(got, wanted), "evaluations": steps}

            return Work(lambda: runner.run(pictures), self.runs(runner), lambda: first.run(pictures), check)

        return Row(key, letter, label, n, evaluations, make, self.args.rounds, part)

    def runner(self, how: str, *, preset: PresetName = "paper", steps: int | None = None, seed: int | None = None,
               engine: Engine | None = None, canvas: int | None = None) -> Any:  # fmt: skip
        """Something with `run` for pictures of `side`: "whole", "tiled" or "own"."""
        side = (canvas or self.canvas) if how == "tiled" and self.spec.flexible else None
        purifier = zipsdk.Purifier(engine or self.engine, TRANSFORMS, lam=LAMBDA, preset=preset, steps=steps,
                                   start=WARM if steps == 1 else None, seed=seed, tile_size=side)  # fmt: skip
        return Whole(purifier, self.canvas) if how == "whole" else purifier

    def runs(self, runner: Any) -> dict[str, Any]:
        info = getattr(runner, "purifier", runner).info
        return {k: info[k] for k in ("engine", "providers", "precision", "loop", "threads", "device") if k in info}

    def _torch(self, key: str, label: str, kind: str, n: int, side: int) -> Row:
        part = min(self.args.measure or PAPER_STEPS, PAPER_STEPS)
        spec = self.spec

        def make() -> Work:
            torch = self.torch
            from bench.timing.torch_loops import FIRST, Loop, schedule

            betas = (spec.beta_start, spec.beta_end, spec.timesteps)
            loop = Loop(self.module, kind, part, self.where, betas)
            pictures, ids = resized(self.some(n), side), np.arange(n)

            def on(steps: int, *draw: Any) -> U8:
                """The loop, on so many evaluations."""
                rows, loop.rows = loop.rows, schedule(steps, *betas)
                try:
                    return loop(pictures, *draw)
                finally:
                    loop.rows = rows

            def check() -> dict[str, Any]:
                def draw(t: int) -> Any:
                    z = Noise(SEED, ids.astype(np.uint64)).normal(STEP_INITIAL if t == FIRST else t, side, side)
                    return torch.from_numpy(z).to(self.where)

                steps = min(self.args.check, PAPER_STEPS)
                reference = self.runner("own", steps=steps, seed=SEED,
                                        engine=Reference(spec, self.module, self.where))  # fmt: skip
                return {**compare(on(steps, draw), reference.run(pictures, noise_keys=ids)), "evaluations": steps}

            how = "torch.compile" if kind == "compiled" else "eager"
            runs = {"engine": f"torch {torch.__version__.split('+')[0]}, {how}", "providers": [self.where],
                    "precision": "fp32", "threads": torch.get_num_threads()}  # fmt: skip
            # what is compiled at the first step may be compiled again for the second
            return Work(lambda: loop(pictures), runs, lambda: on(2), check)

        note = "a scheduler of our own in the interface of diffusers'" if kind == "scheduler" else ""
        return Row(key, "g", label, n, PAPER_STEPS, make, self.args.rounds, part, note)
