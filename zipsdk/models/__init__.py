"""The models that come with zipsdk."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def list_models() -> list[str]:
    """Names of the bundled models."""
    return sorted(p.stem for p in _HERE.glob("*.onnx"))


def resolve(name: str) -> Path | None:
    """The file of a bundled model, or None where there is none of that name."""
    return _HERE / f"{name}.onnx" if name in list_models() else None
