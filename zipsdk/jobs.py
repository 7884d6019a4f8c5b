"""Folders of pictures: finding them, and purifying what has not been done yet."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk.arrays import Picture
from zipsdk.errors import InputError, OutOfMemory, PictureError, ZipError
from zipsdk.manifest import Job, Manifest, fingerprint
from zipsdk.purifier import Purifier
from zipsdk.sheet import is_sheet

U8 = npt.NDArray[np.uint8]

#: A batch ends early at this many pixels: it bounds memory, and what a kill throws away.
MAX_BATCH_PIXELS = 1 << 22

# what is read but not written in its own format
_KEPT_AS = {".gif": ".png", ".apng": ".png"}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def find_jobs(inputs: Sequence[str], out: Path, form: str, problem: Callable[[str], None],
              note: Callable[[str], None], sheet: Path | None = None) -> list[Job]:  # fmt: skip
    """The pictures of files, folders and globs, with their outputs.

    Folders are walked without following links to folders, and without hidden files, OUT itself and the sheet that an
    earlier run left where this one's will be.

    Args:
        form: "keep", or the suffix of all outputs without its dot.
        sheet: where this run's sheet will be.
        problem: told of each folder that cannot be read; note: told of each linked folder that is left out.

    Raises:
        InputError: an input that is not there or holds no picture, OUT among the inputs, two pictures with one output,
            or an output that is an input.
    """
    by_name: dict[str, Job] = {}
    caseless = _caseless(out)
    for text in inputs:
        found = 0
        for base, source in _sources(text, out, problem, note):
            if sheet and source != Path(text) and same_file(source, sheet) and is_sheet(source):
                continue
            found += 1
            name = _output_name(source.relative_to(base), form)
            job = by_name.setdefault(name.casefold() if caseless else name, Job(source, name))
            if os.path.realpath(job.source) != os.path.realpath(source) and not same_file(job.source, source):
                raise InputError(
                    f"{job.source} and {source} would both be written to {out / name}; "
                    "rename one of them, or use an output folder for each"
                )
        if not found:
            raise InputError(f"{text}: no picture there; wanted some of {' '.join(sorted(images.SUFFIXES))}")
    jobs = list(by_name.values())
    entries = {_entry(path) for job in jobs for path in (job.source, Path(os.path.realpath(job.source)))} - {None}
    for job in jobs:
        if _entry(out / job.name) in entries:
            raise InputError(f"{out / job.name} is an input and would be overwritten; use another output folder")
    return jobs


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file or folder, however they are spelled; what is not there is none."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def _caseless(folder: Path) -> bool:
    """Whether a.png and A.png are one file there, as on most disks of Windows and macOS: asked of the nearest folder
    that is there and has letters in its name."""
    for here in (folder.absolute(), *folder.absolute().parents):
        if here.name.swapcase() != here.name and here.exists():
            return same_file(here, here.with_name(here.name.swapcase()))
    return sys.platform == "win32"


def _entry(path: Path) -> tuple[int, ...] | None:
    """A file, itself and not what it links to, in its folder, however both are spelled; None where nothing is."""
    try:
        folder, file = path.parent.stat(), path.lstat()
    except OSError:
        return None
    return folder.st_dev, folder.st_ino, file.st_dev, file.st_ino


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or leads into it, by the links of its folders but not by its own."""
    path = Path(os.path.realpath(path.parent), path.name)
    return any(same_file(p, folder) for p in (path, *path.parents))


def _output_name(relative: Path, form: str) -> str:
    suffix = relative.suffix
    if form != "keep":
        suffix = f".{form}"
    elif suffix.lower() not in images.SUFFIXES:
        suffix = ".png"
    return relative.with_suffix(_KEPT_AS.get(suffix.lower(), suffix)).as_posix()


def _sources(text: str, out: Path, problem: Callable[[str], None],
             note: Callable[[str], None]) -> Iterator[tuple[Path, Path]]:  # fmt: skip
    """(the folder that names are relative to, a picture) for each picture of one input."""
    path = Path(text)
    if path.is_dir():
        if same_file(path, out):
            raise InputError(f"{text}: the output folder is an input; use another output folder")
        for file in _walk(path, out, problem, note):
            yield path, file
        return
    if os.path.lexists(path):
        yield path.parent, path
        return
    first = next((i for i, part in enumerate(path.parts) if re.search(r"[*?[]", part)), None)
    if first is None:
        raise InputError(f"{text}: no such file or folder; check the path")
    base = Path(*path.parts[:first])
    try:
        matches = sorted(base.glob(str(Path(*path.parts[first:]))))
    except ValueError as e:
        raise InputError(f"{text}: cannot be used as a glob ({e}); check it") from e
    around = _inside(Path(os.path.realpath(base)), out)
    for match in matches:
        hidden = any(part.startswith(".") for part in match.relative_to(base).parts)
        if hidden or (_inside(match, out) and not around):
            continue
        if match.is_dir():
            for file in _walk(match, out, problem, note):
                yield base, file
        elif match.suffix.lower() in images.SUFFIXES:
            yield base, match


def _walk(folder: Path, out: Path, problem: Callable[[str], None], note: Callable[[str], None]) -> Iterator[Path]:
    def unreadable(e: OSError) -> None:
        problem(f"{e.filename}: cannot be read ({e.strerror}); check its permissions")

    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        visible = sorted(f for f in folders if not f.startswith(".") and not same_file(here / f, out))
        for linked in (f for f in visible if (here / f).is_symlink()):
            note(f"{here / linked}: a link to a folder is not followed; name it as an input of its own")
        folders[:] = [f for f in visible if not (here / f).is_symlink()]
        yield from (
            here / f for f in sorted(files) if not f.startswith(".") and Path(f).suffix.lower() in images.SUFFIXES
        )


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
                 failure: Callable[[str], None], progress: Callable[[int], None]):  # fmt: skip
        self._purifier, self._manifest, self._batch = purifier, manifest, batch
        self._failure, self._progress = failure, progress
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
            reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
            self._failure(reason if str(job.source) in reason else f"{job.source}: {reason}")
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
            self._progress(1)
            return None

    def _compute(self, pictures: list[_Read]) -> list[U8 | None]:
        new = sum(r.job.name in self._todo for r in pictures)
        progress = self._progress if new == len(pictures) else None
        try:
            clean = list(self._purifier.run([r.picture.rgb for r in pictures], progress=progress))
            if progress is None:  # some were done before and only keep the others company
                self._progress(new)
            return clean
        except (InputError, MemoryError, OutOfMemory) as e:
            if len(pictures) == 1:
                self._fail(pictures[0].job, e)
                return [None]
        # one of them cannot be used, because of its size: each by itself, so that the others can
        return [self._compute([r])[0] for r in pictures]

    def _write(self, pictures: list[_Read], clean: list[U8 | None]) -> None:
        for r, rgb in zip(pictures, clean, strict=True):
            if rgb is None or r.job.name not in self._todo:
                continue
            target = self._manifest.out / r.job.name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                images.save(r.picture.restore(rgb), target)
            except (OSError, ZipError) as e:
                cause = e if isinstance(e, OSError) else e.__cause__
                if isinstance(cause, OSError) and cause.errno in _DISK:
                    raise PictureError(f"{target}: cannot be written ({cause.strerror})") from e
                self._fail(r.job, e)
            else:
                self._manifest.finished(r.job, r.size, r.mtime_ns)
                self.done += 1
