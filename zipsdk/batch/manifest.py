"""Record the progress of a run over a folder, so that an interrupted run resumes.

``OUT/.zipsdk-manifest.jsonl`` has one JSON object a line:

    {"zipsdk_manifest": 1, "seed": ..., "settings": {...}, "replaces": [names]}  first
    {"batch": [names]}                                                           before the first output is written
    {"done": name, "source": ..., "size": ..., "mtime_ns": ...}                  after the name of the output is on disk

Names are outputs relative to OUT; sources are absolute, with links resolved. A resumed run finishes a batch with the
same members, because images that share a frame influence each other a little: it gives the same bits as a run without
interruption. A batch cancels earlier records of its names, whose images have changed. "replaces" lists the files that a
run with --overwrite found at the paths of its outputs, so that the run can be continued without --overwrite.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from zipsdk._util.atomic import make_folder, sync_folder
from zipsdk._util.locks import try_lock
from zipsdk._util.validation import is_int
from zipsdk.errors import InputError

MANIFEST = ".zipsdk-manifest.jsonl"
_LEFTOVER = re.compile(r"\.zipsdk-[0-9a-f]{16}\.tmp")  # temporary files of images.save


@dataclass(frozen=True)
class Job:
    """One image and the name of its output, relative to OUT, with ``/``."""

    source: Path
    name: str


class Manifest:
    """The record of a run in its output folder; each entry is on disk before the run relies on it.

    Args:
        out: the output folder; it is created.
        settings: everything besides the seed and the images that decides the result; JSON values.
        seed: None takes the seed of the earlier run, or draws one.
        overwrite: discard the earlier record, and allow to overwrite files that are not outputs of a run.

    Attributes:
        seed: of this run and of all that continue it.

    Raises:
        InputError: OUT cannot be used, another run is writing there, its run has other settings, or an output would
            overwrite a file that is not an output of the run, or one that was made from another image.
    """

    def __init__(self, out: Path, jobs: Sequence[Job], settings: Mapping[str, Any], seed: int | None, overwrite: bool):
        self.out, self._path = out, out / MANIFEST
        self._done: dict[str, tuple[str, int, int]] = {}  # output -> source, size, mtime_ns of its image
        self._batch_of: dict[str, list[str]] = {}
        self._replaces: set[str] = set()
        try:
            new = not os.path.lexists(self._path)
            if not (new or stat.S_ISREG(self._path.lstat().st_mode)):
                raise InputError(
                    f"{self._path}: got a folder, link or device, expected a file; use another output folder"
                )
            make_folder(out)
            self._file = FileIO(self._path, "a+")  # unbuffered, so that closing it after an error writes nothing
        except OSError as e:
            raise InputError(f"{out}: cannot be used as the output folder ({e.strerror}); choose another") from e
        if not try_lock(self._file):
            self._file.close()
            raise InputError(f"{out}: another zipsdk run writes there; wait for it, or use another output folder")
        try:
            header = None if overwrite else self._load()
            if header is not None:
                self.seed = self._continue(header, settings, seed)
            existing = [j for j in jobs if os.path.lexists(out / j.name)]
            if folders := [j for j in existing if (out / j.name).is_dir() and not (out / j.name).is_symlink()]:
                raise InputError(
                    f"{out / folders[0].name}: got a folder, expected no folder at the path of an output; "
                    "remove or rename it, or use another output folder"
                )
            if not overwrite:
                self._check_outputs(existing)
            self._forget_changed(jobs)
            if header is None:
                self._file.truncate(0)
                self.seed = secrets.randbits(64) if seed is None else seed
                replaces = [j.name for j in existing]
                self._append(
                    {"zipsdk_manifest": 1, "seed": self.seed, "settings": dict(settings), "replaces": replaces}
                )
                sync_folder(out)
        except BaseException:
            self._file.close()
            if new:  # an error leaves no file behind
                self._path.unlink(missing_ok=True)
            raise
        if not new:
            _remove_leftovers({(out / j.name).parent for j in jobs})

    def _load(self) -> dict[str, Any] | None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        # remove a line that a kill cut off, or the next record would be appended to it
        self._file.truncate(len(whole))
        records = []
        for line in whole.splitlines():
            with suppress(ValueError, RecursionError):  # a damaged line: its image is purified again
                records.append(json.loads(line))
        if not records:
            return None
        header: dict[str, Any] = records[0]
        try:
            if header["zipsdk_manifest"] != 1 or not isinstance(header["settings"], dict):
                raise ValueError
            if not is_int(header["seed"]) or header["seed"] < 0:
                raise ValueError
            self._replaces = set(header.get("replaces", []))  # missing in older manifests
            for record in records[1:]:
                if "batch" in record:
                    self._batch_of |= dict.fromkeys(record["batch"], record["batch"])
                    for name in record["batch"]:
                        self._done.pop(name, None)
                else:
                    source = os.path.realpath(record["source"])  # older manifests have unresolved paths
                    self._done[record["done"]] = (source, int(record["size"]), int(record["mtime_ns"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{self._path}: got a damaged manifest, or one of another version of zipsdk; "
                "use another output folder, or --overwrite"
            ) from None
        return header

    def _continue(self, header: dict[str, Any], settings: Mapping[str, Any], seed: int | None) -> int:
        then, now = header["settings"], json.loads(json.dumps(settings))
        was: int = header["seed"]
        if seed is not None:
            then, now = {**then, "seed": was}, {**now, "seed": seed}
        if changed := [k for k in {**then, **now} if then.get(k) != now.get(k)]:
            what = ", ".join(f"{k}: {_short(then.get(k))} then, {_short(now.get(k))} now" for k in changed)
            raise InputError(
                f"{self.out}: got a run with other settings ({what}); "
                "use another output folder, or --overwrite to start over"
            )
        return was

    def _check_outputs(self, existing: list[Job]) -> None:
        """Refuse jobs whose outputs exist and are not outputs of this run, or were made from another image."""
        ours = self._batch_of.keys() | self._done.keys() | self._replaces
        if foreign := [j.name for j in existing if j.name not in ours]:
            raise InputError(
                f"{self.out / foreign[0]}: got a file that this run did not write"
                + (f" (and {len(foreign) - 1} others)" if len(foreign) > 1 else "")
                + "; use another output folder, or --overwrite"
            )
        # images of two input folders may have the same name, size and time
        if others := [j for j in existing if self._is_other(j)]:
            job = others[0]
            raise InputError(
                f"{self.out / job.name}: got the output of {self._done[job.name][0]}, "
                f"expected that of {os.path.realpath(job.source)}"
                + (f" (and {len(others) - 1} others)" if len(others) > 1 else "")
                + "; use another output folder, or --overwrite"
            )

    def _is_other(self, job: Job) -> bool:
        """Tell whether the output was made from another image."""
        return job.name in self._done and self._done[job.name][0] != os.path.realpath(job.source)

    def _forget_changed(self, jobs: Sequence[Job]) -> None:
        """Remove the records of images that have changed or are other files now."""
        for job in jobs:
            if job.name in self._done and (self._is_other(job) or self._is_changed(job)):
                del self._done[job.name]
                self._batch_of.pop(job.name, None)

    def _is_changed(self, job: Job) -> bool:
        try:
            return self._done[job.name][1:] != fingerprint(job.source)
        except OSError:
            return True

    def is_done(self, job: Job) -> bool:
        """Tell whether the output exists and was made from the image in its state at the start of this run."""
        return job.name in self._done and (self.out / job.name).exists()

    def batch_of(self, name: str) -> list[str]:
        """Return the batch in which an output was begun; [] if there is none or the image has changed since."""
        return self._batch_of.get(name, [])

    def begin(self, names: list[str]) -> None:
        """Record a batch before its outputs are written, unless an earlier run has recorded it."""
        if not any(self._batch_of.get(n) == names for n in names):
            self._append({"batch": names})
            self._batch_of |= dict.fromkeys(names, names)

    def finished(self, *done: tuple[Job, int, int]) -> None:
        """Record outputs that are written: (job, size, mtime_ns), the latter two from `fingerprint`.

        Their folders are synced first, so that after a power failure every recorded output exists.
        """
        for folder in {(self.out / job.name).parent for job, _, _ in done}:
            sync_folder(folder)
        recorded = {job.name: (os.path.realpath(job.source), size, mtime_ns) for job, size, mtime_ns in done}
        self._append(*({"done": n, "source": s, "size": z, "mtime_ns": m} for n, (s, z, m) in recorded.items()))
        self._done |= recorded

    def _append(self, *records: dict[str, Any]) -> None:
        data = memoryview(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from e

    def close(self) -> None:
        self._file.close()


def fingerprint(path: Path) -> tuple[int, int]:
    """Return the size and modification time of an image, which reveal a change."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _remove_leftovers(folders: set[Path]) -> None:
    for folder in folders:
        for path in folder.glob(".zipsdk-*.tmp"):
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
