"""Test the manifest of ``zipsdk purify``: damage, full disks and locks."""

from __future__ import annotations

import json
import os
import sys
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.folders import finished, folder, names, records, refused, state
from zipsdk.batch import manifest
from zipsdk.batch.manifest import MANIFEST, Job, Manifest
from zipsdk.errors import InputError


def test_a_damaged_manifest_is_refused_and_a_cut_header_is_ignored(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text('{"zipsdk_manifest": 9}\n')
    refused(capsys, purify(src, "-o", out), 2, "another version")
    (out / MANIFEST).write_text('{"zipsdk_mani')
    assert purify(src, "-o", out) == 0
    assert len(finished(out)) == 2


HEADER = {"zipsdk_manifest": 1, "seed": 3, "settings": {}}


@pytest.mark.parametrize(
    "lines",
    [
        [[]],
        [3],
        [{k: v for k, v in HEADER.items() if k != "seed"}],
        [HEADER | {"seed": "x"}],
        [HEADER | {"seed": -1}],
        [HEADER | {"seed": True}],
        [HEADER | {"seed": 1.5}],
        [HEADER | {"settings": []}],
        [HEADER | {"replaces": 3}],
        [HEADER, 3],
        [HEADER, "a batch"],
        [HEADER, {}],
        [HEADER, {"batch": 3}],
        [HEADER, {"batch": [[]]}],
        [HEADER, {"done": [], "source": "a", "size": 1, "mtime_ns": 1}],
        [HEADER, {"done": "a", "source": 1, "size": 1, "mtime_ns": 1}],
        [HEADER, {"done": "a", "source": "a\0", "size": 1, "mtime_ns": 1}],
        [HEADER, {"done": "a", "source": "a", "size": float("inf"), "mtime_ns": 1}],
        [HEADER, {"done": "a", "source": "a", "size": "x", "mtime_ns": 1}],
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused_without_overwrite(purify, tmp_path, capsys, lines):
    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(
        capsys,
        purify(src, "-o", out),
        2,
        "got a damaged manifest, or one of another version of zipsdk; use another output folder",
    )
    assert purify(src, "-o", out, "--overwrite") == 0


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff\xfe", b"{}}"])
def test_a_line_that_is_not_json_is_ignored(purify, tmp_path, line):
    src, out = folder(tmp_path / "in", 2), tmp_path / "out"
    assert purify(src, "-o", out) == 0
    before = state(out)
    with (out / MANIFEST).open("ab") as f:
        f.write(line + b"\n")
    assert purify(src, "-o", out) == 0
    assert state(out) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")
def test_a_manifest_that_is_not_a_file_is_refused(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 1)
    for kind in ("folder", "link", "pipe"):
        out = tmp_path / kind
        out.mkdir()
        {"folder": Path.mkdir, "link": lambda p: p.symlink_to(tmp_path / "elsewhere"), "pipe": os.mkfifo}[kind](
            out / MANIFEST
        )
        refused(capsys, purify(src, "-o", out), 2, f"{out / MANIFEST}: got a folder, link or device, expected a file")
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_resumes_after_a_full_disk_cut_the_manifest(purify, tmp_path, capsys, monkeypatch):
    src, out = folder(tmp_path / "in", 4), tmp_path / "out"
    written = []

    class Small(FileIO):
        def write(self, data):
            written.append(data)
            if len(written) == 5:  # the second batch's outputs
                super().write(bytes(data)[:10])
                raise OSError(28, "No space left on device")
            return super().write(bytes(data)[:100])  # a write may be partial

    monkeypatch.setattr(manifest, "FileIO", Small)
    assert purify(src, "-o", out, "--seed", 1, "--batch", 1) == 2
    output = capsys.readouterr().err
    assert f"error: {out / MANIFEST}: No space left on device; check the path, its permissions and disk space" in output
    monkeypatch.undo()
    assert purify(src, "-o", out, "--seed", 1, "--batch", 1) == 0
    assert sorted(finished(out)) == sorted(names(src))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_is_refused_on_windows(tmp_path, monkeypatch, overwrite):
    """Windows forbids others to read or write a locked byte, so it lies beyond the end of the file."""
    out, held = tmp_path / "out", set()

    def locking(fd, mode, size):
        assert (mode, size) == ("at once", 1)
        byte = os.fstat(fd).st_ino, os.lseek(fd, 0, os.SEEK_CUR)
        if byte in held:
            raise PermissionError(13, "Permission denied")
        held.add(byte)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK="at once", locking=locking))
    first = Manifest(out, [], {"steps": 2}, 5, False)
    with pytest.raises(InputError, match="another zipsdk run writes there; wait for it"):
        Manifest(out, [], {"steps": 2}, None, overwrite)
    first.finished((Job(tmp_path / "a.png", "a.png"), 1, 2))
    assert [at > 1e9 for _, at in held] == [True]
    assert (out / MANIFEST).stat().st_size < 1000

    first.close()
    held.clear()  # as the system does when a process ends
    Manifest(out, [], {"steps": 2}, 5, overwrite).close()
    assert [next(iter(r)) for r in records(out)] == ["zipsdk_manifest", *([] if overwrite else ["done"])]
