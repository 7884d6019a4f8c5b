"""Check a program of a user with strict mypy: the types that run, stream and calls return."""

from __future__ import annotations

import re

import pytest

from tests.helpers.paths import ROOT

api = pytest.importorskip("mypy.api", reason="mypy is not installed: pip install 'zipsdk[dev]'")

PROGRAM = """\
import io
from pathlib import Path
from typing import Any, Protocol
import numpy as np
from PIL import Image
import zipsdk

class Tensor(Protocol):
    def __dlpack__(self, *, stream: int = -1) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def main(floats: np.ndarray[Any, np.dtype[np.float32]], image: Image.Image, tensor: Tensor, path: Path) -> None:
    purifier = zipsdk.Purifier("zip-tiny", preset="fast", combine="joint", transforms="random", precision="int8")
    reveal_type(purifier.run(floats))  # float32 array
    reveal_type(purifier(floats, data_format="NCHW"))  # float32 array
    reveal_type(purifier.run(image, seed=1))  # Image
    reveal_type(purifier.run(path))  # Image
    reveal_type(purifier.run("a.png"))  # Image
    reveal_type(purifier.run(b"..."))  # Image
    reveal_type(purifier.run(io.BytesIO()))  # Image
    reveal_type(purifier.run(tensor))  # Tensor
    reveal_type(purifier.run([floats, floats]))  # list of float32 array
    reveal_type(purifier([image, image]))  # list of Image
    reveal_type(purifier.run((path, "a.png")))  # list of Image
    reveal_type(purifier.run([tensor]))  # list of Tensor
    reveal_type(purifier.run([floats, image]))  # list of object
    reveal_type(purifier.run(zipsdk.images.read_one(path)))  # Image
    reveal_type(purifier.run([zipsdk.images.read_one(floats)]))  # list of float32 array
    reveal_type(next(purifier.stream([floats])))  # float32 array
    reveal_type(next(purifier.stream(iter([image]))))  # Image
    reveal_type(next(purifier.stream([[image], [image]])))  # list of Image
    reveal_type(next(purifier.stream([(floats, floats)])))  # list of float32 array
    reveal_type(purifier.settings.steps)  # int
    reveal_type(zipsdk.load_engine(path).info["engine"])  # Any
    guard = zipsdk.Guard.fit(lambda x: x.mean((1, 2)), [image], purifier)
    reveal_type(guard.run(floats)[0])  # Decision of float32 array
    reveal_type(guard.run(floats)[0].image)  # optional float32 array
    reveal_type(guard.run(image)[0])  # Decision of Image
    reveal_type(guard.run(path, data_format=None)[0])  # Decision of Image
    reveal_type(guard.run(tensor)[0])  # Decision of Tensor
    reveal_type(guard.run([floats, floats])[0])  # Decision of float32 array
    reveal_type(guard.run((image, image))[0])  # Decision of Image
    reveal_type(guard.run((path, "a.png"))[0])  # Decision of Image
    reveal_type(guard.run([tensor])[0])  # Decision of Tensor
    reveal_type(guard.run([floats, image])[0])  # Decision of object
    reveal_type(guard.run(zipsdk.images.read_one(image))[0])  # Decision of Image
    reveal_type(guard.run([zipsdk.images.read_one(tensor)])[0])  # Decision of Tensor
    reveal_type(next(guard.stream([floats]))[0])  # Decision of float32 array
    reveal_type(next(guard.stream([[path], [path]]))[0])  # Decision of Image
    reveal_type(next(guard.stream(iter([image])))[0])  # Decision of Image
    reveal_type(next(guard.stream([[floats]]))[0])  # Decision of float32 array
    reveal_type(zipsdk.ScaleUp.load(path).threshold)  # float
    found: list[zipsdk.Decision[Any]] = guard.run([floats])
    guard.run(5)  # error: call-overload
    zipsdk.Guard(lambda x: x, detector=5)  # error: arg-type
    purifier.run(5)  # error: call-overload
    purifier.run(floats, data_format="CHW")  # error: call-overload
    zipsdk.Purifier("zip-tiny", preset="fst")  # error: arg-type
    zipsdk.Purifier("zip-tiny", combine="sum")  # error: arg-type
    zipsdk.Purifier("zip-tiny", precision="half")  # error: arg-type
"""
NAMES = {
    "float32 array": r"numpy\.ndarray\[.*numpy\.dtype\[numpy\.(floating\[.*_32Bit\]|float32)\]\]",
    "Image": r"PIL\.Image\.Image", "Tensor": r"program\.Tensor", "int": r"(builtins\.)?int",
    "float": r"(builtins\.)?float", "Any": "Any",
    "object": r"(builtins\.)?object",
}  # fmt: skip

AROUND = {
    "list of ": r"(?:builtins\.)?list\[{}\]",
    "Decision of ": r"zipsdk\.decision\.Decision\[{}\]",
    "optional ": r"(?:{} \| None|Union\[{}, None\])",
}


@pytest.mark.slow
def test_a_program_of_a_user_passes_strict_mypy(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)  # not the settings of this repository
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    out, errors, _ = api.run(["--strict", "--no-error-summary", file.name])
    got: dict[int, list[str]] = {}
    for line, kind, text in re.findall(r"program\.py:(\d+): (note|error): (.*)", out):
        if kind == "error" or "Revealed" in text:
            got.setdefault(int(line), []).append(text)
    expected = {i: line.partition("  # ")[2] for i, line in enumerate(PROGRAM.splitlines(), 1) if "  # " in line}
    assert got.keys() == expected.keys(), out + errors
    for line, name in expected.items():
        (text,) = got[line]
        if name.startswith("error: "):
            assert text.endswith(f"[{name.removeprefix('error: ')}]"), text
            continue
        pattern = NAMES[re.sub("^(list of|Decision of|optional) ", "", name)]
        for prefix, around in AROUND.items():
            pattern = around.replace("{}", pattern) if name.startswith(prefix) else pattern
        assert re.fullmatch(rf'Revealed type is "{pattern}"', text), (PROGRAM.splitlines()[line - 1], text)
