"""The engine, the images and the rows of `bench.speed`.

Rows are made one at a time, when they are first measured, because some take seconds and packages to make.
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
from zipsdk.errors import InputError
from zipsdk.images import sources
from zipsdk.models.sidecar import sha256_file
from zipsdk.presets import PresetName
from zipsdk.types import Engine

U8 = npt.NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "export" / "zip-tiny.safetensors"
#: The paper's setting for CIFAR-10, of all ZIP rows and all torch loops.
TRANSFORMS, LAMBDA, SEED = "blur2+gray", 10.0, 7
#: Start of single-step runs: from pure noise the purifier takes at least two steps. All steps cost the same.
WARM = 400


class LeftOut(Exception):
    """The row cannot be measured here; the text is the reason."""


@dataclass
class Work:
    """A row that is ready to be measured.

    call: the timed work. A dict that it returns is kept with the time: the counts of the guard.
    runs: engine and providers that run it.
    warm: called once before the first timing.
    check: compares its output with the reference's; see `bench.common.metrics.compare`.
    """

    call: Callable[[], Any]
    runs: dict[str, Any]
    warm: Callable[[], Any] = lambda: None
    check: Callable[[], dict[str, Any]] | None = None


@dataclass
class TimingRow:
    """One row of the table.

    key: name in the state and in the record.
    letter: group: a classifier, b ZIP whole, c ZIP tiled, d guard, e BDMAE, f other peers, g torch loops.
    images: number of images in one call, by which the time is divided.
    total_steps: steps of the generative model for one image or for the frame that it shares.
    measured: number of steps that a call really makes; the time is scaled up to all.
    rounds: maximum number of measurements.
    note: remark for the reader.
    """

    key: str
    letter: str
    label: str
    images: int
    total_steps: int
    make: Callable[[], Work]
    rounds: int
    measured: int | None = None
    note: str = ""

    @property
    def scale(self) -> float:
        return self.total_steps / self.measured if self.measured else 1.0

    def describe(self) -> dict[str, Any]:
        """Describe the row for the record."""
        return {
            "key": self.key,
            "letter": self.letter,
            "label": self.label,
            "images_a_call": self.images,
            "total_steps": self.total_steps,
            "measured_steps": self.measured or self.total_steps,
            "note": self.note,
        }


def resized(images: U8, side: int) -> U8:
    """Resize images (N, h, w, 3) to (N, side, side, 3) by Pillow's bicubic filter."""
    if images.shape[1:3] == (side, side):
        return images
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in images])


def synthetic(n: int, side: int, seed: int = 0) -> U8:
    """Make smooth color blotches with grain, for timing without data: uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
    grain = rng.normal(0, 6, (n, side, side, 3))
    return np.clip(resized(coarse, side) + grain, 0, 255).astype(np.uint8)


class Whole:
    """The paper's untiled setting: resize each image to a frame of its own, purify it, and resize it back."""

    def __init__(self, purifier: zipsdk.Purifier, frame: int):
        self.purifier, self.frame = purifier, frame

    def run(self, batch: Any, **options: Any) -> U8:
        """Purify uint8 (N, S, S, 3) or a list of (S, S, 3); return uint8 (N, S, S, 3)."""
        images = np.stack(list(batch))
        return resized(self.purifier.run(resized(images, self.frame), **options), images.shape[1])


class Reference:
    """An engine that runs a torch module in float32."""

    def __init__(self, spec: zipsdk.ModelSpec, module: Any, where: str):
        self.spec, self.module, self.where = spec, module.to(where), where

    def __call__(self, x: npt.NDArray[np.float32], t: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            eps = self.module(torch.from_numpy(x).to(self.where), torch.from_numpy(t).to(self.where))
        return np.asarray(eps.cpu().numpy())


def export_random_adm(folder: Path, channels: int, precision: str) -> Path:
    """Export the 256x256 architecture with random weights to ONNX, unless the file exists; return its path."""
    name = "adm256" + ("" if channels == 256 else f"-{channels}ch") + "-random-weights"
    path = folder / (f"{name}.onnx" if precision == "fp32" else f"{name}-{precision}.onnx")
    if not path.exists():
        print(f"exporting {path.name} once; this takes a while ...", file=sys.stderr, flush=True)
        words = ["--random-adm", "--channels", str(channels), "--precision", precision, "-o", str(folder)]
        done = subprocess.run([sys.executable, "-m", "export", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"--random-adm: the export failed: {done.stderr.strip()[-300:]}; it needs zipsdk[export]")
    return path


class SpeedSetup:
    """The engine, the images and everything that several rows share.

    Args:
        args: of `bench.speed`'s command line.
        cache: folder for exported models.
        engine: replaces the engine that `args` name.
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
        self.frame = args.frame or (min(256, self.spec.max_side) if self.spec.flexible else self.spec.image_size)
        if self.frame % self.side:
            raise InputError(f"--side: got {self.side}, expected a divisor of the frame of {self.frame}")
        self.tiles = (self.frame // self.side) ** 2
        self.info: dict[str, Any] = dict(getattr(engine, "info", None) or {"engine": type(engine).__name__})
        on_gpu = any("CPU" not in p for p in self.info.get("providers", ["CPU"])[:1])
        self.where = "cpu" if not on_gpu else args.device if args.device.startswith("cuda") else "cuda"
        self.dataset: datasets.Dataset | None = None
        if args.dataset:
            self.dataset = datasets.load(args.dataset, "test", args.data, side=self.side, limit=args.limit)
            self.images, self.source = self.dataset.images, self.dataset.name
        elif args.photos:
            files = list(zip(range(args.limit), sources.read_files(args.photos), strict=False))
            if not files:
                raise InputError(f"--photos: got no image in {args.photos.name}, expected at least one")
            self.images = np.stack([sources.decode(f, self.side) for _, f in files])
            self.source = args.photos.name
        else:
            self.images, self.source = synthetic(256, self.side), "synthetic"

    def some(self, n: int) -> U8:
        """Return the first n images, repeated if there are fewer."""
        return np.take(self.images, np.arange(n) % len(self.images), axis=0)

    @cached_property
    def torch(self) -> Any:
        """The torch package, set to the engine's number of threads.

        Raises:
            LeftOut: the engine runs on a GPU that torch cannot use.
        """
        import torch

        torch.set_num_threads(self.info.get("threads") or torch.get_num_threads())
        if self.where != "cpu":
            if not torch.cuda.is_available():
                raise LeftOut("this torch has no CUDA, and the engine runs on the GPU")
            torch.backends.cudnn.allow_tf32 = False  # TF32 has 10 bits of mantissa
        return torch

    @cached_property
    def module(self) -> Any:
        """The torch module with the engine's weights, float32.

        Raises:
            LeftOut: the engine has no torch weights here.
        """
        _ = self.torch
        if self.args.random_adm:
            from export.checkpoints import random_adm

            return random_adm(self.args.channels)
        if self.spec.source_sha256 and sha256_file(WEIGHTS) == self.spec.source_sha256:
            from bench.timing.torch_loops import load_unet

            return load_unet(WEIGHTS)
        raise LeftOut(f"there are no torch weights here for {self.spec.name}")

    def runner(
        self,
        how: str,
        *,
        preset: PresetName = "paper",
        steps: int | None = None,
        seed: int | None = None,
        engine: Engine | None = None,
        frame: int | None = None,
    ) -> Any:
        """Make a purifier for images of `side`: "whole" (one to a frame), "tiled" or "own" (at their own size)."""
        side = (frame or self.frame) if how == "tiled" and self.spec.flexible else None
        purifier = zipsdk.Purifier(
            engine or self.engine,
            TRANSFORMS,
            lam=LAMBDA,
            preset=preset,
            steps=steps,
            start=WARM if steps == 1 else None,
            seed=seed,
            tile_size=side,
        )
        return Whole(purifier, self.frame) if how == "whole" else purifier

    def runs(self, runner: Any) -> dict[str, Any]:
        """Describe for the record what runs a purifier."""
        info = getattr(runner, "purifier", runner).info
        return {k: info[k] for k in ("engine", "providers", "precision", "loop", "threads", "device") if k in info}
