"""JSON records of measurements, with the command, the machine and the versions behind them."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from zipsdk._util.atomic import write_atomically
from zipsdk._util.cpus import allowed_cores, cpu_quota

RESULTS = Path(__file__).parents[1] / "results"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit, with "+" if the tree has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # without the records, which the run itself may have changed
        changed = git("status", "--porcelain", "-uno", "--", ":(top)", ":(top,exclude)bench/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _command() -> str:
    """Return the command line, with the names of files but not their folders."""
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).parents[2]
    start = script.name
    if script.is_relative_to(root / "bench"):
        start = f"python -m {'.'.join(script.relative_to(root).with_suffix('').parts)}"
    return f"{start} {shlex.join(Path(word).name if '/' in word else word for word in sys.argv[1:])}".rstrip()


def environment() -> dict[str, Any]:
    """Describe commit, versions, machine, command and time, for every record."""
    packages = ("zipsdk", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnx", "torch")
    return {
        "commit": _commit(),
        "command": _command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {p: v for p in packages if (v := _version(p))},
        "machine": {
            "processor": _processor(),
            "cores": allowed_cores(),
            "cpu_quota": cpu_quota(),
            "system": platform.system(),
        },
    }


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read ``folder/name.json``."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def write(name: str, payload: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``folder/name.json`` atomically; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_atomically(path, (json.dumps({**environment(), **payload}, indent=1) + "\n").encode())
    return path
