"""The command ``zipsdk doctor``: check what this machine can run."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from zipsdk._util import cpus
from zipsdk._util.runtimes import TELEMETRY, BrokenPackageError, load, reinstall, required, telemetry_is_off
from zipsdk.cli.args import add_command, add_json
from zipsdk.cli.console import print_output
from zipsdk.engines import load_engine
from zipsdk.engines.tensorrt.flavor import FLAVORS, compute_capabilities, runtime
from zipsdk.gpu.device import DRIVER, open_device
from zipsdk.gpu.fatbin import build_info
from zipsdk.models import list_models

_EPILOG = """\
examples:
  zipsdk doctor
  zipsdk doctor --json

exit code 3: no engine runs on this machine
"""


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    about = "check what this machine can run, and show how to install what is missing"
    add_json(add_command(commands, "doctor", about, _EPILOG, run))


def run(args: argparse.Namespace) -> int:
    """Print the checks; return the exit code."""
    lines, usable = checks()
    if args.json:
        print_output(json.dumps({"runs": usable, "checks": [dataclasses.asdict(c) for c in lines]}, indent=1))
    else:
        width = max(len(c.name) for c in lines)
        for c in lines:
            print_output(f"{'OK' if c.ok else 'MISSING':<7}  {c.name:<{width}}  {c.detail}")
            if c.fix:
                print_output(f"{'':{width + 11}}-> {c.fix}")
        print_output(
            "at least one engine runs on this machine"
            if usable
            else "no engine runs on this machine: see the lines above"
        )
    return 0 if usable else 3


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: of the component.
        ok: whether it is usable.
        detail: the version found, or the reason why it is not usable.
        fix: how to make it usable.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def checks() -> tuple[list[Check], bool]:
    """Return all lines, and whether at least one engine runs on this machine. Raises nothing."""
    import zipsdk

    lines = [
        Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("zipsdk", True, zipsdk.__version__),
        Check("CPU", True, cpus.describe()),
        _package("numpy"),
        _package("PIL", "Pillow"),
    ]
    runtime, *rest = _onnxruntime()
    driver = _cuda()
    plans, kernels, loop = list(_tensorrt(driver.ok)), _kernels(), _device(driver.ok)
    lines += [runtime, *rest, driver, *plans, kernels, loop]
    tests = list(_self_tests())
    # without a bundled model the runtime cannot be tested
    onnx = any(t.ok for t in tests) if tests else runtime.ok
    # plans run without ONNX Runtime, and no plan is bundled for a test
    return lines + tests, onnx or (any(p.ok for p in plans) and kernels.ok and loop.ok)


def _reason(e: BaseException) -> str:
    return (str(e).strip().split("\n")[0] or type(e).__name__)[:200]


def _unusable(name: str, e: Exception, fix: str) -> Check:
    """Return the line for a package that cannot be imported; a BrokenPackageError says how to repair it."""
    if isinstance(e, BrokenPackageError):
        return Check(name, False, e.why.split("\n")[0], e.fix)
    return Check(name, False, _reason(e).removesuffix(f": {fix}"), fix)


def _package(module: str, name: str = "") -> Check:
    try:
        found = load(module)
    except Exception as e:
        return _unusable(name or module, e, required(module))
    version = getattr(found, "__version__", None) or getattr(found, "VERSION_TEXT", "version unknown")
    return Check(name or module, True, str(version))


def _onnxruntime() -> Iterator[Check]:
    package = _package("onnxruntime")
    if not package.ok:
        yield package
        return
    try:
        available = load("onnxruntime").get_available_providers()
    except Exception as e:
        yield Check(
            "onnxruntime",
            False,
            f"{package.detail} does not list its providers ({_reason(e)})",
            reinstall("onnxruntime"),
        )
        return
    telemetry = "off" if telemetry_is_off() else f"on if this version has it, because {TELEMETRY} enables it"
    yield Check("onnxruntime", True, f"{package.detail} with {', '.join(available)}; telemetry {telemetry}")
    if "CUDAExecutionProvider" in available:
        yield Check("onnxruntime CUDA", True, "built in; loaded when a model is opened with --device cuda")
    else:
        fix = "pip uninstall onnxruntime; pip install 'zipsdk[gpu]'"
        yield Check("onnxruntime CUDA", False, "this onnxruntime was built without CUDA", fix)


def _cuda() -> Check:
    name, fix = "CUDA driver", "install the NVIDIA driver; it is not on PyPI"
    try:
        cuda = ctypes.CDLL(DRIVER)
        if status := cuda.cuInit(0):
            return Check(name, False, f"cuInit returned error {status} (100: no GPU is visible)", fix)
        version, count = ctypes.c_int(), ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        cuda.cuDeviceGetCount(ctypes.byref(count))
        gpus = []
        for i in range(count.value):
            text = ctypes.create_string_buffer(256)
            cuda.cuDeviceGetName(text, len(text), i)
            gpus.append(text.value.decode(errors="replace"))
    except (OSError, AttributeError) as e:
        return Check(name, False, _reason(e), fix)
    number = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Check(name, bool(gpus), f"{number}, {', '.join(gpus) or 'no GPU'}", "" if gpus else fix)


def _capability() -> int:
    """Return the compute capability of the first GPU times ten; 0 if the driver does not report it."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        cuda = ctypes.CDLL(DRIVER)
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        if cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0) or cuda.cuDeviceGetAttribute(
            ctypes.byref(minor), 76, 0
        ):
            return 0
    except (OSError, AttributeError):
        return 0
    return 10 * major.value + minor.value


def _tensorrt(driver: bool) -> Iterator[Check]:
    for flavor in FLAVORS.values():
        name, fix = flavor.name, f"pip install 'zipsdk[{flavor.extra}]'"
        try:
            trt = runtime(flavor.key)
            known = compute_capabilities(trt) if flavor.key == "rtx" else []
        except Exception as e:
            yield _unusable(name, e, fix)
            continue
        builds = f"{trt.__version__} builds plans for {', '.join(f'sm{n}' for n in known) or 'the installed GPU'}"
        if driver:
            number = _capability()
            if known and number and number not in known:
                fix = "use pip install 'zipsdk[gpu]' on this GPU"
                yield Check(name, False, f"{builds}; this GPU is sm{number}", fix)
            else:
                yield Check(name, True, builds)
        elif flavor.key == "rtx":
            yield Check(name, False, f"{builds}; no GPU to run them", "see CUDA driver above")
        else:
            yield Check(
                name, False, f"{trt.__version__} needs a GPU to build and to run plans", "see CUDA driver above"
            )


def _kernels() -> Check:
    try:
        built = build_info()
        sass = ", ".join(f"sm{n}" for n in built["sass"])
        detail = f"compiled for {sass} and newer, by nvcc {built['nvcc']}"
    except Exception as e:  # EngineError without kernels, any error from a damaged description
        return Check("CUDA kernels", False, _reason(e).split(";")[0], "install zipsdk with nvcc on the PATH")
    return Check("CUDA kernels", True, detail)


def _device(driver: bool) -> Check:
    """Check whether the sampling loop can run on the GPU."""
    if not driver:
        package = _package("pycuda")
        detail = f"pycuda {package.detail}, but there is no GPU" if package.ok else package.detail
        return Check("loop on the GPU", False, detail, package.fix or "see CUDA driver above")
    try:
        device = open_device(0)
    except Exception as e:
        return _unusable("loop on the GPU", e, "pip install 'zipsdk[gpu]'")
    number = 10 * device.capability[0] + device.capability[1]
    return Check("loop on the GPU", True, f"{device.name} (sm{number}), {device.total_memory / 2**30:.1f} GiB")


def _self_tests() -> Iterator[Check]:
    """Run one step of each bundled model."""
    for model in list_models():
        name = f"model {model}"
        try:
            engine = load_engine(model)
            side = engine.spec.image_size
            x = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
            start = time.perf_counter()
            eps = engine(x, np.full(1, engine.spec.timesteps // 2, np.float32))
            seconds = time.perf_counter() - start
        except Exception as e:
            yield Check(name, False, _reason(e), "see the lines above")
            continue
        ok = eps.shape == x.shape and bool(np.isfinite(eps).all())
        detail = f"one step of {side}x{side} in {1000 * seconds:.0f} ms" if ok else "its output is not finite"
        yield Check(name, ok, detail, "" if ok else "install zipsdk again: the model file is damaged")
