"""Compare the model with 8-bit convolutions to float32 on a CPU: time, image quality, defense.

    python -m bench.quality.int8 --data FOLDER # CIFAR-10 and Imagenette; trains a missing classifier

Times are medians of single UNet calls on one thread, contenders in turns, in CPU time, which other load affects less.
Image quality is that of clean test images through both models with the same seed. The defense is measured against
BadNets on CIFAR-10, like `bench.defense`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import zipsdk
from bench.attacks import registry
from bench.attacks.poisoning import poison
from bench.common import record
from bench.common.markdown import replace, table
from bench.common.metrics import psnr, sharpness
from bench.common.timing import take_turns, timer
from bench.data import datasets, layouts
from bench.defenses.zip import Zip
from bench.evaluation.cache import PurifiedCache
from bench.evaluation.evaluate import Scenario, evaluate
from bench.quality.restoration import blurred
from bench.victims import training
from export import checkpoints
from zipsdk.presets import PresetName
from zipsdk.transforms import Blur

ROOT = Path(__file__).parents[2]
CARD = ROOT / "zipsdk/models/zip-tiny-int8.md"
#: Batch, side and rounds of the timed UNet calls.
SHAPES = ((1, 32, 60), (64, 32, 9), (1, 256, 15))
PRESETS: tuple[PresetName, ...] = ("fast", "paper")
Run = Callable[[np.ndarray, np.ndarray], Any]


def torch_run(dtype: torch.dtype) -> Run:
    """Make zip-tiny in torch, channels last, in which its convolutions are faster."""
    model, _ = checkpoints.load(ROOT / "export/zip-tiny.safetensors")
    model = model.eval().to_torso(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(x: np.ndarray, t: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = model(torch.from_numpy(x).to(memory_format=torch.channels_last), torch.from_numpy(t))
        return out

    return run


def speed(contenders: dict[str, Run], clock: Callable[[], float] = time.process_time) -> list[dict[str, Any]]:
    """Measure the milliseconds of one UNet call, by shape, contenders in turns."""
    rows = []
    rng = np.random.default_rng(0)
    for batch, side, rounds in SHAPES:
        x, t = rng.standard_normal((batch, 3, side, side), np.float32), np.full(batch, 200, np.float32)
        timers = {name: timer(partial(run, x, t), clock) for name, run in contenders.items()}
        ms = {name: 1e3 * float(np.median(s)) for name, s in take_turns(timers, rounds, warmup=1).items()}
        first = next(iter(ms.values()))
        rows.append({"batch": batch, "side": side, "rounds": rounds, "ms": ms,
                     "times_faster": {name: first / value for name, value in ms.items()}})  # fmt: skip
    return rows


def images_of(name: str, folder: Path | None, limit: int) -> np.ndarray:
    """Load test images, uint8 (N, H, W, 3); of Imagenette a sixteenth of `limit`, at 128x128."""
    side, limit = (128, max(1, limit // 16)) if name == "imagenette" else (None, limit)
    return datasets.load(name, "test", folder, side=side, limit=limit).images


def quality(engines: list[Any], images: np.ndarray, n: int, preset: PresetName) -> dict[str, Any]:
    """Compute the gain in PSNR over the blur of both models, and the PSNR between them."""
    blur, outs = Blur(n), []
    for engine in engines:
        purifier = zipsdk.Purifier(engine, [blur], preset=preset, seed=0)
        with tqdm(total=len(images), unit="image", desc=f"{preset}, blur{n}", leave=False) as bar:
            outs.append(purifier.run(images, progress=bar.update))
    base = np.array([psnr(blurred(x, n), x) for x in images])
    gains = [np.array([psnr(y, x) for y, x in zip(out, images, strict=True)]) - base for out in outs]
    energies = [np.sum([sharpness(y, x, blur) for y, x in zip(out, images, strict=True)], axis=0) for out in outs]
    lost = gains[1] - gains[0]
    return {
        "images": len(images), "side": images.shape[1], "blur": n, "preset": preset,
        "gain_db": [float(g.mean()) for g in gains],
        "gain_change_db": float(lost.mean()),
        "gain_change_standard_error": float(lost.std() / np.sqrt(len(lost))),
        "sharpness": [float(a / b) for a, b in energies],
        "psnr_between": float(np.mean([psnr(a, b) for a, b in zip(*outs, strict=True)])),
    }  # fmt: skip


def measure_defense(engines: list[Any], folder: Path | None, count: int, epochs: int | None) -> list[dict[str, Any]]:
    """Measure CA, ASR and PA as [hits, of] behind both models, against BadNets."""
    train = datasets.load("cifar10", "train", folder)
    test = datasets.load("cifar10", "test", folder, limit=count)
    attack, target = registry.make("badnets", test.side, 1), 1
    poisoned = poison(train, attack, 0.05, target, 1)
    classifier = training.train(poisoned, training.recipe(train, "small", 0, epochs))
    scenario = Scenario(test, "badnets", attack, target, classifier)
    rows = []
    for preset in PRESETS:
        counts = []
        for engine in engines:
            with tqdm(total=2 * count, unit="image", desc=f"BadNets, {preset}", leave=False) as bar:
                counted, _ = evaluate(scenario, Zip(engine, preset=preset), 0, PurifiedCache(None), bar.update)
                counts.append(counted.to_json())
        rows.append({**scenario.describe(), "preset": preset, "fp32": counts[0], "int8": counts[1]})
    return rows


def text(content: dict[str, Any]) -> str:
    """Format a record as the Markdown of the model card."""
    names = list(content["speed"][0]["ms"])
    speeds = [
        [f"{r['batch']} of {r['side']}x{r['side']}"]
        + [f"{r['ms'][name]:.1f} ms ({r['times_faster'][name]:.2f}x)" for name in names]
        for r in content["speed"]
    ]
    images = []
    for q in content["quality"]:
        numbers = [f"{q['gain_db'][i]:+.2f} dB / {q['sharpness'][i]:.2f}" for i in (0, 1)]
        images.append([f"{q['data']} ({q['images']} of {q['side']} px), blur{q['blur']}", q["preset"], *numbers,
                         f"{q['psnr_between']:.1f} dB"])  # fmt: skip
    rates_of_rows = []
    for row in content["defense"]:
        for model in ("fp32", "int8"):
            rates = (f"{100 * hits / of:.1f}" for hits, of in (row[model][k] for k in ("CA", "ASR", "PA")))
            rates_of_rows.append([row["preset"], model, *rates])
    tables = (
        table(["one evaluation", *names], speeds),
        table(["clean images", "preset", "gain in PSNR / sharpness, fp32", "int8", "PSNR between"], images),
        table(["BadNets on CIFAR-10", "model", "CA, %", "ASR, %", "PA, %"], rates_of_rows),
    )
    return "\n\n".join(tables)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.quality.int8", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, metavar="FOLDER", help=f"folder of the data sets; default: ${layouts.VARIABLE}")
    p.add_argument("--limit", type=int, default=128, help="number of 32x32 images for PSNR")
    p.add_argument("--images", type=int, default=200, help="number of images for CA and ASR")
    p.add_argument("--epochs", type=int, help="epochs of the classifier's training; default: the recipe's")
    p.add_argument("--name", default="int8", help="name of the record, which the model card shows; empty: no record")
    args = p.parse_args()

    torch.set_num_threads(1)
    engines: list[Any] = [zipsdk.load_engine(name, device="cpu", threads=1) for name in ("zip-tiny", "zip-tiny-int8")]
    contenders: dict[str, Run] = {
        "ONNX Runtime fp32": engines[0], "int8": engines[1], "torch fp32": torch_run(torch.float32),
        "torch bf16": torch_run(torch.bfloat16),
    }  # fmt: skip
    content: dict[str, Any] = {"models": [e.info for e in engines], "speed": speed(contenders)}
    content["quality"] = [
        {"data": name, **quality(engines, images_of(name, args.data, args.limit), n, preset)}
        for name in ("cifar10", "imagenette") for n in (2, 4) for preset in PRESETS
    ]  # fmt: skip
    content["defense"] = measure_defense(engines, args.data, args.images, args.epochs)
    print(text(content))
    if args.name:
        print(record.write(args.name, content))
        replace(CARD, text(content))


if __name__ == "__main__":
    main()
