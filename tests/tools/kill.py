"""Kill ``zipsdk purify`` at random moments; check that no image is lost or done twice and no file is partial.

    python -m tests.tools.kill WORK [--kills 200] [--seed 1] [--model zip-tiny] [--forks 0.75]

A chain begins with an empty output folder, or with a finished run that ``--overwrite`` replaces. It is killed once or
more, and resumed to the end. A kill comes after a random time from the start of the process on, or when a random number
of files is there, or at a random system call: before or after an fsync or a rename, or with half of the data written.
Some of the runs are forks of this process, which has imported everything, because the start of Python takes longest.
After each kill, and at the end, `Chain` compares the folder with a run that was not killed. WORK/kills.jsonl has a line
for each kill, so that the harness itself can be interrupted and repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.paths import ROOT
from tests.tools.kill_process import POINT, Fork, Process

MANIFEST = ".zipsdk-manifest.jsonl"
_TEMPORARY = re.compile(r"\.zipsdk-[0-9a-f]{16}\.tmp")


# ---- the folders


def make_inputs(folder: Path, n: int) -> None:
    """Write `n` small images: most formats and modes, sizes 8 to 24, folders, a name that is not UTF-8."""
    kinds = [
        ("png", "RGB"), ("jpg", "RGB"), ("webp", "RGBA"), ("tif", "RGB"), ("bmp", "RGB"), ("gif", "P"), ("ppm", "RGB"),
        ("png", "RGBA"), ("jpg", "L"), ("png", "I;16"),
    ]  # fmt: skip
    for i in range(n):
        rng = np.random.default_rng(i)
        suffix, mode = kinds[i % len(kinds)]
        height, width = rng.integers(8, 25, 2)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8)).convert(mode)
        path = folder / ("", "a", "a/b c")[i % 3] / f"{i:03}.{suffix}"
        if i == 1 and sys.platform == "linux":
            path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xe9 001.jpg"))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder except the manifest, by name."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if name != MANIFEST}


def digest(folder: Path) -> str:
    """Hash all names and bytes below a folder."""
    files = sorted(contents(folder).items())
    return hashlib.sha256(repr([(n, hashlib.sha256(b).hexdigest()) for n, b in files]).encode()).hexdigest()


def records(out: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the manifest; only the last line may be cut."""
    if not (out / MANIFEST).exists():
        return []
    return [json.loads(line) for line in (out / MANIFEST).read_bytes().rpartition(b"\n")[0].splitlines()]


@dataclass(frozen=True)
class Kill:
    """One kill: its chain, the choice of its moment, and the files afterwards."""

    chain: int
    kind: str
    at: float
    forked: bool
    overwrite: bool
    done: int
    outputs: int
    temporary: int


class Bench:
    """The inputs, outputs and time of a run without kills, which all chains share."""

    def __init__(self, work: Path, model: str, images: int, options: Sequence[str], forks: float):
        self.work, self.inputs, self.forks = work, work / "in", forks
        self._common = ["--model", model, "--threads", "1", "--quiet", *options]
        if not (work / "ready").exists():
            shutil.rmtree(work, ignore_errors=True)
            make_inputs(self.inputs, images)
            start = time.perf_counter()
            self._whole_run("whole", 2)
            (work / "ready").write_text(str(time.perf_counter() - start))
        self.whole = contents(work / "whole")
        assert len(self.whole) == images
        self.digest, self.moments = digest(self.inputs), int((work / "moments").read_text())
        self.seconds = float((work / "ready").read_text())
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import zipsdk.cli, onnxruntime"], cwd=ROOT, check=True)
        self.start_up = time.perf_counter() - start

    @cached_property
    def old(self) -> dict[str, bytes]:
        """Return the outputs of another run, for the chains that overwrite it."""
        self._whole_run("old", 1)
        old = contents(self.work / "old")
        assert old.keys() == self.whole.keys() and old != self.whole
        return old

    def _whole_run(self, name: str, seed: int) -> None:
        shutil.rmtree(self.work / name, ignore_errors=True)
        count = {f"{POINT}_COUNT": str(self.work / "moments")}
        code = self.start(self.work / name, seed=seed, point=-1, env=count).wait(300)
        assert code == 0, f"a run without kills ended with {code}"

    def start(self, out: Path, *options: str, seed: int = 2, point: int | None = None, fork: bool = False,
              env: dict[str, str] | None = None) -> Process:  # fmt: skip
        """Start a run, which dies at a system call if a point is given."""
        args = ["purify", str(self.inputs), "-o", str(out), "--seed", str(seed), *self._common, *options]
        with (self.work / "log.txt").open("wb") as log:  # shown if the run fails
            if fork:
                return Fork(args, point, log.fileno())
            module = "zipsdk" if point is None else "tests.tools.kill_process"
            watched = {} if point is None else {POINT: str(point)}
            environment = {**os.environ, **(env or {}), **watched, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", module, *args]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)


class Chain:
    """One output folder from its first run to its end, with kills in between."""

    def __init__(self, bench: Bench, number: int, seed: int):
        self.bench, self.number = bench, number
        self.rng = random.Random(f"{seed}/{number}")
        self.out = bench.work / "out"
        self.kept: dict[str, tuple[int, int]] = {}  # of each output that is done: inode and time
        shutil.rmtree(self.out, ignore_errors=True)
        self.forked = False
        self.overwrite = self.rng.random() < 0.2
        if self.overwrite:
            assert bench.old
            shutil.copytree(bench.work / "old", self.out)

    def kill(self) -> Kill | None:
        """Run until a random moment and check; return None if the run ended before."""
        kind = self.rng.choice(("time", "time", "files", "point", "point"))
        self.forked = self.rng.random() < self.bench.forks
        at: float
        if kind == "time":
            at = self.rng.uniform(0, 1.05 * (self.bench.seconds - self.forked * self.bench.start_up))
            process = self._start()
            time.sleep(at)
        elif kind == "files":
            at = self.rng.randrange(len(self.bench.whole) + 2)
            process = self._start()
            before = self._files()
            while process.poll() is None and self._files() - before < at:
                time.sleep(0.0005)
            time.sleep(self.rng.uniform(0, 0.003))
        else:
            at = self.rng.randrange(self.bench.moments)
            process = self._start(point=int(at))
            process.wait(300)
        if process.poll() is None:
            process.kill()
        code = process.wait(300)
        if code != -signal.SIGKILL:
            assert code == 0, f"exit code {code}: {(self.bench.work / 'log.txt').read_text(errors='replace')}"
            self.check_end()
            return None
        done, temporary = self.check()
        return Kill(
            self.number, kind, at, self.forked, self.overwrite, done, len(contents(self.out)) - temporary, temporary
        )

    def _files(self) -> int:
        """Count the files that a run has begun or finished."""
        new = 0 if self.overwrite else sum(len(files) for _, _, files in os.walk(self.out))
        return new + len(self._noted())

    def _noted(self) -> list[dict[str, Any]]:
        """Return the records of this run without those of the run that it replaces."""
        found = records(self.out)
        return found if found and found[0]["seed"] == 2 else []

    def _start(self, point: int | None = None) -> Process:
        # a begun run with --overwrite resumes without the option
        again = ["--overwrite"] if self.overwrite and not self._noted() else []
        return self.bench.start(self.out, *again, point=point, fork=self.forked)

    def check(self) -> tuple[int, int]:
        """Check a folder whose run was killed; return the numbers of recorded outputs and of temporary files."""
        assert digest(self.bench.inputs) == self.bench.digest, "an input has changed"
        found = contents(self.out) if self.out.exists() else {}
        temporary = {name for name in found if _TEMPORARY.fullmatch(name.rpartition("/")[2])}
        assert len(temporary) <= 1, f"more than one temporary file: {temporary}"
        for name in found.keys() - temporary:
            allowed = [self.bench.whole.get(name), self.bench.old.get(name) if self.overwrite else None]
            assert found[name] in allowed, f"{name} is partial or wrong"
        noted = self._noted()
        done = [r["done"] for r in noted if "done" in r]
        begun = [name for r in noted if "batch" in r for name in r["batch"]]
        assert len(set(done)) == len(done), "an image was done twice"
        assert len(set(begun)) == len(begun), "an image was begun in two batches"
        assert set(done) <= set(begun)
        for name in done:
            assert found.get(name) == self.bench.whole[name], f"{name} is recorded, but lost or wrong"
        now = {name: ((s := (self.out / name).stat()).st_ino, s.st_mtime_ns) for name in done}
        assert all(now.get(name) == was for name, was in self.kept.items()), "a finished output was written again"
        self.kept = now
        return len(done), len(temporary)

    def finish(self) -> None:
        """Resume the run to its end and check."""
        self.forked = self.bench.forks > 0
        code = self._start().wait(300)
        assert code == 0, f"exit code {code}: {(self.bench.work / 'log.txt').read_text(errors='replace')}"
        self.check_end()

    def check_end(self) -> None:
        """Check a folder whose run has ended."""
        done, temporary = self.check()
        assert done == len(self.bench.whole) and not temporary, f"{done} done, {temporary} temporary files"
        assert contents(self.out) == self.bench.whole, "not the bits of a run that was not killed"


def run(work: Path, kills: int, seed: int, model: str = "zip-tiny", images: int = 40,
        options: Sequence[str] = ("--preset", "fast", "--tile-size", "32", "--batch", "6"),
        forks: float = 0.0) -> list[Kill]:  # fmt: skip
    """Kill `kills` runs in chains and resume all of them; kills in WORK/kills.jsonl are not repeated.

    Args:
        forks: the share of the runs that are forks of this process, which should have no threads.

    Raises:
        AssertionError: an image was lost, done twice or partial; WORK/out is kept.
    """
    bench = Bench(work, model, images, options, forks)
    log = work / "kills.jsonl"
    past = [Kill(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
    number = max((k.chain for k in past), default=-1) + 1
    while len(past) < kills:
        chain = Chain(bench, number, seed)
        length = min(chain.rng.choice((1, 1, 1, 2, 3, 6)), kills - len(past))
        made: list[Kill] = []
        while len(made) < length and (kill := chain.kill()):
            made.append(kill)
        if len(made) == length:
            chain.finish()
        # a kill counts when the run that it ended has been resumed to its end
        with log.open("a") as f:
            f.writelines(json.dumps(asdict(k)) + "\n" for k in made)
        past += made
        number += 1
        print(f"{len(past)} of {kills} resumed", flush=True)
    return past


def summary(kills: Sequence[Kill], images: int) -> str:
    """Summarize the moments of the kills."""
    stages = Counter(
        "before the first output" if not k.outputs else "after the last" if k.done == images else "in between"
        for k in kills if not k.overwrite
    )  # fmt: skip
    lines = [
        f"{len(kills)} kills in {len({k.chain for k in kills})} chains, all resumed bit for bit",
        f"by moment: {dict(Counter(k.kind for k in kills))}; while overwriting a finished run: "
        f"{sum(k.overwrite for k in kills)}; in forks: {sum(k.forked for k in kills)}; the others: {dict(stages)}",
        f"with a temporary file left: {sum(k.temporary for k in kills)}; "
        f"with an output that was not yet recorded: {sum(k.outputs > k.done for k in kills if not k.overwrite)}",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the harness from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="a folder for the runs; kept, so that the harness can be resumed")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="zip-tiny")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--forks", type=float, default=0.75, help="share of the runs that start as forks")
    args = parser.parse_args()
    if args.forks:
        import onnxruntime  # noqa: F401
    kills = run(args.work.absolute(), args.kills, args.seed, args.model, args.images, forks=args.forks)
    print(summary(kills, args.images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
