"""Import optional packages, explain what is wrong with broken ones, and keep ONNX Runtime's telemetry off.

ONNX Runtime from 1.29 starts a telemetry thread at its import. The thread stores a device id and the program's path in
a database under the user's cache folder, contacts a collector, and makes a forked child hang at its end.
Source: Privacy.md in the onnxruntime wheel; system calls of 1.32 traced on Linux.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from zipsdk.errors import MissingDependencyError

#: ONNX Runtime reads this variable once, at its import: 1, true, yes or on turn telemetry off.
TELEMETRY = "ORT_DISABLE_TELEMETRY"
#: The first version with telemetry on by default outside Windows.
_TELEMETRY_SINCE = (1, 29)


@dataclass(frozen=True)
class Package:
    """A package that zipsdk imports on demand.

    Attributes:
        extra: the extra of zipsdk that installs it; "" for one that zipsdk always needs.
        oldest: the oldest version that zipsdk supports.
        names: attributes that it must have.
        distribution: its name for pip, if different.
    """

    extra: str
    oldest: str
    names: tuple[str, ...]
    distribution: str = ""


_TENSORRT = (
    "Builder", "BuilderFlag", "ILogger", "NetworkDefinitionCreationFlag", "OnnxParser", "Runtime", "__version__",
)  # fmt: skip
PACKAGES = {
    "numpy": Package("", "2.0", ("ndarray", "__version__")),
    "PIL": Package("", "11.2", ("__version__",), "pillow"),
    "tqdm": Package("", "4.66", ("tqdm",)),
    "onnxruntime": Package(
        "cpu", "1.20", ("InferenceSession", "RunOptions", "SessionOptions", "get_available_providers", "__version__")
    ),
    "onnx": Package("gpu", "1.18", ("load", "__version__")),
    "tensorrt": Package("gpu", "10", _TENSORRT),
    "tensorrt_rtx": Package("rtx", "1.2", _TENSORRT, "tensorrt-rtx"),
    "pycuda": Package("gpu", "2024.1", ("VERSION_TEXT",)),
    "pycuda.driver": Package("gpu", "2024.1", ("Device", "Event", "Stream", "init", "mem_alloc", "pagelocked_zeros")),
    "torch": Package("export", "2.9", ("from_numpy", "nn", "no_grad", "__version__")),
}


class BrokenPackageError(MissingDependencyError):
    """An optional package exists but cannot be used; the message names its location and the command that repairs it.

    Attributes:
        why: what was found and what was expected.
        fix: the command to run, or the file to rename.
    """

    def __init__(self, package: str, why: str, fix: str):
        # skip MissingDependencyError's constructor, whose message says that the package is not installed
        super(MissingDependencyError, self).__init__(f"{package}: {why}; {fix}")
        self.package, self.why, self.fix = package, why, fix

    def __reduce__(self) -> tuple[object, ...]:
        return BrokenPackageError, (self.package, self.why, self.fix)


def load(name: str) -> Any:
    """Import an optional package and check that it is complete.

    All imports of ONNX Runtime in zipsdk use this function, so that telemetry is off before it starts.

    Args:
        name: a key of `PACKAGES`.

    Returns:
        The module.

    Raises:
        MissingDependencyError: the package is not installed.
        BrokenPackageError: the package is a folder without ``__init__.py``, is shadowed by a file of the same name,
            raises at import, or is too old and lacks names that zipsdk uses.
    """
    if name == "onnxruntime":
        disable_telemetry()
    top = name.partition(".")[0]
    module = _import(top, name)
    _check_place(module, top, name)
    if name != top:
        module = _import(name, name)
    missing = [n for n in PACKAGES[name].names if not hasattr(module, n)]
    if missing:
        raise _lacking(module, name, missing)
    if name == "onnxruntime":
        _warn_of_telemetry(module)
    return module


def required(name: str) -> str:
    """Return the command that installs a package of `PACKAGES`."""
    package = PACKAGES[name]
    return f"pip install 'zipsdk[{package.extra}]'" if package.extra else f"pip install {package.distribution or name}"


_too_late = False  # ONNX Runtime was imported before zipsdk, with the variable unset


def disable_telemetry() -> None:
    """Turn ONNX Runtime's telemetry off for this process and its children; keep a value that the user set.

    An empty variable counts as unset. `import zipsdk` calls this too, for programs that import ONNX Runtime later.
    """
    global _too_late
    if not os.environ.get(TELEMETRY, "").strip():
        _too_late = "onnxruntime" in sys.modules
        os.environ[TELEMETRY] = "1"


def telemetry_is_off() -> bool:
    """Tell whether the variable turns telemetry off, by the values that ONNX Runtime 1.32 accepts."""
    return os.environ.get(TELEMETRY, "").strip().lower() in ("1", "true", "yes", "on")


def _warn_of_telemetry(ort: Any) -> None:
    """Warn once if the program imported ONNX Runtime before zipsdk, which started telemetry for good."""
    global _too_late
    if not _too_late:
        return
    _too_late = False
    if _version(ort) >= _TELEMETRY_SINCE:
        if hasattr(ort, "disable_telemetry_events"):
            ort.disable_telemetry_events()  # fewer events; the thread, its files and its connections stay
        warnings.warn(
            f"onnxruntime was imported before zipsdk with its telemetry on, which cannot be turned off afterwards; "
            f"import zipsdk first, or set {TELEMETRY}=1 (0 keeps telemetry on and hides this warning)",
            stacklevel=5,
        )


def _version(module: Any) -> tuple[int, ...]:
    """Return the first two numbers of a module's version, () where there are none."""
    parts = str(getattr(module, "__version__", "")).split(".")[:2]
    return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else ()


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as e:  # broken packages raise anything, and a script of that name may exit
        text = (str(e).strip().split("\n")[0] or type(e).__name__)[:300]
        place = _place(module)
        if isinstance(e, ModuleNotFoundError) and (place is None or e.name != module):
            # the package or one of its dependencies; pip installs both
            raise _missing(name, text) from e
        _check_file(place, module, name)
        raise BrokenPackageError(
            name, f"importing {place or module} raised {type(e).__name__} ({text})", reinstall(name)
        ) from e


def _missing(name: str, why: str) -> MissingDependencyError:
    package = PACKAGES[name]
    if package.extra:
        return MissingDependencyError(name.partition(".")[0], package.extra, why)
    return BrokenPackageError(name, f"it is not usable here ({why})", required(name))


def _place(module: str) -> Path | None:
    """Return the file that `module` would be imported from, or None."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a parent that fails to load, or a module put into sys.modules by hand
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def _check_place(module: Any, top: str, name: str) -> None:
    file = getattr(module, "__file__", None)
    if file is None and hasattr(module, "__path__"):
        folders = " and ".join(dict.fromkeys(map(str, module.__path__)))
        raise BrokenPackageError(
            name,
            f"got the folder {folders} without __init__.py, expected an installed package",
            f"rename or delete this folder, then {reinstall(name)}",
        )
    if file is not None and not hasattr(module, "__path__"):
        _check_file(Path(file), top, name)


def _check_file(place: Path | None, module: str, name: str) -> None:
    """Refuse a single file that shadows a package: every top-level name of `PACKAGES` is a folder."""
    if place is not None and "." not in module and place.name == f"{module}.py":
        raise BrokenPackageError(
            name, f"got the file {place}, expected the installed package, which this file hides", "rename this file"
        )


def _lacking(module: Any, name: str, missing: list[str]) -> BrokenPackageError:
    version = getattr(module, "__version__", None)
    place = getattr(module, "__file__", None)
    lacks = f"without {', '.join(missing)}"
    if version is None and "__version__" in PACKAGES[name].names:
        return BrokenPackageError(
            name,
            f"got {place or 'a module'} {lacks}, expected the installed package",
            f"rename this folder if it is your own, else {reinstall(name)}",
        )
    return BrokenPackageError(
        name,
        f"got version {version or 'unknown'} {lacks}, expected {PACKAGES[name].oldest} or newer",
        required(name).replace("pip install", "pip install --upgrade"),
    )


def reinstall(name: str) -> str:
    """Return the command that reinstalls a package of `PACKAGES`."""
    top = name.partition(".")[0]
    try:
        # only after a failure, because reading pip's records of all packages is slow
        installed = sorted(set(metadata.packages_distributions().get(top, [])))
    except Exception:  # unreadable records
        installed = []
    if not installed:
        return required(name)
    if len(installed) > 1:  # onnxruntime and onnxruntime-gpu overwrite each other
        return f"pip uninstall {' '.join(installed)}, then {required(name)}"
    return f"pip install --force-reinstall --no-deps {installed[0]}"


disable_telemetry()  # at `import zipsdk`, because the program may import ONNX Runtime before `load` does
