"""Kill `zipsdk purify`, or simulate a power failure, at any moment; see `tests.tools.kill`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.folders import contents, folder, records, state, write_image
from tests.tools import kill
from zipsdk import images
from zipsdk.batch.manifest import MANIFEST

linux = pytest.mark.skipif(sys.platform != "linux", reason="watches file descriptors in /proc, as Linux has it")


@linux
def test_a_run_survives_five_kills(model, tmp_path):
    kills = kill.run(tmp_path / "work", 5, seed=4, model=model, images=12, options=("--steps", "2", "--batch", "4"))
    assert len(kills) == 5 and {k.kind for k in kills} >= {"point", "time"}
    assert any(0 < k.done < 12 for k in kills), "killed too early or too late to show anything"


@linux
@pytest.mark.slow
def test_a_run_survives_two_hundred_kills(model, tmp_path):
    kills = kill.run(
        tmp_path / "work", 200, seed=1, model=model, options=("--steps", "4", "--tile-size", "32", "--batch", "6")
    )
    assert len(kills) == 200 and {k.kind for k in kills} == {"point", "time", "files"}
    assert (
        any(k.temporary for k in kills) and any(k.outputs > k.done for k in kills) and any(not k.outputs for k in kills)
    )


class Disk:
    """The worst state of a folder after a power failure: only names and bytes that were synced.

    Names are on disk when their folder was synced, bytes when the file was. `states` has a copy for each sync.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        self.bytes: dict[int, bytes] = {}  # by inode
        self.names: dict[Path, dict[str, tuple[int, bool]]] = {}  # of each folder: inode, and whether it is a folder
        self.states: list[dict[str, bytes]] = []
        self._fsync = os.fsync
        for path in (root, *root.rglob("*")):
            self._sync(path)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, fd: int) -> None:
        self._fsync(fd)
        self._sync(Path(f"/proc/self/fd/{fd}").readlink())
        if (now := dict(self._on_disk(self.root, ""))) not in self.states[-1:]:
            self.states.append(now)

    def _sync(self, path: Path) -> None:
        if path.is_dir():
            self.names[path] = {p.name: (p.lstat().st_ino, p.is_dir()) for p in path.iterdir()}
        else:
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def _on_disk(self, path: Path, name: str):
        for child, (inode, is_folder) in self.names.get(path, {}).items():
            if is_folder:
                yield from self._on_disk(path / child, f"{name}{child}/")
            else:
                yield f"{name}{child}", self.bytes.get(inode, b"")


@linux
@pytest.mark.parametrize("kind", ["fresh", "changed", "overwrite"])
def test_a_power_failure_at_any_moment_loses_no_recorded_output(purify, tmp_path, monkeypatch, kind):
    src, out, copy = folder(tmp_path / "in", 3), tmp_path / "out", tmp_path / "copy"
    write_image(src / "deep" / "er" / "003.png", 3)
    options = ["--seed", 1, "--batch", 2, "--quiet"]
    if kind != "fresh":  # old outputs have the names of the new ones
        assert purify(src, "-o", out, *options) == 0
    old = contents(out)
    if kind == "changed":
        for i in range(3):
            write_image(src / f"{i:03}.png", 10 + i)
    if kind == "overwrite":
        options[1] = 2
    out.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        disk = Disk(out, patch)
        assert purify(src, "-o", out, *options, *["--overwrite"] * (kind == "overwrite")) == 0
    full, seed = contents(out), records(out)[0]["seed"]
    assert full.keys() == {"000.png", "001.png", "002.png", "deep/er/003.png"} and disk.states[-1].keys() >= full.keys()
    if kind != "fresh":
        assert full["000.png"] != old["000.png"]
    for left in disk.states:
        shutil.rmtree(copy, ignore_errors=True)
        for name, data in left.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        copy.mkdir(exist_ok=True)
        found = records(copy) if (copy / MANIFEST).exists() else []
        begun = found and found[0]["seed"] == seed
        noted = [r["done"] for r in found if "done" in r] if begun and kind == "overwrite" else []
        assert all(left[name] == full[name] for name in noted)
        for name in left.keys() - {MANIFEST}:
            if not name.rpartition("/")[2].startswith(".zipsdk-"):
                images.read_one(copy / name)  # whole, old or new
        again = ["--overwrite"] if kind == "overwrite" and not begun else []
        assert purify(src, "-o", copy, *options, *again) == 0
        assert contents(copy) == full
    assert state(copy).keys() == full.keys()
