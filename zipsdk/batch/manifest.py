"""The manifest of a run over a folder, by which a killed run goes on where it stopped.

``OUT/.zipsdk-manifest.jsonl`` has one JSON object a line:

    {"zipsdk_manifest": 1, "seed": ..., "settings": {...}, "replaces": [names]}  first
    {"batch": [names]}                                                           before its first output is written
    {"done": name, "source": ..., "size": ..., "mtime_ns": ...}                  after an output's name is on disk

Names are outputs relative to OUT; sources are absolute, with links resolved. A batch is finished with the members that
it was begun with, because pictures that share a canvas see each other a little: so a run that was killed gives the bits
of one that was not. A batch undoes what was done of its names before: their pictures have changed since. What a run
with --overwrite found in its way stands under "replaces", so that the run may be continued without.
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
from zipsdk._util.validation import is_whole
from zipsdk.errors import InputError

MANIFEST = ".zipsdk-manifest.jsonl"
_LEFTOVER = re.compile(r"\.zipsdk-[0-9a-f]{16}\.tmp")  # what images.save writes before it renames


@dataclass(frozen=True)
class Job:
    """One picture: where it is, and what its output is called, relative to OUT, with ``/``."""

    source: Path
    name: str


class Manifest:
    """What a run has done in its output folder, on disk before it is believed.

    Args:
        out: the output folder; it is made.
        settings: whatever decides the pictures' bits besides seed and pictures: JSON-able.
        seed: None takes the one of the run before, or draws one.
        overwrite: forget what was done, and allow to write over files that are no output of a run.

    Attributes:
        seed: of this run and of all that continue it.

    Raises:
        InputError: OUT cannot be used, another run is writing there, it was begun with other settings, or it holds
            files that would be written over: no output of a run, or made from another picture than now.
    """

    def __init__(self, out: Path, jobs: Sequence[Job], settings: Mapping[str, Any], seed: int | None, overwrite: bool):
        self.out, self._path = out, out / MANIFEST
        self._done: dict[str, tuple[str, int, int]] = {}  # of each output its picture: source, size, mtime_ns
        self._batch_of: dict[str, list[str]] = {}
        self._replaces: set[str] = set()
        try:
            new = not os.path.lexists(self._path)
            if not (new or stat.S_ISREG(self._path.lstat().st_mode)):
                raise InputError(
                    f"{self._path}: got a folder, link or device, expected a file; use another output folder"
                )
            make_folder(out)
            self._file = FileIO(self._path, "a+")  # unbuffered: closing it after an error has nothing left to write
        except OSError as e:
            raise InputError(f"{out}: cannot be used as the output folder ({e.strerror}); choose another") from e
        if not try_lock(self._file):
            self._file.close()
            raise InputError(f"{out}: another zipsdk run writes there; wait for it, or use another output folder")
        try:
            header = None if overwrite else self._load()
            if header is not None:
                self.seed = self._continue(header, settings, seed)
            there = [j for j in jobs if os.path.lexists(out / j.name)]
            if folders := [j for j in there if (out / j.name).is_dir() and not (out / j.name).is_symlink()]:
                raise InputError(
                    f"{out / folders[0].name}: got a folder where an image will be written; "
                    "remove or rename it, or use another output folder"
                )
            if not overwrite:
                self._check_outputs(there)
            self._forget_changed(jobs)
            if header is None:
                self._file.truncate(0)
                self.seed = secrets.randbits(64) if seed is None else seed
                replaces = [j.name for j in there]
                self._append(
                    {"zipsdk_manifest": 1, "seed": self.seed, "settings": dict(settings), "replaces": replaces}
                )
                sync_folder(out)
        except BaseException:
            self._file.close()
            if new:  # a refusal leaves nothing behind
                self._path.unlink(missing_ok=True)
            raise
        if not new:
            _remove_leftovers({(out / j.name).parent for j in jobs})

    def _load(self) -> dict[str, Any] | None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        # a line cut by a kill goes, else the next one would be appended to it
        self._file.truncate(len(whole))
        records = []
        for line in whole.splitlines():
            with suppress(ValueError, RecursionError):  # a damaged line: its picture is done again
                records.append(json.loads(line))
        if not records:
            return None
        header: dict[str, Any] = records[0]
        try:
            if header["zipsdk_manifest"] != 1 or not isinstance(header["settings"], dict):
                raise ValueError
            if not is_whole(header["seed"]) or header["seed"] < 0:
                raise ValueError
            self._replaces = set(header.get("replaces", []))  # older runs did not note it
            for record in records[1:]:
                if "batch" in record:
                    self._batch_of |= dict.fromkeys(record["batch"], record["batch"])
                    for name in record["batch"]:
                        self._done.pop(name, None)
                else:
                    source = os.path.realpath(record["source"])  # older runs noted it as it was given
                    self._done[record["done"]] = (source, int(record["size"]), int(record["mtime_ns"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{self._path}: is damaged, or of another version of zipsdk; use another output folder, or --overwrite"
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
                f"{self.out} was begun with other settings ({what}); "
                "use another output folder, or --overwrite to start over"
            )
        return was

    def _check_outputs(self, there: list[Job]) -> None:
        """Refuse jobs whose outputs are there and are none of theirs."""
        ours = self._batch_of.keys() | self._done.keys() | self._replaces
        if foreign := [j.name for j in there if j.name not in ours]:
            raise InputError(
                f"{self.out / foreign[0]} is there and was not written by this run"
                + (f" (nor were {len(foreign) - 1} others)" if len(foreign) > 1 else "")
                + "; use another output folder, or --overwrite"
            )
        # pictures of two input folders may share name, size and time
        if others := [j for j in there if self._is_other(j)]:
            job = others[0]
            raise InputError(
                f"{self.out / job.name} was made from {self._done[job.name][0]}, "
                f"and would now be from {os.path.realpath(job.source)}"
                + (f" (and {len(others) - 1} others alike)" if len(others) > 1 else "")
                + "; use another output folder, or --overwrite"
            )

    def _is_other(self, job: Job) -> bool:
        """Whether the output was made from another picture."""
        return job.name in self._done and self._done[job.name][0] != os.path.realpath(job.source)

    def _forget_changed(self, jobs: Sequence[Job]) -> None:
        """Pictures that have changed, or become others, begin anew."""
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
        """Whether the output is there and was made from the picture as it was when this run began."""
        return job.name in self._done and (self.out / job.name).exists()

    def batch_of(self, name: str) -> list[str]:
        """The batch in which an output was begun, [] where it was not, or from a picture that has changed since."""
        return self._batch_of.get(name, [])

    def begin(self, names: list[str]) -> None:
        """Note a batch before its outputs are written; not again where it was begun before and is finished now."""
        if not any(self._batch_of.get(n) == names for n in names):
            self._append({"batch": names})
            self._batch_of |= dict.fromkeys(names, names)

    def finished(self, *done: tuple[Job, int, int]) -> None:
        """Note outputs that have taken their names: (job, size, mtime_ns), the latter as `fingerprint` returned them.

        The names are put on disk first: after a power failure nothing is noted that is not there.
        """
        for folder in {(self.out / job.name).parent for job, _, _ in done}:
            sync_folder(folder)
        noted = {job.name: (os.path.realpath(job.source), size, mtime_ns) for job, size, mtime_ns in done}
        self._append(*({"done": n, "source": s, "size": z, "mtime_ns": m} for n, (s, z, m) in noted.items()))
        self._done |= noted

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
    """Size and time of change: what tells whether a picture is still the one that was purified."""
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
