"""The TensorRT-RTX plan that the tests of engines share, and its sidecar."""

from __future__ import annotations

import json
from pathlib import Path

from zipsdk.models.sidecar import sidecar_path

#: Largest batches of the plan's profiles; its only image size is 32.
BATCHES = (1, 4)


def edit_sidecar(path: Path, section: str, **changes: object) -> None:
    """Change fields in a section of the sidecar: "plan" or "spec"."""
    record = json.loads(sidecar_path(path).read_text())
    record[section].update(changes)
    sidecar_path(path).write_text(json.dumps(record))
