"""Purify the images of a run that are not done yet, batch by batch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.atomic import make_folder
from zipsdk.batch.manifest import Job, Manifest, fingerprint
from zipsdk.errors import InputError, OutOfMemory, PictureError, ZipError
from zipsdk.images.arrays import Picture
from zipsdk.purifier import Purifier

U8 = npt.NDArray[np.uint8]

#: A batch ends early at this many pixels: it bounds memory, and what a kill throws away.
MAX_BATCH_PIXELS = 1 << 22

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class _Read:
    job: Job
    picture: Picture
    size: int
    mtime_ns: int


class Run:
    """Purify the jobs that are not done.

    Args:
        batch: pictures that are read together, at most.
        failure: told of each picture that is left out, and why.
        progress: told the number of pictures gone through since the last call, give or take a few. Both may be called
            from another thread.

    Attributes:
        todo: the jobs that are not done at the start.
        done: outputs written so far; failed: names of those left out so far.
    """

    def __init__(self, purifier: Purifier, jobs: Sequence[Job], manifest: Manifest, *, batch: int,
                 on_error: Callable[[str], None], on_progress: Callable[[int], None]):  # fmt: skip
        self._purifier, self._manifest, self._batch = purifier, manifest, batch
        self._on_error, self._on_progress = on_error, on_progress
        self._jobs = {job.name: job for job in jobs}
        self.todo = [job for job in jobs if not manifest.is_done(job)]
        self._todo = {job.name for job in self.todo}
        self.done = 0
        self.failed: list[str] = []

    def __call__(self) -> None:
        """Reading the next batch and writing the last one overlap with computing.

        Raises:
            EngineError: the model stopped working.
            PictureError: the output's disk is full, or cannot be written.
        """
        batches = self._batches()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1, "zipsdk-read") as reader, ThreadPoolExecutor(1, "zipsdk-write") as writer:
            reading = reader.submit(next, batches, None)
            while (batch := reading.result()) is not None:
                reading = reader.submit(next, batches, None)
                names, pictures = batch
                clean = self._compute(pictures)
                if writing is not None:
                    writing.result()
                self._manifest.begin(names)
                writing = writer.submit(self._write, pictures, clean)
            if writing is not None:
                writing.result()

    def _batches(self) -> Iterator[tuple[list[str], list[_Read]]]:
        """(the names of all members, those that could be read) for each batch: first those that were begun before."""
        begun: dict[tuple[str, ...], list[Job]] = {}
        fresh = []
        for job in self.todo:
            if names := self._manifest.batch_of(job.name):
                begun.setdefault(tuple(names), []).append(job)
            else:
                fresh.append(job)
        for members, missing in begun.items():
            found = {job.name: r for job in missing if (r := self._read(job))}
            if found:  # else nothing would come of computing the others once more
                others = [self._jobs[n] for n in members if n in self._jobs and n not in self._todo]
                found |= {job.name: r for job in others if (r := self._read(job))}
                yield list(members), [found[n] for n in members if n in found]
        names, pictures, pixels = [], [], 0
        for i, job in enumerate(fresh, 1):
            names.append(job.name)
            if r := self._read(job):
                pictures.append(r)
                pixels += r.picture.rgb.size // 3
            if len(names) == self._batch or pixels >= MAX_BATCH_PIXELS or i == len(fresh):
                yield names, pictures
                names, pictures, pixels = [], [], 0

    def _fail(self, job: Job, e: Exception) -> None:
        if job.name in self._todo:
            reason = str(e) or type(e).__name__
            if isinstance(e, OSError):
                hint = "remove or repair the link" if job.source.is_symlink() else "check that it is there"
                reason = f"{job.source}: cannot be used ({e.strerror or reason}); {hint}"
            self._on_error(reason if str(job.source) in reason else f"{job.source}: {reason}")
            self.failed.append(job.name)  # a list, because two threads may do this at once

    def _read(self, job: Job) -> _Read | None:
        try:
            size, mtime_ns = fingerprint(job.source)  # before reading: the next run notices a change in between
            picture = images.read_one(job.source)
            # a format that cannot hold the picture is told now, and not after its purification
            back = picture.restore(picture.rgb)
            images.format_of(self._manifest.out / job.name, back.mode, back.size)
            return _Read(job, picture, size, mtime_ns)
        except (OSError, ZipError, MemoryError) as e:
            self._fail(job, e)
            self._on_progress(1)
            return None

    def _compute(self, pictures: list[_Read]) -> list[U8 | None]:
        new = sum(r.job.name in self._todo for r in pictures)
        progress = self._on_progress if new == len(pictures) else None
        try:
            rgb = [r.picture.rgb for r in pictures]
            clean = list(self._purifier.run(rgb, seed=self._manifest.seed, progress=progress))
            if progress is None:  # some were done before and only keep the others company
                self._on_progress(new)
            return clean
        except (InputError, MemoryError, OutOfMemory) as e:
            if len(pictures) == 1:
                self._fail(pictures[0].job, e)
                return [None]
        # one of them cannot be used, because of its size: each by itself, so that the others can
        return [self._compute([r])[0] for r in pictures]

    def _write(self, pictures: list[_Read], clean: list[U8 | None]) -> None:
        written: list[tuple[Job, int, int]] = []
        try:
            for r, rgb in zip(pictures, clean, strict=True):
                if rgb is not None and r.job.name in self._todo and self._save(r, rgb):
                    written.append((r.job, r.size, r.mtime_ns))
        finally:  # together, because each note waits for the disk; also where the disk is full by now
            if written:
                self._manifest.finished(*written)
                self.done += len(written)

    def _save(self, r: _Read, rgb: U8) -> bool:
        target = self._manifest.out / r.job.name
        try:
            make_folder(target.parent)
            images.save(r.picture.restore(rgb), target)
        except (OSError, ZipError) as e:
            cause = e if isinstance(e, OSError) else e.__cause__
            if isinstance(cause, OSError) and cause.errno in _DISK:
                way = "make room on the disk, or use another output folder"
                raise PictureError(f"{target}: cannot be written ({cause.strerror}); {way}") from e
            if isinstance(e, OSError):
                way = "remove what is in its way, or use another output folder"
                e = PictureError(f"{target.parent}: the folder cannot be made ({e.strerror}); {way}")
            self._fail(r.job, e)
            return False
        return True
