"""Run the soak and judge it: ``python -m tests.soak --minutes 20 --record FILE``.

Exit code 0: flat; 1: memory, threads or files grow, or something failed that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import sys
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.soak import activities
from tests.soak.sampler import Sampler, Samples
from tests.soak.trend import Slope, slope, typical

#: Megabytes an hour. A lost image of 10 kB in each operation would be hundreds.
LIMIT = 20.0
#: Threads and files above what there was after the warm-up that may be there in the end.
SPARE = 4


def main(argv: list[str]) -> int:
    """Run, print the verdict, write the record."""
    parser = argparse.ArgumentParser(prog="soak", description="Mixed work with faults, watched for growth.")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the whole run (default: 20)")
    parser.add_argument("--threads", type=int, default=3, help="threads that work at once (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write numbers and samples here, as JSON")
    args = parser.parse_args(argv)
    seconds = args.minutes * 60
    # what is cached at the first use of each size is no leak
    warm_up = min(240.0, max(20.0, seconds / 4))
    if seconds - warm_up < 40:
        parser.error(f"--minutes: got {args.minutes:g}, expected at least 1; a slope needs samples")
    activities.silence()
    with activities.scratch() as folder:
        record = run(Path(folder), seconds, warm_up, args.threads, args.seed)
    verdict = judge(record)
    print_record(record, verdict)
    if args.record:
        args.record.write_text(json.dumps({**record, "verdict": verdict or ["flat"]}, indent=1) + "\n")
    return 1 if verdict else 0


def run(folder: Path, seconds: float, warm_up: float, threads: int, seed: int) -> dict[str, Any]:
    """Work for `seconds`, and give the numbers."""
    workers = [activities.Activities(folder / str(i), seed * 1000 + i) for i in range(threads)]
    stop, sampler, rng = threading.Event(), Sampler(), random.Random(seed)
    pool = [threading.Thread(target=w.until, args=(stop,), name=f"soak-{i}") for i, w in enumerate(workers)]
    done: Counter[str] = Counter()
    sampler.start()
    begin = time.perf_counter()
    for t in pool:
        t.start()
    try:
        while (left := seconds - (time.perf_counter() - begin)) > 0:
            with contextlib.redirect_stderr(io.StringIO()):  # of this thread's command; the other threads print nothing
                done[f"command: {activities.command(folder / '0', rng)}"] += 1
            time.sleep(min(1.0, left))
    finally:
        stop.set()
        for t in pool:
            t.join()
    time.sleep(1.0)  # late answers end
    sampler.take()
    sampler.stop()
    for w in workers:
        done.update(w.done)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "warm_up": warm_up,
        "threads": threads,
        "seed": seed,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(),
                     **{n: metadata.version(n) for n in ("zipsdk", "numpy", "pillow", "onnxruntime")}},
        "operations": dict(sorted(done.items())),
        "faults": [f for w in workers for f in w.faults],
        **_trends(sampler.samples, warm_up),
    }  # fmt: skip


def _trends(samples: Samples, warm_up: float) -> dict[str, Any]:
    first = next(i for i, s in enumerate(samples.seconds) if s >= warm_up)
    # the last sample is taken at rest
    at, end = samples.seconds[first:-1], {"threads": samples.threads[-1], "files": samples.files[-1]}
    half = len(at) // 2
    slopes, quarters = {}, {}
    for name in ("rss", "heap", "blocks", "threads", "files"):
        values = getattr(samples, name)[first:-1]
        if all(v == v for v in values):
            slopes[name] = {"whole": vars(slope(at, values)), "second half": vars(slope(at[half:], values[half:]))}
            quarters[name] = typical(at, values)
    begin = {n: max(getattr(samples, n)[:first] or [0]) for n in ("threads", "files")}
    rows = list(zip(*(getattr(samples, n) for n in vars(samples)), strict=True))
    return {
        "slopes_per_hour": slopes,
        "typical_per_hour": quarters,
        "most_in_warm_up": begin,
        "at_rest": end,
        "rss_after_warm_up": samples.rss[first],
        "rss_most": max(samples.rss),
        "samples": {"columns": list(vars(samples)), "rows": [[round(v, 2) for v in row] for row in rows[::5]]},
    }


def judge(record: dict[str, Any]) -> list[str]:
    """List what is wrong; an empty list for a flat run.

    Memory grows if the lower bounds of both slopes, of all samples and of their second half, are above the limit, and
    so is the slope of the typical quarter: an allocator that still fills its free lists grows in the first half alone,
    and one that takes a new arena grows in one step. A leak grows all the time.
    """
    wrong = [f"fault: {f}" for f in record["faults"]]
    rss = record["slopes_per_hour"]["rss"]
    if all(part["low"] > LIMIT for part in rss.values()) and record["typical_per_hour"]["rss"] > LIMIT:
        wrong.append(f"memory grows by {rss['whole']['value']:.1f} MB an hour, limit {LIMIT:g}")
    for name, count in record["at_rest"].items():
        if count > record["most_in_warm_up"][name] + SPARE:
            before = record["most_in_warm_up"][name]
            wrong.append(f"{name}: {count:.0f} at the end, at most {before:.0f} in the warm-up")
    return wrong


def print_record(record: dict[str, Any], verdict: list[str]) -> None:
    """Print the numbers and the verdict."""
    total = sum(record["operations"].values())
    print(f"{record['seconds']:.0f} s, {record['threads']} threads, {total:,} operations:")
    for name, n in record["operations"].items():
        print(f"  {name:<44}{n:>8,}")
    units = {"rss": "MB", "heap": "MB", "blocks": "thousand blocks", "threads": "threads", "files": "files"}
    print(f"memory {record['rss_after_warm_up']:.0f} MB after the warm-up, {record['rss_most']:.0f} MB at most")
    for name, parts in record["slopes_per_hour"].items():
        for part, values in parts.items():
            print(f"  {name} an hour, {part}: {Slope(**values)} {units[name]}")
        print(f"  {name} an hour, typical quarter: {record['typical_per_hour'][name]:+.2f} {units[name]}")
    for name, count in record["at_rest"].items():
        print(f"{name}: {count:.0f} at the end, at most {record['most_in_warm_up'][name]:.0f} in the warm-up")
    print("verdict: " + ("; ".join(verdict) if verdict else f"flat (limit {LIMIT:g} MB an hour)"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
