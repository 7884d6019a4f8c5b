"""The front door: pictures in, purified pictures out."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk import canvas as canvases
from zipsdk import images, reverse
from zipsdk.canvas import Engine
from zipsdk.engines import load_engine
from zipsdk.errors import InputError
from zipsdk.noise import Noise
from zipsdk.schedule import step_table
from zipsdk.transforms import Guide, GuidePerPicture, OneOf, Transform, parse

U8 = npt.NDArray[np.uint8]

#: Settings by name: the paper's 20 steps from pure noise, and a warm start that does the same work in 4 evaluations.
PROFILES: dict[str, dict[str, int | None]] = {
    "paper": {"steps": 20, "start": None},
    "fast": {"steps": 4, "start": 400},
}


class Purifier:
    """Destroy a possible trigger with linear transforms, then let a diffusion model restore the meaning.

    Args:
        engine: an engine from `zipsdk.load_engine`, a path to a model, a bundled model's name, or any object with
            `spec` and ``__call__(x, t) -> eps`` (see `zipsdk.canvas.Engine`).
        transforms: a list of transforms, `OneOf` for a random choice per picture, or a string such as "blur2+gray".
            None takes what the model's spec recommends.
        lam: lambda in (0, inf]: how long the restored picture is held to the input. The paper uses 10 for patches and 2
            for blended triggers. None takes what the model's spec recommends.
        steps: UNet evaluations. None takes the profile's.
        eta: 1 draws fresh noise at every step (the paper), 0 none.
        combine: "mean" (the paper) or "joint"; see `zipsdk.transforms.Guide`.
        profile: "paper" (20 steps from pure noise) or "fast" (4 from a warm start at t = 400).
        start: begin at this time step from the noised guide, in place of the profile's; without `steps` the stride
            stays the paper's 50.
        seed: None draws fresh entropy from the operating system for each call of `run`. An attacker who can predict the
            noise has an easier job, so a fixed seed is for tests and for reproducing a result.
        clip_x0: clamp the estimate of the picture at each step; the paper does not.
        canvas: side of the canvases, for models that take several sizes. None lets such a model see each picture at its
            own size, which is as fast as tiling and keeps neighbours apart.

    Raises:
        InputError: an option out of range.
        ModelError, EngineError: the model cannot be loaded, or not run here.
    """

    def __init__(
        self,
        engine: Engine | str | Path,
        transforms: Sequence[Transform] | OneOf | str | None = None,
        *,
        lam: float | None = None,
        steps: int | None = None,
        eta: float = 1.0,
        combine: str = "mean",
        profile: str = "paper",
        start: int | None = None,
        seed: int | None = None,
        clip_x0: bool = False,
        canvas: int | None = None,
    ):
        if isinstance(engine, str | Path):
            engine = load_engine(engine)
        if not isinstance(engine, Engine):
            raise InputError(
                f"engine: got {type(engine).__name__}, wanted a model's name or path, "
                "or an object with spec and __call__"
            )
        self.engine = engine
        spec = engine.spec
        if profile not in PROFILES:
            raise InputError(f"profile: got {profile!r}, wanted one of {', '.join(map(repr, PROFILES))}")
        if steps is None and start is None:
            steps, start = PROFILES[profile]["steps"], PROFILES[profile]["start"]
        elif start is None:
            start = PROFILES[profile]["start"]
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64):
            raise InputError(
                f"seed: got {seed!r}, wanted a whole number in 0..2^64-1, or None for a fresh one each run"
            )
        self.lam = spec.lam if lam is None else float(lam)
        self.table = step_table(spec, lam=self.lam, eta=eta, steps=steps, start=start)
        self.eta, self.profile, self.seed, self.clip_x0, self.canvas = eta, profile, seed, clip_x0, canvas

        if transforms is None:
            transforms = "+".join(spec.transforms)
        if isinstance(transforms, str):
            transforms = parse(transforms)
        elif isinstance(transforms, Transform):
            transforms = [transforms]
        choices = transforms.choices if isinstance(transforms, OneOf) else (tuple(transforms),)
        self.guides = [Guide(c, combine) for c in choices]
        self.transforms = str(transforms) if isinstance(transforms, OneOf) else "+".join(map(str, transforms))
        self.combine = combine
        self._divisor = int(np.lcm.reduce([g.divisor for g in self.guides]))
        # a canvas that the engine refuses is told now, not at the first picture
        canvases.plan(spec, spec.canvas, spec.canvas, self._divisor, canvas)

    @property
    def info(self) -> dict[str, Any]:
        """What really runs: model, engine, providers, evaluations and settings, for records and for `print`."""
        engine = getattr(self.engine, "info", None) or {"engine": type(self.engine).__name__}
        return {
            "model": self.engine.spec.name,
            **engine,
            "evaluations": len(self.table),
            "start": self.table.steps[0].t if self.table.warm else None,
            "transforms": self.transforms,
            "combine": self.combine,
            "lam": self.lam,
            "eta": self.eta,
            "seed": self.seed,
        }

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
                sizes; see `zipsdk.images.read`. Inside, pictures have 8 bits a colour.
            layout: "NHWC" or "NCHW", for arrays.
            ids: a number in 0..2^64-1 for each picture: with the seed it decides the picture's noise. Without it a hash
                of the picture is used, so that the same picture gets the same noise wherever it stands.
            progress: called with the number of pictures done since the last call.

        Raises:
            InputError: a picture that cannot be used; nothing has been purified then.
        """
        pictures, back = images.read(batch, layout=layout)
        return back(self._purify([p.rgb for p in pictures], ids, progress))

    def stream(self, batches: Iterable[Any], *, layout: str = "NHWC") -> Iterator[Any]:
        """`run` over many batches, in order; the next batch is fetched and decoded while one computes."""
        source = iter(batches)
        nothing = object()

        def fetch() -> Any:
            batch = next(source, nothing)
            return nothing if batch is nothing else images.read(batch, layout=layout)

        with ThreadPoolExecutor(1, thread_name_prefix="zipsdk-read") as pool:
            pending = pool.submit(fetch)
            while (read := pending.result()) is not nothing:
                pending = pool.submit(fetch)
                pictures, back = read
                yield back(self._purify([p.rgb for p in pictures], None, None))

    def _purify(
        self, pictures: list[U8], ids: npt.ArrayLike | None, progress: Callable[[int], None] | None
    ) -> list[U8]:
        seed = secrets.randbits(64) if self.seed is None else self.seed
        if ids is None:
            # keyed, so that whoever does not know the seed cannot choose a picture by its noise
            key = seed.to_bytes(8, "little")
            numbers = [
                int.from_bytes(hashlib.blake2b(p.tobytes() + str(p.shape).encode(), digest_size=8, key=key).digest())
                for p in pictures
            ]
            ids = np.array(numbers, np.uint64)
        else:
            given = np.asarray(ids)
            if given.shape != (len(pictures),) or given.dtype.kind not in "ui" or (given < 0).any():
                raise InputError(
                    f"ids: got {given.dtype} {given.shape}, wanted {len(pictures)} whole numbers in 0..2^64-1, "
                    "one a picture"
                )
            ids = given.astype(np.uint64)

        groups: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            groups.setdefault(p.shape, []).append(i)
        out: list[U8] = [np.empty(0, np.uint8)] * len(pictures)
        for (height, width, _), members in groups.items():
            layout = canvases.plan(self.engine.spec, height, width, self._divisor, self.canvas)
            predict = canvases.Predictor(self.engine, layout)
            for i in range(0, len(members), layout.pictures_per_call):
                part = members[i : i + layout.pictures_per_call]
                noise = Noise(seed, ids[part])
                clean = self._loop(np.stack([pictures[j] for j in part]), layout, predict, noise)
                for j, picture in zip(part, clean, strict=True):
                    out[j] = picture
                if progress is not None:
                    progress(len(part))
        return out

    def _loop(self, rgb: U8, layout: canvases.Layout, predict: canvases.Predictor, noise: Noise) -> U8:
        """uint8 (N, H, W, 3) of one size -> the same, purified."""
        _, height, width, _ = rgb.shape
        x_p = canvases.pad(rgb, layout.height, layout.width).transpose(0, 3, 1, 2).astype(np.float32, order="C")
        x_p *= 1.0 / 127.5
        x_p -= 1.0
        guide: reverse.GuideLike = self.guides[0]
        if len(self.guides) > 1:
            guide = GuidePerPicture(self.guides, noise.choice(len(self.guides)))
        x = reverse.purify(predict, x_p, self.table, guide, noise, clip_x0=self.clip_x0)
        x += 1.0
        x *= 127.5
        np.rint(x, out=x)
        np.clip(x, 0.0, 255.0, out=x)
        return np.ascontiguousarray(x[:, :, :height, :width].astype(np.uint8).transpose(0, 2, 3, 1))
