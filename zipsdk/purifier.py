"""Purify images: `Purifier` is the entry point of zipsdk."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from zipsdk import images
from zipsdk._util.prefetch import Prefetcher
from zipsdk._util.validation import is_int, is_path, kind_of
from zipsdk.dispatcher import Dispatcher, names
from zipsdk.engines import load_engine
from zipsdk.errors import InputError
from zipsdk.images.unsupported import check_batches
from zipsdk.pending import PendingRun
from zipsdk.presets import PresetName, preset_of
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise_keys import resolve_noise_keys
from zipsdk.sampling.schedule import StepTable, step_table
from zipsdk.settings import Combine, Settings, checked_seed
from zipsdk.transforms import OneOf, Transform, choose_transforms
from zipsdk.types import U8, ArrayT, DataFormat, Engine, ImageSource, ItemT, ListOf, Precision, Progress, SourceT


class Purifier:
    """Destroy a possible trigger with linear transforms and restore the image with a diffusion model.

    A purifier cannot be changed: assigning an attribute raises AttributeError. It pickles where its engine does,
    several threads may use it, and calling it is calling `run`.

    Args:
        engine: the name of a bundled model, the path of a model, an engine of `zipsdk.load_engine`, or any object with
            `spec` and ``__call__(x, t) -> eps`` (see `zipsdk.types.Engine`).
        transforms: one or a list of them, `OneOf` for a random choice for each image, or text such as "blur2+gray".
            "random" draws one of "blur2", "gray", "blur2+gray" and "blur4+gray" for each image. None takes the model's
            recommendation.
        preset: default `steps` and `start`: "paper" is 20 steps from pure noise, "fast" 4 steps from t = 400 of 1000,
            or from where another schedule has as much noise. An explicit value leaves the other default as it is. None
            follows from the model: "paper" for models that predict noise, that is for all models today.
        lam: lambda in (0, inf]. Larger values hold the result to the transformed image for longer. The paper uses 10
            for patches and 2 for blended triggers. None takes the model's recommendation.
        steps: number of denoising steps, 2 to the model's time steps (1000), or 1 with a warm start. Without `start`,
            use a divisor of 1000: the stride is 1000 // steps, and 600 steps would start at t = 599, where the model
            expects an image in the noise.
        start: time step of a warm start from the noised guide, 1 to 999 of 1000.
        eta: in [0, 1]: 1 draws fresh noise at every step (the paper), 0 draws none.
        combine: "mean" (the paper) or "joint"; see `zipsdk.sampling.guidance.Guidance`.
        seed: an integer in 0..2^64-1, for tests and reproducible results. None draws a new seed from the operating
            system in each call of `run`: noise that an attacker can predict makes an attack easier.
        clip_x0: clamp the estimate of the image to [-1, 1] at each step; the paper does not.
        tile_size: side of the UNet's inputs that small images share, for models that take several sizes. None gives the
            UNet each image at its own size, which is as fast as tiling and keeps images apart.
        cuda_graph: on a GPU, capture the loop into a CUDA graph if the engine allows it. The results are the same; turn
            it off for profilers that cannot see into graphs.
        device: of `zipsdk.load_engine`, where `engine` is a name or a path.
        threads: likewise.
        precision: likewise.

    Attributes:
        engine: predicts the noise.
        settings: the options above, with all defaults filled in.
        table: the steps.
        guides: one for each choice of transforms.

    Raises:
        InputError: an option is out of range.
        ModelError, EngineError, MissingDependencyError: the model cannot be loaded, or cannot run on this machine.
    """

    engine: Engine
    settings: Settings
    table: StepTable
    guides: tuple[Guidance, ...]
    _dispatcher: Dispatcher

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str] = "zip-tiny",
        transforms: Transform | Iterable[Transform] | OneOf | str | None = None,
        *,
        preset: PresetName | None = None,
        lam: float | None = None,
        steps: int | None = None,
        start: int | None = None,
        eta: float = 1.0,
        combine: Combine = "mean",
        seed: int | None = None,
        clip_x0: bool = False,
        tile_size: int | None = None,
        cuda_graph: bool = True,
        device: str = "auto",
        threads: int = 0,
        precision: Precision | None = None,
    ):
        if is_path(engine):
            engine = load_engine(engine, device=device, threads=threads, precision=precision)
        elif not (
            isinstance(device, str) and device == "auto" and is_int(threads) and not threads and precision is None
        ):
            raise InputError(
                f"engine: got {type(engine).__name__} with device, threads or precision, which apply to a model's name "
                "or path; pass them to zipsdk.load_engine"
            )
        if not isinstance(engine, Engine) or isinstance(engine, type):  # a class has the members of its objects
            raise InputError(
                f"engine: got {kind_of(engine)}, expected a model's name or path, or an object with spec and __call__"
            )
        for name, value in (("clip_x0", clip_x0), ("cuda_graph", cuda_graph)):
            if not isinstance(value, bool | np.bool_ | int):
                raise InputError(f"{name}: got {value!r}, expected True or False")
        spec = engine.spec
        defaults = preset_of(preset, spec)
        seed = checked_seed(seed)
        lam = spec.lam if lam is None else lam
        steps = defaults.steps if steps is None else steps
        start = defaults.start_for(spec) if start is None else start
        table = step_table(spec, lam=lam, eta=eta, steps=steps, start=start)
        transforms = choose_transforms(transforms, spec)
        choices = transforms.choices if isinstance(transforms, OneOf) else (transforms,)
        guides = tuple(Guidance(choice, combine) for choice in choices)
        settings = Settings(
            transforms=transforms,
            lam=float(lam),
            steps=len(table),
            start=table.steps[0].t if table.warm else None,
            eta=float(eta),
            combine=combine,
            seed=seed,
            clip_x0=bool(clip_x0),
            tile_size=int(tile_size) if is_int(tile_size) else tile_size,
            cuda_graph=bool(cuda_graph),
        )
        dispatcher = Dispatcher(engine, table, guides, settings)
        vars(self).update(engine=engine, settings=settings, table=table, guides=guides, _dispatcher=dispatcher)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a Purifier cannot be changed; build another one, or pass seed to run")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[Callable[[Engine], Purifier], tuple[Engine]]:
        return partial(type(self), **vars(self.settings)), (self.engine,)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={getattr(self.settings, k)!r}" for k in ("lam", "steps", "start", "eta", "combine"))
        return f"<Purifier {self.engine.spec.name}: {names(self.guides)}, {shown}>"

    def close(self) -> None:
        """Free the GPU memory of the loop; does nothing on a CPU. Leaving a `with` block does the same.

        The purifier stays usable: the next `run` allocates again. Batches in flight keep their memory until their
        results are collected. The engine frees its own memory when it is deleted.
        """
        if self._dispatcher.device_loop is not None:
            self._dispatcher.device_loop.close()

    def __enter__(self) -> Purifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> dict[str, Any]:
        """What runs, for records and for `print`.

        Keys: model, those of the engine's `info` (see `zipsdk.load_engine`), loop (where it runs), steps, start (None
        from pure noise), transforms, combine, lam, eta, clip_x0, tile_size and seed.
        """
        settings = self.settings
        engine = getattr(self.engine, "info", None) or {"engine": type(self.engine).__name__}
        return {
            "model": self.engine.spec.name,
            **engine,
            "loop": self._dispatcher.location,
            "steps": settings.steps,
            "start": settings.start,
            "transforms": names(self.guides),
            "combine": settings.combine,
            "lam": settings.lam,
            "eta": settings.eta,
            "clip_x0": settings.clip_x0,
            "tile_size": settings.tile_size,
            "seed": settings.seed,
        }

    # array types return as they came in; a list of different types is a list of objects
    @overload
    def run(
        self, batch: ArrayT, *, data_format: DataFormat | None = ..., noise_keys: npt.ArrayLike | None = ...,
        seed: int | None = ..., progress: Progress | None = ...,
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def run(
        self, batch: ImageSource, *, data_format: DataFormat | None = ..., noise_keys: npt.ArrayLike | None = ...,
        seed: int | None = ..., progress: Progress | None = ...,
    ) -> Image.Image: ...  # fmt: skip
    @overload
    def run(
        self, batch: images.LoadedImage[ItemT], *, data_format: DataFormat | None = ...,
        noise_keys: npt.ArrayLike | None = ..., seed: int | None = ..., progress: Progress | None = ...,
    ) -> ItemT: ...  # fmt: skip
    @overload
    def run(
        self, batch: ListOf[images.LoadedImage[ItemT]], *, data_format: DataFormat | None = ...,
        noise_keys: npt.ArrayLike | None = ..., seed: int | None = ..., progress: Progress | None = ...,
    ) -> list[ItemT]: ...  # fmt: skip
    @overload
    def run(
        self, batch: ListOf[SourceT], *, data_format: DataFormat | None = ..., noise_keys: npt.ArrayLike | None = ...,
        seed: int | None = ..., progress: Progress | None = ...,
    ) -> list[Image.Image]: ...  # fmt: skip
    @overload
    def run(
        self, batch: ListOf[ItemT], *, data_format: DataFormat | None = ..., noise_keys: npt.ArrayLike | None = ...,
        seed: int | None = ..., progress: Progress | None = ...,
    ) -> list[ItemT]: ...  # fmt: skip

    def run(
        self,
        batch: Any,
        *,
        data_format: DataFormat | None = None,
        noise_keys: npt.ArrayLike | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Purify images.

        Args:
            batch: an array of NumPy or torch, or a DLPack producer: uint8 (N, H, W, 3) or (H, W, 3), or float in
                [0, 1]; a PIL image, a path, the content of an image file, or an open file; or a list of these of mixed
                sizes. Also uint16, gray and RGBA; see `zipsdk.images.read`. Images are converted to 8 bits a channel.
            data_format: "NHWC" or "NCHW", for arrays. None is "NCHW" for torch tensors, as in torchvision, and "NHWC"
                for all other arrays; it is never guessed from a shape.
            noise_keys: integers in 0..2^64-1, one for each image. With the seed they decide the noise. None takes a
                hash of each image, so that equal images get equal noise.
            seed: for this call, in place of the purifier's.
            progress: called with the number of images done since the last call.

        Returns:
            The purified images, with the type, size, dtype and data format of `batch`.

        Raises:
            InputError: an image or an option cannot be used; nothing has been purified.
            OutOfMemoryError: not enough memory; on a CPU, nothing has been purified.
            EngineError: the model fails, or its result is not finite.
        """
        read, restore = images.read(batch, data_format=data_format)
        return self._submit([p.rgb for p in read], restore, noise_keys, seed, progress).result()

    __call__ = run

    @overload
    def stream(
        self, batches: Iterable[ArrayT], *, data_format: DataFormat | None = ...
    ) -> Generator[ArrayT, None, None]: ...
    @overload
    def stream(
        self, batches: Iterable[ImageSource], *, data_format: DataFormat | None = ...
    ) -> Generator[Image.Image, None, None]: ...
    @overload
    def stream(
        self, batches: Iterable[ListOf[SourceT]], *, data_format: DataFormat | None = ...
    ) -> Generator[list[Image.Image], None, None]: ...
    @overload
    def stream(
        self, batches: Iterable[ListOf[ItemT]], *, data_format: DataFormat | None = ...
    ) -> Generator[list[ItemT], None, None]: ...

    def stream(self, batches: Iterable[Any], *, data_format: DataFormat | None = None) -> Generator[Any, None, None]:
        """Yield `run` of each batch, in order; a thread reads and decodes the next batch while one computes.

        The generator can be closed at any time and does not wait for a blocked source. Batches that were read ahead are
        then lost: one, on a GPU up to three.

        Args:
            batches: each as for `run`. An error of the source is raised after the results of the batches before it.
            data_format: of all batches, as for `run`.

        Raises:
            InputError, OutOfMemoryError, EngineError: as `run`, in place of the batch.
        """
        check_batches(batches)
        on_gpu = self._dispatcher.device_loop is not None
        # on a GPU, one more batch is read ahead to upload while the last one computes
        reads = Prefetcher(map(partial(images.read, data_format=data_format), batches), 2 if on_gpu else 1)
        pending: deque[PendingRun] = deque()
        failed: Exception | None = None
        more = True
        try:
            while more:
                try:
                    more = (batch := next(reads, None)) is not None
                    if batch is not None:
                        read, restore = batch
                        pending.append(self._submit([p.rgb for p in read], restore))
                except Exception as e:  # raised after the results of the batches before it
                    failed, more = e, False
                # on a GPU, the last batch stays in flight while the next one starts, if that has been read
                while len(pending) > (1 if on_gpu and more and reads.ready else 0):
                    yield pending.popleft().result()
            if failed is not None:
                raise failed
        finally:
            reads.close()
            for run in pending:
                run.cancel()

    def _submit(
        self,
        rgb: list[U8],
        restore: Callable[[list[U8]], Any],
        noise_keys: npt.ArrayLike | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> PendingRun:
        if progress is not None and not callable(progress):
            raise InputError(f"progress: got {kind_of(progress)}, expected a function of a number of images, or None")
        seed = self.settings.seed if seed is None else checked_seed(seed)
        seed = secrets.randbits(64) if seed is None else seed
        keys = resolve_noise_keys(rgb, noise_keys, seed)
        return self._dispatcher.submit(rgb, keys, seed, restore, progress or (lambda n: None))
