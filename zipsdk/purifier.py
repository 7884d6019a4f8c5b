"""The front door: pictures in, purified pictures out."""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.prefetch import Ahead
from zipsdk._util.validation import is_whole
from zipsdk.engines import load_engine
from zipsdk.errors import EngineError, InputError, ZipError
from zipsdk.sampling import memory, sampler
from zipsdk.sampling.denoiser import Predictor
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import equivalent_step, step_table
from zipsdk.sampling.state import STRIP_PIXELS, StateRows, to_pictures, to_state
from zipsdk.sampling.tiling import Layout, plan
from zipsdk.transforms import Guide, GuidePerPicture, OneOf, Transform, parse, several, strip_unit
from zipsdk.types import Engine

if TYPE_CHECKING:
    from zipsdk.gpu.loop import DeviceLoop

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

#: Settings by name: the paper's 20 steps from pure noise, and a warm start that does the same work in 4 evaluations.
#: `start` is of 1000 time steps; a model with more or fewer begins at the same share of its own.
PROFILES: dict[str, dict[str, int | None]] = {
    "paper": {"steps": 20, "start": None},
    "fast": {"steps": 4, "start": 400},
}


#: Transforms and lambda by what is feared; "default" is what the model recommends. docs/results.md has what they do.
#: No fixed one holds against every trigger: that takes `zipsdk.Guard`.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "patch": {"transforms": "blur2", "lam": 10.0},
    "blended": {"transforms": "gray", "lam": 2.0},
    "random": {"transforms": "blur2|gray|blur2+gray|blur4+gray", "lam": 10.0},
}


class Purifier:
    """Destroy a possible trigger with linear transforms, then let a diffusion model restore the meaning.

    Args:
        engine: an engine from `zipsdk.load_engine`, a path to a model, a bundled model's name, or any object with
            `spec` and ``__call__(x, t) -> eps`` (see `zipsdk.types.Engine`).
        transforms: one or a list of them, `OneOf` for a random choice per picture, or a string such as "blur2+gray".
            None takes the preset's, or what the model's spec recommends.
        lam: lambda in (0, inf]: how long the restored picture is held to the input. The paper uses 10 for patches and 2
            for blended triggers. None takes the preset's, or what the model's spec recommends.
        steps: UNet evaluations, 2 to the model's time steps (1000), or 1 with a warm start. None takes the profile's.
            From pure noise take a divisor of 1000: the stride is 1000 // steps, so that 600, for example, begin at
            t = 599, where the model expects a picture in the noise.
        eta: in [0, 1]: 1 draws fresh noise at every step (the paper), 0 none.
        combine: "mean" (the paper) or "joint"; see `zipsdk.transforms.Guide`.
        profile: "paper" (20 steps from pure noise) or "fast" (4 from a warm start at t = 400 of 1000, and at the same
            share of another number of time steps).
        preset: "default", or for those who know what they fear, grey patches too ("patch") or smooth coloured blends
            ("blended"); "random" draws the transforms for each picture, against an attacker who knows them. It stands
            for `transforms` and `lam` where these are None; see `PRESETS`.
        start: begin at this time step, 1 to 999 of 1000, from the noised guide, in place of the profile's; without
            `steps` the stride is the paper's 50.
        seed: a whole number in 0..2^64-1. None draws fresh entropy from the operating system for each call of `run`: an
            attacker who can predict the noise has an easier job, so a fixed seed is for tests and for reproducing a
            result.
        clip_x0: clamp the estimate of the picture at each step; the paper does not.
        canvas: side of the canvases, for models that take several sizes. None lets such a model see each picture at its
            own size, which is as fast as tiling and keeps neighbours apart.
        cuda_graph: on a GPU, capture the loop into a CUDA graph where the engine can be captured. The pictures are the
            same without; turn it off to profile, or where a tool cannot look into graphs.

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
        profile: str = "paper",
        preset: str = "default",
        start: int | None = None,
        seed: int | None = None,
        clip_x0: bool = False,
        canvas: int | None = None,
        cuda_graph: bool = True,
    ):
        if isinstance(engine, str | Path):
            engine = load_engine(engine)
        if not isinstance(engine, Engine) or isinstance(engine, type):  # a class has the members, too
            got = f"the class {engine.__name__}" if isinstance(engine, type) else type(engine).__name__
            raise InputError(f"engine: got {got}, wanted a model's name or path, or an object with spec and __call__")
        self.engine = engine
        spec = engine.spec
        if not isinstance(profile, str) or profile not in PROFILES:
            raise InputError(f"profile: got {profile!r}, wanted one of {', '.join(map(repr, PROFILES))}")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise InputError(f"preset: got {preset!r}, wanted one of {', '.join(map(repr, PRESETS))}")
        transforms = PRESETS[preset].get("transforms") if transforms is None else transforms
        lam = PRESETS[preset].get("lam") if lam is None else lam
        if start is None:
            steps = PROFILES[profile]["steps"] if steps is None else steps
            warm = PROFILES[profile]["start"]
            start = None if warm is None else equivalent_step(spec, warm)
        if seed is not None and not (is_whole(seed) and 0 <= int(seed) < 2**64):
            raise InputError(
                f"seed: got {seed!r}, wanted a whole number in 0..2^64-1, or None for a fresh one each run"
            )
        lam = spec.lam if lam is None else lam
        if not isinstance(clip_x0, bool | np.bool_ | int):
            raise InputError(f"clip_x0: got {clip_x0!r}, expected True or False")
        self.table = step_table(spec, lam=lam, eta=eta, steps=steps, start=start)
        self.lam, self.eta, self.profile, self.clip_x0 = float(lam), float(eta), profile, bool(clip_x0)
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
        #: pixels of the largest canvas so far
        self._evaluated = 0
        self._device_loop, self._host_loop = self._open_device_loop(cuda_graph)

    def _open_device_loop(self, cuda_graph: bool) -> tuple[DeviceLoop | None, str]:
        """The loop on the engine's GPU, or None and why the loop runs on the host."""
        engine: Any = self.engine
        if not hasattr(engine, "enqueue"):
            return None, "the engine runs on the CPU"
        if engine.device is None:
            return None, str(engine.cpu_loop_reason)
        from zipsdk.gpu.loop import DeviceLoop
        from zipsdk.gpu.structs import guide_table

        if guide_table(self.guides) is None:
            reason = f"no GPU kernel for {self.transforms}: blurs by 2, 4, 8, 16 and gray have one"
            warnings.warn(f"{reason}; the loop runs on the host, and the UNet alone on the GPU", stacklevel=4)
            return None, reason
        return DeviceLoop(engine, self.table, self.guides, clip_x0=self.clip_x0, cuda_graph=cuda_graph), ""

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
        how = "one captured graph" if self._device_loop.cuda_graph else "launched step by step"
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
        return back(self._begin([p.rgb for p in pictures], ids, progress)())

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
        source = iter(batches)
        nothing = object()

        def fetch() -> Any:
            batch = next(source, nothing)
            return nothing if batch is nothing else images.read(batch, layout=layout)

        # on a GPU one batch more is read ahead, so that it can go up while the last one computes
        depth = 1 if self._device_loop is None else 2
        finish: Callable[[], Any] | None = None
        reader = Ahead(fetch)
        ahead: deque[Future[Any]] = deque(reader.submit() for _ in range(depth))
        failed: Exception | None = None
        try:
            while True:
                try:
                    read = ahead.popleft().result()
                    if read is nothing:
                        break
                    ahead.append(reader.submit())
                    pictures, back = read
                    begun = self._finish(back, self._begin([p.rgb for p in pictures], None, None))
                except Exception as e:
                    failed = e  # raised when what was begun before has been given back
                    break
                before, finish = finish, begun
                if before is not None:
                    yield before()
                # a result that is on its way must not wait for a batch that is not there yet
                if self._device_loop is None or not ahead[0].done():
                    ready, finish = finish, None
                    yield ready()
            if finish is not None:
                ready, finish = finish, None
                yield ready()
            if failed is not None:
                raise failed
        finally:
            for future in ahead:
                future.cancel()
            reader.close()
            if finish is not None:  # nobody wants it any more, and it must not stay in flight
                with suppress(ZipError):
                    finish()

    @staticmethod
    def _finish(back: Callable[[list[U8]], Any], wait: Callable[[], list[U8]]) -> Callable[[], Any]:
        return lambda: back(wait())

    def _begin(
        self, pictures: list[U8], ids: npt.ArrayLike | None, progress: Callable[[int], None] | None
    ) -> Callable[[], list[U8]]:
        """Start on the pictures, on a GPU; what it returns waits for the results, or computes them here."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        numbers = picture_ids(pictures, ids, seed)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            groups.setdefault(p.shape, []).append(i)
        done = progress or (lambda n: None)
        # what cannot be done is said before anything is begun
        plans = {size: plan(self.engine.spec, size[0], size[1], self._divisor, self.canvas) for size in groups}
        host = [s for s in groups if not self._on_device(plans[s])]
        on_cpu = getattr(self.engine, "device", None) is None  # else its memory is not the host's
        memory.check_run([(plans[s], len(groups[s]), s[0], s[1]) for s in host], strip_unit(self.guides),
                         self.engine.spec.name if on_cpu else "", self._evaluated)  # fmt: skip
        sizes = deque(groups)
        waits: deque[tuple[list[int], Callable[[], Iterable[U8]]]] = deque()

        def begin() -> None:
            # two at a time: while one computes, the next goes up; each has buffers of its own, and sizes may be many
            while sizes and len(waits) < 2:
                size = sizes.popleft()
                members = groups[size]
                same = [pictures[i] for i in members]
                waits.append((members, self._begin_size(same, plans[size], numbers[members], seed, done)))

        def give_up() -> None:
            """After an error: what is on its way on a GPU must not stay in flight."""
            if self._device_loop is not None:
                for _, result in waits:
                    with suppress(Exception):  # the first error is the one that is told
                        result()

        try:
            begin()
        except BaseException:
            give_up()
            raise

        def wait() -> list[U8]:
            out: list[U8] = [np.empty(0, np.uint8)] * len(pictures)
            try:
                while waits:
                    members, result = waits.popleft()
                    for i, picture in zip(members, result(), strict=True):
                        out[i] = picture
                    begin()
            except BaseException:
                give_up()
                raise
            return out

        return wait

    def _on_device(self, layout: Layout) -> bool:
        """Whether the loop runs on the GPU, whose memory it checks itself."""
        return self._device_loop is not None and layout.windows == 1

    def _begin_size(
        self,
        same: list[U8],
        layout: Layout,
        ids: npt.NDArray[np.uint64],
        seed: int,
        progress: Callable[[int], None],
    ) -> Callable[[], Iterable[U8]]:
        """Start on images of one size, each uint8 (H, W, 3), at least one."""
        if self._device_loop is not None and self._on_device(layout):
            which = Noise(seed, ids).choice(len(self.guides)) if len(self.guides) > 1 else 0
            return self._device_loop.start(np.stack(same), layout, ids, which, seed, progress).result

        def compute() -> list[U8]:
            predict = Predictor(self.engine, layout)
            out: list[U8] = []
            for i in range(0, len(same), layout.pictures_per_call):
                part = slice(i, i + layout.pictures_per_call)
                # a view of a single image: a copy of a large one costs memory
                rgb = np.stack(same[part]) if len(same[part]) > 1 else same[i][None]
                out += list(self._loop(rgb, layout, predict, Noise(seed, ids[part])))
                self._evaluated = max(self._evaluated, layout.canvas_height * layout.canvas_width)
                progress(len(rgb))
            return out

        return compute

    def _loop(self, rgb: U8, layout: Layout, predict: Predictor, noise: Noise) -> U8:
        """uint8 (N, H, W, 3) of one size -> the same, purified."""
        n, height, width, _ = rgb.shape
        x_p: F32 | StateRows = StateRows(rgb, layout.height, layout.width)
        if n * layout.height * layout.width <= STRIP_PIXELS:  # one strip, read at every step: convert it once
            x_p = to_state(rgb, layout.height, layout.width)
        guide: sampler.GuideLike = self.guides[0]
        if len(self.guides) > 1:
            guide = GuidePerPicture(self.guides, noise.choice(len(self.guides)))
        # a finite eps may still be too large for the steps after it
        with np.errstate(over="ignore", invalid="ignore"):
            x = sampler.purify(predict, x_p, self.table, guide, noise, clip_x0=self.clip_x0)
            finite = np.isfinite(x.sum(dtype=np.float64))
        if not finite:
            raise EngineError(
                "engine: got eps so large that the image is not finite, expected a noise prediction; "
                "the model overflows: use its fp32 or bf16 export"
            )
        return to_pictures(x, height, width)


def picture_ids(pictures: list[U8], ids: npt.ArrayLike | None, seed: int) -> npt.NDArray[np.uint64]:
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
