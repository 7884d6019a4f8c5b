"""Test broken optional packages, and that ONNX Runtime's telemetry stays off."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.paths import ROOT
from zipsdk._util import runtimes
from zipsdk._util.runtimes import BrokenPackageError
from zipsdk.errors import MissingDependencyError

OPTIONAL = ("onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "pycuda")


def put(folder: Path, package: str, how: str) -> None:
    """Write a package that is broken in this way into a folder that is first on the path."""
    if how == "shadow":
        (folder / f"{package}.py").write_text("x = 1\n")
    elif how == "script":
        (folder / f"{package}.py").write_text("raise SystemExit('usage: ...')\n")
    elif how == "namespace":
        (folder / package / "capi").mkdir(parents=True)
    else:
        (folder / package).mkdir()
        text = {
            "empty": "",
            "old": "__version__ = '0.1'\n",
            "library": "raise OSError('libbroken.so.1: cannot open shared object file')\n",
            "import": "from . import not_there\n",
            "dependency": "import a_package_that_nobody_has\n",
            "interrupted": "raise RuntimeError('two\\nlines')\n",
            "syntax": "x = (\n",
        }[how]
        (folder / package / "__init__.py").write_text(text)


WAYS = {
    "shadow": (BrokenPackageError, "{0}: got the file {1}/{0}.py, expected the installed package", "rename this file"),
    "script": (BrokenPackageError, "{0}: got the file {1}/{0}.py, expected the installed package", "rename this file"),
    "namespace": (
        BrokenPackageError,
        "{0}: got the folder {1}/{0} without __init__.py",
        "rename or delete this folder",
    ),
    "empty": (BrokenPackageError, "{0}: got", " without "),
    "old": (BrokenPackageError, "{0}: got", " without "),
    "library": (BrokenPackageError, "{0}/__init__.py raised OSError (libbroken.so.1: cannot open", "pip install"),
    "import": (BrokenPackageError, "{0}/__init__.py raised ImportError (cannot import name 'not_there'", "pip install"),
    "dependency": (MissingDependencyError, "No module named 'a_package_that_nobody_has'", "pip install"),
    "interrupted": (BrokenPackageError, "{0}/__init__.py raised RuntimeError (two)", "pip install"),
    "syntax": (BrokenPackageError, "{0}/__init__.py raised SyntaxError", "pip install"),
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Return ``broken(package, how)``, which breaks a package for later imports until the test ends."""

    def build(package: str, how: str) -> Path:
        put(tmp_path, package, how)
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        if how == "namespace":  # it hides nothing: no real package may be found
            monkeypatch.setattr(sys, "path", [str(tmp_path)])
        else:
            monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return tmp_path

    modules = dict(sys.modules)
    yield build
    monkeypatch.undo()
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] in OPTIONAL:
            del sys.modules[name]
    sys.modules.update({n: m for n, m in modules.items() if n.partition(".")[0] in OPTIONAL})


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("package", ["onnxruntime", "tensorrt"])
def test_a_broken_package_is_reported_with_its_repair(broken, package, how):
    folder = broken(package, how)
    kind, text, fix = WAYS[how]
    with pytest.raises(MissingDependencyError) as e:
        runtimes.load(package)
    assert type(e.value) is kind
    assert text.format(package, folder) in str(e.value) and fix in str(e.value)
    assert "\n" not in str(e.value)


def test_a_submodule_must_be_in_its_packages_folder(broken):
    broken("pycuda", "namespace")
    with pytest.raises(BrokenPackageError, match=r"pycuda.driver: got the folder .*pycuda without __init__.py"):
        runtimes.load("pycuda.driver")


def test_an_old_package_is_reported_with_the_expected_version(broken):
    broken("onnx", "old")
    with pytest.raises(
        BrokenPackageError, match=r"got version 0.1 without load, expected 1.18 or newer; pip install --up"
    ):
        runtimes.load("onnx")


def test_a_missing_package_is_reported_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependencyError, match=r"onnxruntime is not usable here .*: pip install 'zipsdk\[cpu\]'"
    ) as e:
        runtimes.load("onnxruntime")
    assert not isinstance(e.value, BrokenPackageError)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="pip install pillow"):
        runtimes.load("PIL")


@pytest.mark.parametrize(
    ("installed", "fix"),
    [
        ([], "pip install 'zipsdk[cpu]'"),
        (["onnxruntime-gpu"], "pip install --force-reinstall --no-deps onnxruntime-gpu"),
        (
            ["onnxruntime", "onnxruntime-gpu"],
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'zipsdk[cpu]'",
        ),
    ],
)
def test_the_repair_names_the_installed_distribution(monkeypatch, installed, fix):
    monkeypatch.setattr(runtimes.metadata, "packages_distributions", lambda: {"onnxruntime": installed})
    assert runtimes.reinstall("onnxruntime") == fix
    monkeypatch.setattr(runtimes.metadata, "packages_distributions", lambda: 1 / 0)  # records that cannot be read
    assert runtimes.reinstall("onnxruntime") == "pip install 'zipsdk[cpu]'"


def test_the_error_pickles():
    error = pickle.loads(pickle.dumps(BrokenPackageError("onnx", "got x", "do y")))
    assert (str(error), error.why, error.fix) == ("onnx: got x; do y", "got x", "do y")


DOCTOR = """
import json, sys
from zipsdk.cli import doctor
import zipsdk._util.runtimes
lines, runs = doctor.checks()
print(json.dumps([[c.name, c.ok, c.detail, c.fix] for c in lines]))
"""


@pytest.mark.parametrize("how", ["shadow", "script", "empty", "library", "dependency"])
def test_doctor_reports_each_broken_package(tmp_path, how):
    """Break all of them at once: no line may hide another."""
    for package in OPTIONAL:
        put(tmp_path, package, how)
    check_doctor(tmp_path, how)


def test_doctor_reports_leftover_folders(tmp_path):
    """Hide the real packages, as after an uninstall; only the required packages remain."""
    for package in OPTIONAL:
        put(tmp_path, package, "namespace")
    site = Path(pytest.__file__).parent.parent
    for needed in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        if (site / needed).exists():
            (tmp_path / needed).symlink_to(site / needed)
    check_doctor(tmp_path, "namespace", "-S")


def check_doctor(folder: Path, how: str, *options: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *options, "-c", DOCTOR], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {name: (ok, detail, fix) for name, ok, detail, fix in json.loads(done.stdout)}
    words = {"shadow": "hides", "script": "hides", "namespace": "without __init__.py", "empty": " without ",
             "library": "libbroken", "dependency": "nobody_has"}  # fmt: skip
    for name in ("onnxruntime", "TensorRT", "TensorRT-RTX", "loop on the GPU", "model zip-tiny"):
        ok, detail, fix = lines[name]
        assert not ok and fix, (name, detail)
        expected = "onnxruntime" if name.startswith("model") else words[how]  # its line may be cut short
        assert name == "loop on the GPU" or expected in detail, (name, detail)
    assert lines["numpy"][0] and lines["Pillow"][0]


# ---- telemetry

PROBE = """
import os, sys
{first}
import numpy as np
def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
import zipsdk
before = threads()
engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=1)
engine(np.zeros((1, 3, 32, 32), np.float32), np.zeros(1, np.float32))
import onnxruntime
print(threads() - before, os.environ["ORT_DISABLE_TELEMETRY"], onnxruntime.__version__)
"""


#: ONNX Runtime keeps its telemetry off by itself where one of these is set. Source: the strings of its 1.32 library.
CI = (
    "APPVEYOR", "BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS",
    "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
)  # fmt: skip


def probe(home: Path, *prefix: str, first: str = "", options: tuple[str, ...] = (), **changes: str):
    """Run a program with an empty home folder; return (new threads, the variable, files, stderr)."""
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_")) and k not in CI}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), **changes}
    done = subprocess.run(
        [*prefix, sys.executable, *options, "-c", PROBE.format(first=first)], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more, variable, version = done.stdout.split()
    files = [p for p in home.rglob("*") if p.is_file()]
    return int(more), variable, files, done.stderr, version


def has_telemetry() -> bool:
    pytest.importorskip("onnxruntime")
    from importlib import metadata

    names = metadata.packages_distributions()["onnxruntime"]
    return sys.platform == "linux" and tuple(map(int, metadata.version(names[0]).split(".")[:2])) >= (1, 29)


@pytest.mark.parametrize("value", [None, "", " ", "1", "true"])
def test_a_program_has_no_telemetry_files_or_threads(tmp_path, value):
    changes = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    more, variable, files, errors, _ = probe(tmp_path / "home", options=("-W", "error"), **changes)
    assert (more, files, errors) == (0, [], "")
    assert variable == (value if value and value.strip() else "1")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_it_runs_without_a_network(tmp_path):
    prefix = ("unshare", "-rn")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be created")
    more, _, files, _, _ = probe(tmp_path / "home", *prefix)
    assert (more, files) == (0, [])


def test_a_user_can_turn_telemetry_on(tmp_path):
    more, variable, files, errors, _ = probe(tmp_path / "home", ORT_DISABLE_TELEMETRY="0")
    assert variable == "0" and errors == ""
    if has_telemetry():  # the tests above would see it
        assert more == 1 and "deviceid" in {p.name for p in files}


def test_an_earlier_import_of_the_runtime_warns(tmp_path):
    pytest.importorskip("onnxruntime")
    *_, errors, _ = probe(tmp_path / "home", first="import onnxruntime")
    assert ("onnxruntime was imported before zipsdk with its telemetry on" in errors) == has_telemetry()
    for i, value in enumerate(("1", "0")):  # off from the start, and on by the user's own wish
        *_, errors, _ = probe(tmp_path / f"home{i}", first="import onnxruntime", ORT_DISABLE_TELEMETRY=value)
        assert errors == ""


def test_an_earlier_import_of_an_old_runtime_does_not_warn(monkeypatch, recwarn):
    for version, warned in (("1.28.0", False), ("1.29.0", True), ("unknown", False)):
        ort = ModuleType("onnxruntime")
        ort.__version__ = version
        calls = []
        ort.disable_telemetry_events = partial(calls.append, version)
        monkeypatch.setattr(runtimes, "_too_late", True)
        runtimes._warn_of_telemetry(ort)
        runtimes._warn_of_telemetry(ort)
        assert calls == ([version] if warned else [])
        assert [w for w in recwarn.list if "imported before zipsdk" in str(w.message)][1 * warned :] == []
        recwarn.clear()
