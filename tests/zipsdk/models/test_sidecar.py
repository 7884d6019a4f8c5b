"""Test sidecars, atomic writes and locks: changed model files are refused with a reason."""

import errno
import hashlib
import json
import os
import threading
from io import FileIO
from pathlib import Path

import pytest

from zipsdk._util import atomic, locks
from zipsdk.errors import ModelError
from zipsdk.models import sidecar


@pytest.fixture
def model(tmp_path):
    """Create a model of two files with its sidecar."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"graph" * 100)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"weights" * 1000)
    sidecar.write_sidecar(path, {"export": {"precision": "fp16"}}, [data])
    return path


def test_hash_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sidecar.sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sidecar_holds_hashes_and_extras(model):
    record = sidecar.check_sidecar(model)
    assert record is not None
    assert record["export"] == {"precision": "fp16"}
    assert record["files"]["m.onnx"] == {"bytes": 500, "sha256": hashlib.sha256(b"graph" * 100).hexdigest()}
    assert set(record["files"]) == {"m.onnx", "m.onnx.data"}
    assert sorted(p.name for p in model.parent.iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.json"]


def test_no_sidecar_is_no_error(tmp_path):
    assert sidecar.check_sidecar(tmp_path / "m.onnx") is None


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
@pytest.mark.parametrize("where", [0, 250, -1])
def test_one_flipped_bit_is_refused(model, name, where):
    file = model.with_name(name)
    raw = bytearray(file.read_bytes())
    raw[where] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ModelError, match=rf"{name}: got SHA-256 \w+, expected \w+"):
        sidecar.check_sidecar(model)


def test_a_truncated_file_is_refused(model):
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ModelError, match="got 499 bytes, expected 500"):
        sidecar.check_sidecar(model)


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
def test_a_missing_file_is_refused(model, name):
    model.with_name(name).unlink()
    with pytest.raises(ModelError, match=f"{name}: m.onnx needs it"):
        sidecar.check_sidecar(model)


def test_a_renamed_model_is_refused(model):
    other = model.rename(model.with_name("n.onnx"))
    sidecar.sidecar_path(model).rename(sidecar.sidecar_path(other))
    with pytest.raises(ModelError, match=r"expected 'n\.onnx'"):
        sidecar.check_sidecar(other)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among its files")
def test_a_model_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for name in ("pipe.onnx", "folder.onnx"):
        with pytest.raises(ModelError, match=f"{name}: got a folder, a pipe or a device, expected a model file"):
            sidecar.check_sidecar(tmp_path / name)


def test_files_of_another_folder_are_not_read(model):
    path = sidecar.sidecar_path(model)
    record = json.loads(path.read_text())
    record["files"]["../secret"] = record["files"]["m.onnx.data"]
    path.write_text(json.dumps(record))
    with pytest.raises(ModelError, match="without folders"):
        sidecar.check_sidecar(model)


@pytest.mark.parametrize(
    "text",
    ["", "\xff", "[]", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"m.onnx": 3}}'],
)
def test_an_unreadable_sidecar_is_refused(model, text):
    sidecar.sidecar_path(model).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="sidecar"):
        sidecar.check_sidecar(model)


def test_a_later_format_is_refused(model):
    sidecar.sidecar_path(model).write_text('{"format": 2, "files": {}}')
    with pytest.raises(ModelError, match="got format 2, expected 1"):
        sidecar.check_sidecar(model)


def test_companions_must_be_in_the_models_folder(model, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d").write_bytes(b"")
    with pytest.raises(ValueError, match="not in the folder"):
        sidecar.write_sidecar(model, {}, [tmp_path / "sub" / "d"])
    with pytest.raises(ValueError, match="files"):
        sidecar.write_sidecar(model, {"files": {}})


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    atomic.write_atomically(path, b"old")
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_made_folders_and_written_files_are_synced(tmp_path, monkeypatch):
    """A power failure must not lose a name that another file refers to."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("watches file descriptors in /proc, which Linux has")
    synced, fsync = [], os.fsync

    def watching(fd):
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watching)
    atomic.make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    atomic.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
    atomic.write_atomically(tmp_path / "a" / "f", b"x")
    assert ".f." in synced[2] and synced[3:] == [str(tmp_path / "a")]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EACCES, False), (errno.EIO, True)])
def test_only_broken_disks_make_a_folder_sync_fail(tmp_path, monkeypatch, number, raised):
    """Some network file systems do not support it; a broken disk is an error."""
    if os.name == "nt":
        pytest.skip("Windows syncs no folders")

    def failing(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    if raised:
        with pytest.raises(OSError, match="error"):
            atomic.sync_folder(tmp_path)
    else:
        atomic.sync_folder(tmp_path)


def test_a_lock_is_held_until_the_file_is_closed(tmp_path):
    first, second = (FileIO(tmp_path / "f", "a+") for _ in range(2))
    with first, second:
        assert locks.try_lock(first)
        assert not locks.try_lock(second)
        first.close()
        assert locks.try_lock(second)


def test_a_locked_folder_is_waited_for(tmp_path):
    pytest.importorskip("fcntl", reason="folders are not locked on Windows")
    entered = threading.Event()

    def enter():
        with locks.locked_folder(tmp_path):
            entered.set()

    with locks.locked_folder(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()
