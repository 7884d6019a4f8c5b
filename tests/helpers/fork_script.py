"""Fork children from a process that holds engines; print how each child ended as JSON. Argument: the scenario.

This is a separate program because a child must end by the interpreter's normal exit. A child that runs for a minute is
killed and reported as "hang".
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import zipsdk
from zipsdk.detectors.classifier_client import MAX_STALLED, ClassifierClient, Failure
from zipsdk.models import resolve

x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
t = np.zeros(len(x), np.float32)
images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


def in_child(work) -> str:
    """Run `work` in a forked child; return its exit code: 0, 7 if `work` returned False, or "hang"."""
    pid = os.fork()
    if not pid:
        sys.exit(0 if work() is not False else 7)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hang"


def combinations() -> dict[str, str]:
    """Combine: threads; run before the fork or not; run in the child or not; deleted in the child or not."""
    ended = {}
    for threads in (1, 2):
        holder = [zipsdk.load_engine("zip-tiny", device="cpu", threads=threads)]
        expected = zipsdk.load_engine("zip-tiny", device="cpu", threads=threads)(x, t)
        for warm in (False, True):
            if warm:
                holder[0](x, t)
            for run in (False, True):
                for drop in (False, True):

                    def work(run=run, drop=drop, holder=holder, expected=expected) -> bool:
                        same = not run or np.array_equal(holder[0](x, t), expected)
                        # one image uses another session than a batch
                        same = same and (not run or np.allclose(holder[0](x[:1], t[:1]), expected[:1], atol=1e-5))
                        if drop:
                            holder.clear()
                            gc.collect()
                        return same

                    ended[f"threads {threads} warm {warm} run {run} drop {drop}"] = in_child(work)
        ended[f"threads {threads} parent"] = str(int(not np.array_equal(holder[0](x, t), expected)))
    return ended


def ways_out() -> dict[str, str]:
    """Fork with a purifier: other ways to end, children of children, and a busy thread during the fork."""
    purifier = zipsdk.Purifier(zipsdk.load_engine("zip-tiny", device="cpu", threads=2), steps=1, start=400, seed=1)
    expected = purifier.run(images)

    def same() -> bool:
        return np.array_equal(purifier.run(images), expected)

    def leave() -> None:
        os._exit(0 if same() else 7)

    ended = {"_exit": in_child(leave), "grandchild": in_child(lambda: same() and in_child(same) == "0")}
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if same() else 7))
    process.start()
    process.join(60)
    ended["multiprocessing"] = "hang" if process.exitcode is None else str(process.exitcode)
    process.kill()

    stop, ready = threading.Event(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            purifier.run(images)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        for i in range(5):
            ended[f"busy thread {i}"] = in_child(same)
    finally:
        stop.set()
        thread.join()
    ended["parent"] = str(int(not same()))
    return ended


def files() -> dict[str, str]:
    """Fork after the model file was replaced or deleted, and change the working directory in a child."""
    copies = [Path(f"{name}.onnx") for name in ("moved", "missing", "other")]
    tiny, int8 = resolve("zip-tiny"), resolve("zip-tiny-int8")
    assert tiny is not None and int8 is not None
    for copy in copies:
        shutil.copy(tiny, copy)
    moved, missing, other = (zipsdk.load_engine(copy, device="cpu", threads=2) for copy in copies)

    def change_folder() -> None:
        os.chdir("/")
        moved(x, t)
        moved(x[:1], t[:1])

    def refused(engine, text: str) -> bool:
        try:
            engine(x[:1], t[:1])
        except zipsdk.ModelError as e:
            return text in str(e)
        return False

    copies[1].unlink()
    shutil.copy(int8, copies[2])
    return {
        "chdir": in_child(change_folder),
        "missing": in_child(lambda: refused(missing, "got no such file in a forked process")),
        "other": in_child(lambda: refused(other, "got another model than the one opened before the fork")),
    }


def streams() -> dict[str, str]:
    """Fork during a stream, and with stalled classifier calls."""
    batches = iter([images] * 4)
    purifier = zipsdk.Purifier("zip-tiny", steps=1, start=400, seed=1)
    stream = purifier.stream(batches)
    next(stream)

    def refused() -> bool:
        try:
            next(stream)
        except zipsdk.EngineError as e:
            return "forked after the stream began" in str(e)
        return False

    def begin_another() -> bool:
        return len(list(purifier.stream([images] * 2))) == 2

    release = threading.Event()
    calls: list[bool] = []

    def classify(batch: np.ndarray) -> np.ndarray:
        if os.getpid() == parent:
            calls.append(release.wait())
        return np.eye(2)[np.zeros(len(batch), int)]

    parent, client = os.getpid(), ClassifierClient(classify, timeout=0.01)
    for _ in range(MAX_STALLED):
        (answer,) = client.query([images[0]], lambda p: [p])
        assert isinstance(answer, Failure) and "no answer within" in answer.reason
    ended = {"stream": in_child(refused), "another stream": in_child(begin_another)}
    client.timeout = 60.0
    ended["hanging classifier"] = in_child(lambda: not isinstance(client.query([images[0]], lambda p: [p])[0], Failure))
    guard = zipsdk.Guard(classify, purifier)
    with guard._lock:
        ended["guard in use"] = in_child(lambda: guard.counters.images == 0)
    ended["parent still counts them"] = str(client.stalled - MAX_STALLED)
    release.set()
    return ended | {"parent's stream": str(len(list(stream)) - 3)}


if __name__ == "__main__":
    result = {"combinations": combinations, "ways_out": ways_out, "files": files, "streams": streams}[sys.argv[1]]()
    print(json.dumps(result))
