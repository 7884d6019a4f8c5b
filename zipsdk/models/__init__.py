"""Find the models that are installed with zipsdk.

spec.py, noise_schedule.py   what a model file says about its model
sidecar.py                   the hashes beside a model file
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def list_models() -> list[str]:
    """Return the names of the bundled models."""
    return sorted(p.stem for p in _HERE.glob("*.onnx"))


def resolve(name: str) -> Path | None:
    """Return the file of a bundled model, None if no bundled model has this name."""
    return _HERE / f"{name}.onnx" if name in list_models() else None
