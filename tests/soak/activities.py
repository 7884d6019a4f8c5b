"""The work of a soak: mixed calls as in a service, with files, engines, classifiers and callers that fail."""

from __future__ import annotations

import random
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import zipsdk
from tests.fakes.guard import brightness
from tests.fuzz.graphs import toy
from tests.fuzz.kinds import image_names
from tests.fuzz.seeds import base_files
from zipsdk import Guard, Purifier, images
from zipsdk.cli import main
from zipsdk.errors import EngineError, InputError, OutOfMemoryError, ZipSdkError
from zipsdk.models import list_models

SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp", ".avif")
MOST_PIXELS = 10_000
#: Sides of images. Each size fills caches of its own once; of many sizes that takes longer than a warm-up.
SIDES = (4, 7, 16, 30, 33, 48, 64, 70)
#: Exceptions that callers and sources raise on purpose.
OURS = (ZipSdkError, ConnectionError)


class Faulty:
    """An engine that fails now and then: an error, no memory, or an answer that is not finite."""

    def __init__(self, engine: Any, rng: random.Random):
        self.spec, self._engine, self._rng = engine.spec, engine, rng

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        roll = self._rng.random()
        if roll < 0.05:
            raise EngineError("the device is lost")
        if roll < 0.1:
            raise OutOfMemoryError("no room")
        eps: np.ndarray = self._engine(x, t)
        return np.full_like(eps, np.nan) if roll < 0.15 else eps


@cache
def _bundled() -> Purifier | None:
    return (
        Purifier(zipsdk.load_engine(list_models()[0], device="cpu", threads=1), preset="fast")
        if list_models()
        else None
    )


class Activities:
    """Everything that one thread does; each has its own numbers, and all share the engines.

    Attributes:
        done: runs of each activity, and their ends.
        faults: unexpected exceptions, at most 20.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.np_rng = np.random.default_rng(seed)
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.model = folder / "toy.onnx"
        self.model.write_bytes(toy())
        self.engine = zipsdk.load_engine(self.model, device="cpu", threads=1)
        self.purifier = Purifier(self.engine, steps=2)
        self.all: dict[str, Callable[[], str]] = {
            "arrays": self.arrays, "files": self.files, "stream": self.stream, "guard": self.guard,
            "bundled model": self.bundled_model,
            "faulty engine": self.faulty_engine, "engine opened": self.engine_opened, "refused": self.refused,
        }  # fmt: skip

    def run(self, name: str) -> None:
        """Run one activity and count how it ended."""
        try:
            result = self.all[name]()
        except Exception as e:
            result = f"fault {type(e).__name__}"
            if len(self.faults) < 20:
                self.faults.append(f"{name}: {type(e).__name__}: {e}"[:500])
        self.done[f"{name}: {result}"] += 1

    def until(self, stop: threading.Event) -> None:
        """Run activities at random until `stop` is set."""
        names = list(self.all)
        while not stop.is_set():
            self.run(self.rng.choice(names))

    def _image(self, most: int = 80) -> np.ndarray:
        size = min(self.rng.choice(SIDES), most), min(self.rng.choice(SIDES), most), 3
        return self.np_rng.integers(0, 256, size, dtype=np.uint8)

    def arrays(self) -> str:
        """Purify batches of several shapes and dtypes."""
        sides = self.rng.choice(SIDES), self.rng.choice(SIDES)
        shape = self.rng.randint(1, 4), *sides, self.rng.choice((1, 3, 4))
        dtype = self.rng.choice(("u1", "u2", "f4", "f8", ">f4"))
        batch = (
            self.np_rng.random(shape).astype(dtype)
            if "f" in dtype
            else self.np_rng.integers(0, 256, shape).astype(dtype)
        )
        out = self.purifier.run(batch)
        assert out.shape == batch.shape and out.dtype == batch.dtype
        mixed = [self._image(), self._image(), Image.fromarray(self._image())]
        assert len(self.purifier.run(mixed)) == 3
        return "done"

    def _file(self, damaged: bool) -> Path:
        data = self.rng.choice(base_files(self.rng.choice(image_names())))
        if damaged:
            raw = bytearray(data)
            for _ in range(self.rng.randint(1, 20)):
                raw[self.rng.randrange(len(raw))] = self.rng.randrange(256)
            data = bytes(raw[: self.rng.randint(1, len(raw))] if self.rng.random() < 0.5 else raw)
        path = self.folder / f"in-{self.rng.randrange(8)}.png"
        path.write_bytes(data)
        if damaged and _pixels(path) > MOST_PIXELS:  # a size that lies; a large image is another test
            return self._file(False)
        return path

    def files(self) -> str:
        """Read, purify and save a file, whole or damaged."""
        path = self._file(self.rng.random() < 0.5)
        try:
            image = images.read_one(path, max_pixels=MOST_PIXELS)
        except InputError:
            return "refused"
        (clean,) = self.purifier.run([image.rgb])
        target = self.folder / f"out-{self.rng.randrange(8)}{self.rng.choice(SUFFIXES)}"
        try:
            images.save(image.restore(clean), target)
        except InputError:
            return "not saved"
        return "saved"

    def stream(self) -> str:
        """Purify a stream whose source fails, or which the caller leaves."""
        ends = self.rng.choice(("whole", "source fails", "left", "bad batch"))
        stop_at = self.rng.randint(0, 4)

        def source() -> Iterator[Any]:
            for i in range(5):
                if i == stop_at and ends == "source fails":
                    raise ConnectionError("the camera failed")
                yield np.zeros((2, 2)).astype(complex) if i == stop_at and ends == "bad batch" else self._image(40)

        results = self.purifier.stream(source())
        try:
            for i, out in enumerate(results):
                assert out.dtype == np.uint8
                if ends == "left" and i == stop_at:
                    break
        except OURS as e:
            return f"{ends}: {type(e).__name__}"
        finally:
            results.close()
        return ends

    def guard(self) -> str:
        """Guard a batch with a classifier that raises, is late, or returns invalid scores."""
        fault = self.rng.choice(("none", "none", "raise", "late", "nan", "shape"))

        def classify(x: np.ndarray) -> Any:
            if fault == "raise":
                raise ConnectionError("the service is down")
            if fault == "late":
                time.sleep(0.05)
            scores = brightness(x)
            return scores * np.nan if fault == "nan" else scores[:, :1] if fault == "shape" else scores

        detector = self.rng.choice((zipsdk.PurifyAll(), zipsdk.ScaleUp(), zipsdk.AblationDetector(learn=16)))
        timeout = 0.01 if fault == "late" else None
        batch = [self._image(24), self._image(24), self._file(self.rng.random() < 0.5)]
        guard = Guard(classify, self.purifier, detector, adapt=self.rng.random() < 0.5, timeout=timeout)
        decisions = [*guard.run(batch), *(d for ds in guard.stream([batch[:1]]) for d in ds)]
        assert len(decisions) == 4
        return fault

    def bundled_model(self) -> str:
        """Purify with a true UNet, whose engine is shared by all threads."""
        purifier = _bundled()
        if purifier is None:
            return "no model"
        out = purifier.run([self._image(40), self._image(40)])
        return f"{len(out)} images"

    def faulty_engine(self) -> str:
        """Purify with an engine that fails now and then."""
        try:
            with Purifier(Faulty(self.engine, self.rng), steps=4) as purifier:
                purifier.run([self._image(), self._image()])
        except OURS as e:
            return type(e).__name__
        return "done"

    def engine_opened(self) -> str:
        """Open an engine, use it once and drop it: on one thread, on two, and from a damaged file."""
        if self.rng.random() < 0.3:
            bad = self.folder / "bad.onnx"
            bad.write_bytes(toy()[: self.rng.randrange(600)])
            try:
                zipsdk.load_engine(bad, device="cpu", threads=1)
            except ZipSdkError as e:
                return type(e).__name__
        threads = self.rng.choice((1, 2))
        with Purifier(zipsdk.load_engine(self.model, device="cpu", threads=threads), steps=2) as purifier:
            purifier.run(self.np_rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
        return f"{threads} threads"

    def refused(self) -> str:
        """Ask for what is refused."""
        bad: Any = self.rng.choice(
            (np.full((4, 4, 3), np.nan), np.zeros((0, 4, 3), np.uint8), object(), [1, 2], "none.png", b"x")
        )
        try:
            self.purifier.run(bad)
        except ZipSdkError as e:
            return type(e).__name__
        raise AssertionError(f"{bad!r} was taken")


def _pixels(path: Path) -> int:
    """Return the number of pixels in the header of a file, 0 if Pillow cannot read it."""
    try:
        with Image.open(path) as im:
            return im.width * im.height
    except Exception:
        return 0


def command(folder: Path, rng: random.Random) -> str:
    """Run ``zipsdk purify`` on a folder of six files,
    of which some are damaged; some runs continue an earlier one."""
    photos, out = folder / "photos", folder / f"out{rng.randrange(3)}"
    photos.mkdir(exist_ok=True)
    for i in range(6):
        data = bytearray(rng.choice(base_files("png")))
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] ^= 255
        (photos / f"{i}.png").write_bytes(bytes(data))
    argv = [
        "purify",
        str(photos),
        "-o",
        str(out),
        "--model",
        str(folder / "toy.onnx"),
        "--threads",
        "1",
        "--steps",
        "2",
    ]
    return f"exit code {main([*argv, '--quiet', *(['--overwrite'] if rng.random() < 0.5 else [])])}"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for one soak."""
    return tempfile.TemporaryDirectory(prefix="soak-")


def silence() -> None:
    """Ignore the documented warnings about EXIF and colors: thousands of them carry no information."""
    warnings.simplefilter("ignore", UserWarning)
