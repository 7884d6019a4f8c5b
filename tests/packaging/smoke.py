"""Use an installed zipsdk as a user does, and print what was used as JSON. It runs in a virtual environment of its own.

python smoke.py   in an empty folder, with the interpreter of the environment
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import tqdm
from PIL import Image

import zipsdk

#: Modules of these packages need packages of other extras.
OPTIONAL = ("zipsdk.export",)


def check(condition: object, message: str) -> None:
    """Exit with a message unless the condition holds; assert would vanish under -O."""
    if not condition:
        raise SystemExit(f"smoke: {message}")


def import_modules() -> int:
    """Import every module that the extra [cpu] is enough for, and return their number."""
    names = [m.name for m in pkgutil.walk_packages(zipsdk.__path__, "zipsdk.") if not m.name.endswith("__main__")]
    names = [name for name in names if not name.startswith(OPTIONAL)]
    for name in names:
        importlib.import_module(name)
    return len(names)


def waves(n: int, side: int) -> np.ndarray:
    """Return smooth colorful images, uint8 (n, side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    channels = [
        np.sin(2 * np.pi * (a * x + b * y)[None] + np.arange(n)[:, None, None]) for a, b in ((1, 0), (0, 1), (1, 1))
    ]
    return np.rint(127.5 + 90 * np.stack(channels, -1)).astype(np.uint8)


def check_purifier(images: np.ndarray) -> float:
    """Purify a batch twice, and return the seconds of the second time."""
    purifier = zipsdk.Purifier("zip-tiny", preset="fast", seed=1)
    first = purifier.run(images)
    start = time.perf_counter()
    second = purifier.run(images)
    seconds = time.perf_counter() - start
    check(first.shape == images.shape and first.dtype == np.uint8, f"got {first.dtype} {first.shape}")
    check(np.array_equal(first, second), "got another result for the same seed")
    change = float(np.mean(np.abs(first.astype(float) - images)))
    check(0 < change < 20, f"the purified images differ by {change} gray levels, expected 0 to 20")
    return seconds


def check_guard(images: np.ndarray) -> None:
    """Decide about a batch with a classifier that looks at the mean color."""

    def classify(batch: np.ndarray) -> np.ndarray:
        return np.asarray(batch, np.float32).mean((1, 2)) / 255

    guard = zipsdk.Guard(classify, zipsdk.Purifier("zip-tiny", preset="fast", seed=1))
    decisions = guard.run(images)
    check(len(decisions) == len(images), f"got {len(decisions)} decisions for {len(images)} images")
    check(all(d.label in (0, 1, 2) for d in decisions), f"got the labels {[d.label for d in decisions]}")


def check_commands(images: np.ndarray) -> None:
    """Run the installed command."""
    command = str(Path(sysconfig.get_path("scripts")) / "zipsdk")
    Image.fromarray(images[0]).save("in.png")
    for words, code, text in (
        (["--version"], 0, f"zipsdk {zipsdk.__version__}"),
        (["--help"], 0, "export"),
        (["doctor"], 0, "at least one engine runs"),
        (["purify", "in.png", "-o", "out", "--preset", "fast"], 0, ""),
        (["purify", "none.png", "-o", "out2"], None, "none.png"),
    ):
        done = subprocess.run([command, *words], capture_output=True, text=True)
        check(code in (done.returncode, None) and text in done.stdout + done.stderr, f"{words}: {done}")
    check(np.asarray(Image.open("out/in.png")).shape == images[0].shape, "out/in.png: got another size")


def check_export_without_torch() -> None:
    """Check that the export names the pip command in one line."""
    done = subprocess.run([sys.executable, "-m", "zipsdk", "export", "x.pt", "-o", "y"], capture_output=True, text=True)
    expected = done.returncode == 3 and done.stderr.count("\n") == 1 and "pip install 'zipsdk[export]'" in done.stderr
    check(expected, f"zipsdk export without torch: {done}")


def main() -> None:
    """Run all checks."""
    check("site-packages" in str(zipsdk.__file__), f"got zipsdk from {zipsdk.__file__}, expected the installed one")
    images = waves(3, 40)
    report = {
        "python": platform.python_version(),
        "zipsdk": zipsdk.__version__,
        "modules": import_modules(),
        "seconds": round(check_purifier(images), 3),
    }
    check_guard(images)
    check_commands(images)
    if importlib.util.find_spec("torch") is None:
        check_export_without_torch()
    versions = {m.__name__.lower(): m.__version__ for m in (np, onnxruntime, PIL, tqdm)}
    print(json.dumps({**report, **versions}))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
