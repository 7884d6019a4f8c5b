"""The front door: pictures in, purified pictures out."""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.prefetch import Prefetcher
from zipsdk._util.validation import is_whole
from zipsdk.engines import load_engine
from zipsdk.errors import InputError
from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.pending import CpuBatch, DeviceBatch, PendingResult, PendingRun, SizeGroup
from zipsdk.presets import PresetName, preset_of
from zipsdk.sampling import memory
from zipsdk.sampling.cpu_loop import CpuLoop
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import StepTable, step_table
from zipsdk.sampling.tiling import Layout, plan
from zipsdk.transforms import Guide, OneOf, Transform, parse, several, strip_unit
from zipsdk.types import U8, U64, Engine

if TYPE_CHECKING:
    from zipsdk.gpu.loop import DeviceLoop

#: "mean" is the paper's; see `zipsdk.transforms.Guide`.
Combine = Literal["mean", "joint"]


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a purifier, with the defaults of the preset and the model filled in.

    `Purifier` describes the fields. ``Purifier(engine, **vars(settings))`` has the same settings.
    """

    transforms: tuple[Transform, ...] | OneOf
    lam: float
    steps: int
    start: int | None
    eta: float
    combine: Combine
    seed: int | None
    clip_x0: bool
    canvas: int | None
    graph: bool


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

    engine: Engine
    settings: Settings
    table: StepTable
    guides: tuple[Guide, ...]
    _cpu_loop: CpuLoop
    _device_loop: DeviceLoop | None
    _cpu_reason: str

    def __init__(
        self,
        engine: Engine | str | Path,
        transforms: Transform | Iterable[Transform] | OneOf | str | None = None,
        *,
        preset: PresetName = "paper",
        lam: float | None = None,
        steps: int | None = None,
        start: int | None = None,
        eta: float = 1.0,
        combine: Combine = "mean",
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
        if not isinstance(clip_x0, bool | np.bool_ | int):
            raise InputError(f"clip_x0: got {clip_x0!r}, expected True or False")
        spec, defaults = engine.spec, preset_of(preset)
        seed = _checked_seed(seed)
        lam = spec.lam if lam is None else lam
        steps = defaults.steps if steps is None else steps
        start = defaults.start_for(spec) if start is None else start
        table = step_table(spec, lam=lam, eta=eta, steps=steps, start=start)
        transforms = "+".join(spec.transforms) if transforms is None else transforms
        transforms = parse(transforms) if isinstance(transforms, str) else transforms
        transforms = transforms if isinstance(transforms, OneOf) else several(transforms)
        choices = transforms.choices if isinstance(transforms, OneOf) else (transforms,)
        guides = tuple(Guide(choice, combine) for choice in choices)
        settings = Settings(
            transforms=transforms,
            lam=float(lam),
            steps=len(table),
            start=table.steps[0].t if table.warm else None,
            eta=float(eta),
            combine=combine,
            seed=seed,
            clip_x0=bool(clip_x0),
            canvas=canvas if canvas is None else int(canvas),
            graph=graph,
        )
        vars(self).update(engine=engine, settings=settings, table=table, guides=guides)
        plan(spec, spec.canvas, spec.canvas, self._divisor, canvas)  # raises where the engine refuses the canvas
        device_loop, cpu_reason = self._open_device_loop()
        cpu_loop = CpuLoop(engine, table, guides, clip_x0=settings.clip_x0)
        vars(self).update(_cpu_loop=cpu_loop, _device_loop=device_loop, _cpu_reason=cpu_reason)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a Purifier cannot be changed; build another one, or pass seed to run")

    def __reduce__(self) -> tuple[Callable[[Engine], Purifier], tuple[Engine]]:
        return partial(type(self), **vars(self.settings)), (self.engine,)

    @property
    def _divisor(self) -> int:
        """Sides of tiles are multiples of this."""
        return lcm(*(g.divisor for g in self.guides))

    def _open_device_loop(self) -> tuple[DeviceLoop | None, str]:
        """Return the loop on the engine's GPU, or None and why the loop runs on the CPU."""
        engine = self.engine
        if not isinstance(engine, DeviceEngine):
            return None, "the engine runs on the CPU"
        if engine.device is None:
            return None, str(getattr(engine, "host_loop", "the engine runs on the CPU"))
        from zipsdk.gpu.loop import DeviceLoop, rows_for  # not needed where all runs on the CPU

        if rows_for(self.guides) is None:
            reason = f"no GPU kernel for {_names(self.guides)}: blurs by 2, 4, 8, 16 and gray have one"
            warnings.warn(f"{reason}; the loop runs on the host, and the UNet alone on the GPU", stacklevel=4)
            return None, reason
        return DeviceLoop(engine, self.table, self.guides, clip_x0=self.settings.clip_x0, graph=self.settings.graph), ""

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
        settings = self.settings
        engine = getattr(self.engine, "info", None) or {"engine": type(self.engine).__name__}
        return {
            "model": self.engine.spec.name,
            **engine,
            "loop": self._where(),
            "evaluations": settings.steps,
            "start": settings.start,
            "transforms": _names(self.guides),
            "combine": settings.combine,
            "lam": settings.lam,
            "eta": settings.eta,
            "clip_x0": settings.clip_x0,
            "canvas": settings.canvas,
            "seed": settings.seed,
        }

    def _where(self) -> str:
        if self._device_loop is None:
            return f"host ({self._cpu_reason})"
        how = "one captured graph" if self._device_loop.graph else "launched step by step"
        return f"GPU ({how}; pictures larger than the canvas: on the host)"

    def run(
        self,
        batch: Any,
        *,
        layout: str = "NHWC",
        ids: npt.ArrayLike | None = None,
        seed: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        """Purify pictures; what came in is what goes out: type, size, dtype, layout.

        Args:
            batch: uint8 (N, H, W, 3) or (H, W, 3), float in [0, 1], a PIL image, a path, or a list of these of mixed
                sizes; uint16, grey and RGBA too: see `zipsdk.images.read`. Inside, pictures have 8 bits a colour.
            layout: "NHWC" or "NCHW", for arrays.
            ids: a number in 0..2^64-1 for each picture: with the seed it decides the picture's noise. Without it a hash
                of the picture is used, so that the same picture gets the same noise wherever it stands.
            seed: of this call alone; None takes the purifier's.
            progress: called with the number of pictures done since the last call.

        Raises:
            InputError: a picture that cannot be used; nothing has been purified then.
            EngineError: the model fails on it, or its answer is not finite; OutOfMemory where there is no room, before
                anything is purified where `zipsdk.sampling.memory` can tell.
        """
        pictures, back = images.read(batch, layout=layout)
        return self._submit([p.rgb for p in pictures], back, ids, seed, progress).result()

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
        seed: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> PendingRun:
        """Start on the images. Raises before anything has started if one of them cannot be done."""
        seed = self.settings.seed if seed is None else _checked_seed(seed)
        seed = secrets.randbits(64) if seed is None else seed
        noise_keys = picture_ids(pictures, ids, seed)
        places: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            places.setdefault(p.shape, []).append(i)
        groups = [
            SizeGroup(
                members,
                [pictures[i] for i in members],
                plan(self.engine.spec, size[0], size[1], self._divisor, self.settings.canvas),
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


def _names(guides: Iterable[Guide]) -> str:
    """Return the transforms as text, such as "blur2+gray" or "blur2|blur4"."""
    return "|".join("+".join(map(str, g.transforms)) for g in guides)


def _checked_seed(seed: int | None) -> int | None:
    """Return the seed as Python's int. Raises InputError where it is none."""
    if seed is not None and not (is_whole(seed) and 0 <= seed < 2**64):
        raise InputError(
            f"seed: got {seed!r}, expected an integer in 0..2^64-1, or None to draw a new one for each run"
        )
    return None if seed is None else int(seed)


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
