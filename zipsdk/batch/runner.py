"""Purify the images of a run that are not done yet, batch by batch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from zipsdk import images
from zipsdk._util.atomic import make_folder
from zipsdk.batch.manifest import Job, Manifest, fingerprint
from zipsdk.errors import ImageReadError, InputError, OutOfMemoryError, ZipSdkError
from zipsdk.images.arrays import LoadedImage
from zipsdk.purifier import Purifier
from zipsdk.types import U8

#: Maximum pixels of a batch, which bounds memory and the work that a kill discards.
MAX_BATCH_PIXELS = 1 << 22

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class _Loaded:
    """An image with the size and modification time of its file."""

    job: Job
    image: LoadedImage[Any]
    size: int
    mtime_ns: int


class Run:
    """Purify the jobs that are not done.

    Args:
        batch: maximum number of images in a batch.
        on_error: called with a message for each image that is left out.
        on_progress: called with the number of images processed since the last call, which may be off by a few. Both may
            be called from another thread.

    Attributes:
        todo: the jobs that were not done at the start.
        done: number of outputs written so far.
        failed: names of the outputs left out so far.
    """

    def __init__(
        self,
        purifier: Purifier,
        jobs: Sequence[Job],
        manifest: Manifest,
        *,
        batch: int,
        on_error: Callable[[str], None],
        on_progress: Callable[[int], None],
    ):
        self._purifier, self._manifest, self._batch = purifier, manifest, batch
        self._on_error, self._on_progress = on_error, on_progress
        self._jobs = {job.name: job for job in jobs}
        self.todo = [job for job in jobs if not manifest.is_done(job)]
        self._todo = {job.name for job in self.todo}
        self.done = 0
        self.failed: list[str] = []

    def __call__(self) -> None:
        """Purify all batches; the next batch is read and the last one written while one is purified.

        Raises:
            EngineError: the model failed.
            ImageReadError: the disk of the output is full, or cannot be written.
        """
        batches = self._batches()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1, "zipsdk-read") as reader, ThreadPoolExecutor(1, "zipsdk-write") as writer:
            reading = reader.submit(next, batches, None)
            while (batch := reading.result()) is not None:
                reading = reader.submit(next, batches, None)
                names, loaded = batch
                clean = self._compute(loaded)
                if writing is not None:
                    writing.result()
                self._manifest.begin(names)
                writing = writer.submit(self._write, loaded, clean)
            if writing is not None:
                writing.result()

    def _batches(self) -> Iterator[tuple[list[str], list[_Loaded]]]:
        """Yield (names of all members, loaded images) for each batch; batches that an earlier run began come first."""
        begun: dict[tuple[str, ...], list[Job]] = {}
        fresh = []
        for job in self.todo:
            if names := self._manifest.batch_of(job.name):
                begun.setdefault(tuple(names), []).append(job)
            else:
                fresh.append(job)
        for members, missing in begun.items():
            found = {job.name: item for job in missing if (item := self._read(job))}
            if found:  # otherwise the batch has no new output
                others = [self._jobs[n] for n in members if n in self._jobs and n not in self._todo]
                found |= {job.name: item for job in others if (item := self._read(job))}
                yield list(members), [found[n] for n in members if n in found]
        names, loaded, pixels = [], [], 0
        for i, job in enumerate(fresh, 1):
            names.append(job.name)
            if item := self._read(job):
                loaded.append(item)
                pixels += item.image.rgb.size // 3
            if len(names) == self._batch or pixels >= MAX_BATCH_PIXELS or i == len(fresh):
                yield names, loaded
                names, loaded, pixels = [], [], 0

    def _fail(self, job: Job, e: Exception) -> None:
        if job.name in self._todo:
            reason = str(e) or type(e).__name__
            if isinstance(e, OSError):
                hint = "remove or repair the link" if job.source.is_symlink() else "check that it exists"
                reason = f"{job.source}: cannot be read ({e.strerror or reason}); {hint}"
            self._on_error(reason if str(job.source) in reason else f"{job.source}: {reason}")
            self.failed.append(job.name)  # append is atomic: two threads may do this at once

    def _read(self, job: Job) -> _Loaded | None:
        try:
            size, mtime_ns = fingerprint(job.source)  # before reading, so that the next run notices a change in between
            image = images.read_one(job.source)
            # before purification, check that the output format can store the image
            restored = image.restore(image.rgb)
            images.format_of(self._manifest.out / job.name, restored.mode, restored.size)
            return _Loaded(job, image, size, mtime_ns)
        except (OSError, ZipSdkError, MemoryError) as e:
            self._fail(job, e)
            self._on_progress(1)
            return None

    def _compute(self, loaded: list[_Loaded]) -> list[U8 | None]:
        new = sum(item.job.name in self._todo for item in loaded)
        progress = self._on_progress if new == len(loaded) else None
        try:
            rgb = [item.image.rgb for item in loaded]
            clean = self._purifier.run(rgb, seed=self._manifest.seed, progress=progress)
            if progress is None:  # some were done before and are only members of the batch
                self._on_progress(new)
            return [*clean]
        except (InputError, MemoryError, OutOfMemoryError) as e:
            if len(loaded) == 1:
                self._fail(loaded[0].job, e)
                return [None]
        # one image is too large: purify each by itself, so that the others succeed
        return [self._compute([item])[0] for item in loaded]

    def _write(self, loaded: list[_Loaded], clean: list[U8 | None]) -> None:
        written: list[tuple[Job, int, int]] = []
        try:
            for item, rgb in zip(loaded, clean, strict=True):
                if rgb is not None and item.job.name in self._todo and self._save(item, rgb):
                    written.append((item.job, item.size, item.mtime_ns))
        finally:  # one record for all, because each waits for the disk; also after a full disk
            if written:
                self._manifest.finished(*written)
                self.done += len(written)

    def _save(self, item: _Loaded, rgb: U8) -> bool:
        target = self._manifest.out / item.job.name
        try:
            make_folder(target.parent)
            images.save(item.image.restore(rgb), target)
        except (OSError, ZipSdkError) as e:
            cause = e if isinstance(e, OSError) else e.__cause__
            if isinstance(cause, OSError) and cause.errno in _DISK:
                hint = "free disk space, or use another output folder"
                raise ImageReadError(f"{target}: cannot be written ({cause.strerror}); {hint}") from e
            if isinstance(e, OSError):
                hint = "remove the file with its name, or use another output folder"
                e = ImageReadError(f"{target.parent}: the folder cannot be created ({e.strerror}); {hint}")
            self._fail(item.job, e)
            return False
        return True
