"""The front door: pictures in, purified pictures out."""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.prefetch import Prefetcher
from zipsdk._util.validation import is_whole
from zipsdk.engines import load_engine
from zipsdk.errors import InputError
from zipsdk.pending import CpuBatch, DeviceBatch, PendingResult, PendingRun, SizeGroup
from zipsdk.presets import PresetName, preset_of
from zipsdk.sampling import memory
from zipsdk.sampling.cpu_loop import CpuLoop
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.tiling import Layout, plan
from zipsdk.transforms import Guide, OneOf, Transform, parse, several, strip_unit
from zipsdk.types import U8, U64, Engine

if TYPE_CHECKING:
    from zipsdk.gpu.loop import DeviceLoop


class Purifier:
    """Destroy a possible trigger with linear transforms, then let a diffusion model restore the meaning.

    Args:
        engine: an engine from `zipsdk.load_engine`, a path to a model, a bundled model's name, or any object with
            `spec` and ``__call__(x, t) -> eps`` (see `zipsdk.types.Engine`).
        transforms: one or a list of them, `OneOf` for a random choice per picture, or a string such as "blur2+gray".
            None takes what the model's spec recommends.
        lam: lambda in (0, inf]: how long the restored picture is held to the input. The paper uses 10 for patches and 2
            for blended triggers. None takes what the model's spec recommends.
        preset: defaults of `steps` and `start`: "paper" (20 steps from pure noise) or "fast" (4 steps from a warm start
            at t = 400 of 1000, or where another schedule has as much noise). Giving one of the two leaves the other.
        steps: number of denoising steps, 2 to the model's time steps (1000), or 1 with a warm start. None takes the
            preset's. From pure noise take a divisor of 1000: the stride is 1000 // steps, so that 600, for example,
            begin at t = 599, where the model expects a picture in the noise.
        start: warm start: begin at this time step, 1 to 999 of 1000, from the noised guide. None takes the preset's.
        eta: in [0, 1]: 1 draws fresh noise at every step (the paper), 0 none.
        combine: "mean" (the paper) or "joint"; see `zipsdk.transforms.Guide`.
        seed: a whole number in 0..2^64-1. None draws fresh entropy from the operating system for each call of `run`: an
            attacker who can predict the noise has an easier job, so a fixed seed is for tests and for reproducing a
            result.
        clip_x0: clamp the estimate of the picture at each step; the paper does not.
        canvas: side of the canvases, for models that take several sizes. None lets such a model see each picture at its
            own size, which is as fast as tiling and keeps neighbours apart.
        graph: on a GPU, capture the loop into a CUDA graph where the engine can be captured. The pictures are the same
            without; turn it off to profile, or where a tool cannot look into graphs.

    Raises:
        InputError: an option out of range.
        ModelError, EngineError, MissingExtra: the model cannot be loaded, or not run here.
    """

    def __init__(
        self,
        engine: Engine | str | Path,
        transforms: Transform | Sequence[Transform] | OneOf | str | None = None,
        *,
        lam: float | None = None,
        steps: int | None = None,
        eta: float = 1.0,
        combine: str = "mean",
        preset: PresetName = "paper",
        start: int | None = None,
        seed: int | None = None,
        clip_x0: bool = False,
        canvas: int | None = None,
        graph: bool = True,
    ):
        if isinstance(engine, str | Path):
            engine = load_engine(engine)
        if not isinstance(engine, Engine) or isinstance(engine, type):  # a class has the members, too
            got = f"the class {engine.__name__}" if isinstance(engine, type) else type(engine).__name__
            raise InputError(f"engine: got {got}, wanted a model's name or path, or an object with spec and __call__")
        self.engine = engine
        spec = engine.spec
        defaults = preset_of(preset)
        steps = defaults.steps if steps is None else steps
        start = defaults.start_for(spec) if start is None else start
        if seed is not None and not (is_whole(seed) and 0 <= int(seed) < 2**64):
            raise InputError(
                f"seed: got {seed!r}, wanted a whole number in 0..2^64-1, or None for a fresh one each run"
            )
        lam = spec.lam if lam is None else lam
        if not isinstance(clip_x0, bool | np.bool_ | int):
            raise InputError(f"clip_x0: got {clip_x0!r}, expected True or False")
        self.table = step_table(spec, lam=lam, eta=eta, steps=steps, start=start)
        self.lam, self.eta, self.clip_x0 = float(lam), float(eta), bool(clip_x0)
        self.seed = None if seed is None else int(seed)

        if transforms is None:
            transforms = "+".join(spec.transforms)
        if isinstance(transforms, str):
            transforms = parse(transforms)
        choices = transforms.choices if isinstance(transforms, OneOf) else (several(transforms),)
        self.guides = [Guide(c, combine) for c in choices]
        self.transforms = "|".join("+".join(map(str, g.transforms)) for g in self.guides)
        self.combine = combine
        self._divisor = lcm(*(g.divisor for g in self.guides))
        # a canvas that the engine refuses is told now, not at the first picture
        plan(spec, spec.canvas, spec.canvas, self._divisor, canvas)
        self.canvas = None if canvas is None else int(canvas)
        self._cpu_loop = CpuLoop(engine, self.table, self.guides, clip_x0=self.clip_x0)
        self._device_loop, self._host_loop = self._open_device_loop(graph)

    def _open_device_loop(self, graph: bool) -> tuple[DeviceLoop | None, str]:
        """The loop on the engine's GPU, or None and why the loop runs on the host."""
        engine: Any = self.engine
        if not hasattr(engine, "enqueue"):
            return None, "the engine runs on the CPU"
        if engine.device is None:
            return None, str(engine.host_loop)
        from zipsdk.gpu.loop import DeviceLoop, rows_for

        if rows_for(self.guides) is None:
            reason = f"no GPU kernel for {self.transforms}: blurs by 2, 4, 8, 16 and gray have one"
            warnings.warn(f"{reason}; the loop runs on the host, and the UNet alone on the GPU", stacklevel=4)
            return None, reason
        return DeviceLoop(engine, self.table, self.guides, clip_x0=self.clip_x0, graph=graph), ""

    def close(self) -> None:
        """Give back the memory that the loop has on a GPU; on a CPU there is nothing to do. Also at the end of `with`.

        The purifier stays usable: the next `run` takes the memory again. A batch of `stream` that is on its way keeps
        what it needs. The engine's own memory is given back when the engine is gone.
        """
        if self._device_loop is not None:
            self._device_loop.close()

    def __enter__(self) -> Purifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> dict[str, Any]:
        """What really runs, for records and for `print`.

        It has the keys model, those of the engine's own `info` (see `zipsdk.load_engine`), loop (where it runs),
        evaluations, start (None from pure noise), transforms, combine, lam, eta, clip_x0, canvas and seed.
        """
        engine = getattr(self.engine, "info", None) or {"engine": type(self.engine).__name__}
        return {
            "model": self.engine.spec.name,
            **engine,
            "loop": self._where(),
            "evaluations": len(self.table),
            "start": self.table.steps[0].t if self.table.warm else None,
            "transforms": self.transforms,
            "combine": self.combine,
            "lam": self.lam,
            "eta": self.eta,
            "clip_x0": self.clip_x0,
            "canvas": self.canvas,
            "seed": self.seed,
        }

    def _where(self) -> str:
        if self._device_loop is None:
            return f"host ({self._host_loop})"
        how = "one captured graph" if self._device_loop.graph else "launched step by step"
        return f"GPU ({how}; pictures larger than the canvas: on the host)"

    def run(
        self,
        batch: Any,
        *,
        layout: str = "NHWC",
        ids: npt.ArrayLike | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        """Purify pictures; what came in is what goes out: type, size, dtype, layout.

        Args:
            batch: uint8 (N, H, W, 3) or (H, W, 3), float in [0, 1], a PIL image, a path, or a list of these of mixed
                sizes; uint16, grey and RGBA too: see `zipsdk.images.read`. Inside, pictures have 8 bits a colour.
            layout: "NHWC" or "NCHW", for arrays.
            ids: a number in 0..2^64-1 for each picture: with the seed it decides the picture's noise. Without it a hash
                of the picture is used, so that the same picture gets the same noise wherever it stands.
            progress: called with the number of pictures done since the last call.

        Raises:
            InputError: a picture that cannot be used; nothing has been purified then.
            EngineError: the model fails on it, or its answer is not finite; OutOfMemory where there is no room, before
                anything is purified where `zipsdk.sampling.memory` can tell.
        """
        pictures, back = images.read(batch, layout=layout)
        return self._submit([p.rgb for p in pictures], back, ids, progress).result()

    def stream(self, batches: Iterable[Any], *, layout: str = "NHWC") -> Iterator[Any]:
        """`run` over many batches, in order; the next batch is fetched and decoded while one computes.

        It can be left at any time, without waiting for a source that is silent. The batches that were taken ahead are
        lost then: one, on a GPU up to three.

        Args:
            batches: each what `run` takes, fetched on a thread. What is raised while one is fetched is raised here,
                after the results of those before it.
            layout: of all of them.

        Raises:
            InputError, EngineError: as `run`, for the batch at which it happens.
        """
        if not isinstance(batches, Iterable):
            raise InputError(
                f"batches: got {type(batches).__name__}, expected an iterable of batches; for one batch use run"
            )
        # on a GPU one more batch is read ahead, to upload while the last one computes
        reads = Prefetcher(map(partial(images.read, layout=layout), batches), 1 if self._device_loop is None else 2)
        pending: deque[PendingRun] = deque()
        failed: Exception | None = None
        more = True
        try:
            while more:
                try:
                    more = (read := next(reads, None)) is not None
                    if read is not None:
                        pictures, restore = read
                        pending.append(self._submit([p.rgb for p in pictures], restore))
                except Exception as e:  # raised after the results of the batches before it
                    failed, more = e, False
                # on a GPU the last batch stays in flight while the next one starts, if that has been read
                while len(pending) > (1 if more and self._device_loop is not None and reads.ready else 0):
                    yield pending.popleft().result()
            if failed is not None:
                raise failed
        finally:
            reads.close()
            for run in pending:
                run.cancel()

    def _submit(
        self,
        pictures: list[U8],
        restore: Callable[[list[U8]], Any] = list,
        ids: npt.ArrayLike | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> PendingRun:
        """Start on the images. Raises before anything has started if one of them cannot be done."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        noise_keys = picture_ids(pictures, ids, seed)
        places: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            places.setdefault(p.shape, []).append(i)
        groups = [
            SizeGroup(
                members,
                [pictures[i] for i in members],
                plan(self.engine.spec, size[0], size[1], self._divisor, self.canvas),
                noise_keys[members],
                Noise(seed, noise_keys[members]).choice(len(self.guides)),
                seed,
                progress or (lambda n: None),
            )
            for size, members in places.items()
        ]
        self._check_memory([g for g in groups if not self._on_device(g.layout)])
        return PendingRun(groups, self._start, restore)

    def _check_memory(self, groups: list[SizeGroup]) -> None:
        """Refuse images whose loop on the CPU does not fit; the GPU's loop checks its own memory."""
        on_cpu = getattr(self.engine, "device", None) is None  # else the engine takes memory of the GPU
        memory.check_run(
            [(g.layout, len(g.images), *g.images[0].shape[:2]) for g in groups],
            strip_unit(self.guides),
            self.engine.spec.name if on_cpu else "",
            self._cpu_loop.largest_canvas,
        )

    def _on_device(self, layout: Layout) -> bool:
        """Whether the loop runs on the GPU for this layout."""
        return self._device_loop is not None and layout.windows == 1

    def _start(self, group: SizeGroup) -> PendingResult:
        if self._device_loop is None or not self._on_device(group.layout):
            return CpuBatch(self._cpu_loop, group)
        g = group
        return DeviceBatch(
            self._device_loop.start(np.stack(g.images), g.layout, g.noise_keys, g.guide_index, g.seed, g.progress)
        )


def picture_ids(pictures: list[U8], ids: npt.ArrayLike | None, seed: int) -> U64:
    """The pictures' ids as given, or a hash of each."""
    if ids is None:
        # keyed, so that whoever does not know the seed cannot choose a picture by its noise
        key = seed.to_bytes(8, "little")
        numbers = []
        for p in pictures:
            hashed = hashlib.blake2b(np.ascontiguousarray(p).data, digest_size=8, key=key)
            hashed.update(str(p.shape).encode())
            numbers.append(int.from_bytes(hashed.digest()))
        return np.array(numbers, np.uint64)
    # as objects, because NumPy makes floats of lists with numbers on both sides of 2^63, and of empty ones
    given = np.asarray(ids) if hasattr(ids, "dtype") else np.array(ids, object)
    bad = [i for i in given.flat if not is_whole(i) or not 0 <= int(i) < 2**64]
    if bad or given.shape != (len(pictures),):
        got = repr(bad[0]) if bad else f"an array of shape {given.shape}"
        raise InputError(
            f"ids: got {got}, wanted {len(pictures)} whole numbers in 0..2^64-1, one for each picture in a flat list"
        )
    return given.astype(np.uint64)
