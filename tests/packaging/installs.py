"""Install a wheel in a fresh virtual environment of each Python, outside the checkout, and use it.

python -m tests.packaging.installs dist/*.whl            # every Python that is found
python -m tests.packaging.installs dist/*.whl --lowest   # with the oldest packages that pyproject.toml allows

It needs the standard library only. `smoke` is what runs in each environment.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
VERSIONS = tuple(f"3.{minor}" for minor in range(10, 15))


def pythons() -> dict[str, Path]:
    """Find an interpreter of each supported version, by version: this one, those of pyenv and on the PATH."""
    found = {f"3.{sys.version_info.minor}": Path(sys.executable)}
    for version in VERSIONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        on_path = shutil.which(f"python{version}")
        for python in (*pyenv[::-1], *([Path(on_path)] if on_path else [])):
            works = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
            if version not in found and works:
                found[version] = python
    return {version: found[version] for version in VERSIONS if version in found}


def lowest() -> list[str]:
    """Return pyproject.toml's lower bounds of what [cpu] installs as exact versions for pip."""
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.findall(r"^(?:dependencies|cpu) = (\[.*\])$", text, re.MULTILINE)
    wanted = [requirement for line in lines for requirement in json.loads(line)]
    return [f"{requirement.replace('>=', '==')}.*" for requirement in wanted]


def clean_environment() -> dict[str, str]:
    """Return the environment without what would make an interpreter find the checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


def run(words: list[Any], folder: Path) -> str:
    """Run a command outside the checkout; return its standard output.

    Raises:
        RuntimeError: it failed; the message has its last lines.
    """
    done = subprocess.run(list(map(str, words)), cwd=folder, env=clean_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, words))}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def install(python: Path, folder: Path, requirements: list[str]) -> Path:
    """Create a virtual environment in a folder, install into it, and return its interpreter."""
    run([python, "-m", "venv", folder / "venv"], folder)
    own = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([own, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements], folder)
    return own


def smoke(python: Path, folder: Path, wheel: Path, pins: list[str]) -> dict[str, Any]:
    """Install a wheel with [cpu], use it, and return the versions that were used."""
    own = install(python, folder, [f"{wheel.resolve()}[cpu]", *pins])
    report: dict[str, Any] = json.loads(run([own, SMOKE], folder).splitlines()[-1])
    return report


def main() -> int:
    """Run the command."""
    p = argparse.ArgumentParser(prog="python -m tests.packaging.installs", description=str(__doc__).partition("\n")[0])
    p.add_argument("wheel", type=Path)
    p.add_argument("--lowest", action="store_true", help="install the oldest packages that pyproject.toml allows")
    p.add_argument(
        "--python", nargs="+", metavar="3.N", choices=VERSIONS, help="versions (default: all that are found)"
    )
    args = p.parse_args()
    code = 0
    for version, python in pythons().items():
        if args.python and version not in args.python:
            continue
        with tempfile.TemporaryDirectory(prefix="zipsdk-") as folder:
            try:
                print(json.dumps(smoke(python, Path(folder), args.wheel, lowest() if args.lowest else [])), flush=True)
            except RuntimeError as e:
                code = 1
                print(f"Python {version}: {e}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
