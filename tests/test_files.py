"""Sidecars: a model file is what it was when it was written, or it is refused with a reason."""

import hashlib
import json

import pytest

from zipsdk import files
from zipsdk.errors import ModelError


@pytest.fixture
def model(tmp_path):
    """A model of two files with its sidecar."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"graph" * 100)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"weights" * 1000)
    files.write_sidecar(path, {"export": {"precision": "fp16"}}, [data])
    return path


def test_hash_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sidecar_holds_hashes_and_extras(model):
    record = files.check_sidecar(model)
    assert record is not None
    assert record["export"] == {"precision": "fp16"}
    assert record["files"]["m.onnx"] == {"bytes": 500, "sha256": hashlib.sha256(b"graph" * 100).hexdigest()}
    assert set(record["files"]) == {"m.onnx", "m.onnx.data"}
    assert sorted(p.name for p in model.parent.iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.json"]


def test_no_sidecar_is_no_error(tmp_path):
    assert files.check_sidecar(tmp_path / "m.onnx") is None


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
@pytest.mark.parametrize("where", [0, 250, -1])
def test_one_flipped_bit(model, name, where):
    file = model.with_name(name)
    raw = bytearray(file.read_bytes())
    raw[where] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ModelError, match=rf"{name}: got SHA-256 \w+, wanted \w+"):
        files.check_sidecar(model)


def test_cut_short(model):
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ModelError, match="got 499 bytes, wanted 500"):
        files.check_sidecar(model)


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
def test_missing_file(model, name):
    model.with_name(name).unlink()
    with pytest.raises(ModelError, match=f"{name}: m.onnx needs it"):
        files.check_sidecar(model)


def test_renamed_model(model):
    other = model.rename(model.with_name("n.onnx"))
    files.sidecar_path(model).rename(files.sidecar_path(other))
    with pytest.raises(ModelError, match=r"wanted 'n\.onnx'"):
        files.check_sidecar(other)


def test_another_folder_is_not_read(model):
    sidecar = files.sidecar_path(model)
    record = json.loads(sidecar.read_text())
    record["files"]["../secret"] = record["files"]["m.onnx.data"]
    sidecar.write_text(json.dumps(record))
    with pytest.raises(ModelError, match="without folders"):
        files.check_sidecar(model)


@pytest.mark.parametrize(
    "text",
    ["", "\xff", "[]", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"m.onnx": 3}}'],
)
def test_unreadable_sidecar(model, text):
    files.sidecar_path(model).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="sidecar"):
        files.check_sidecar(model)


def test_later_format(model):
    files.sidecar_path(model).write_text('{"format": 2, "files": {}}')
    with pytest.raises(ModelError, match="got format 2, wanted 1"):
        files.check_sidecar(model)


def test_companions_lie_beside(model, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d").write_bytes(b"")
    with pytest.raises(ValueError, match="not in the folder"):
        files.write_sidecar(model, {}, [tmp_path / "sub" / "d"])
    with pytest.raises(ValueError, match="files"):
        files.write_sidecar(model, {"files": {}})


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
