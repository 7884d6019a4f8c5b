"""Read the sidecar of a plan: where the plan can run, and the hash of its file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.errors import ModelError
from zipsdk.models.sidecar import check_sidecar, sidecar_path
from zipsdk.models.spec import ModelSpec


def read_plan(path: Path) -> dict[str, Any]:
    """Check a plan against its sidecar; return the sidecar's content, with "spec" as a `ModelSpec`.

    Raises:
        ModelError: the sidecar is missing, invalid, or of another file.
    """
    record = check_sidecar(path)
    if record is None:
        raise ModelError(
            f"{path}: got a plan without {sidecar_path(path).name}; a plan is code and is opened only if its hash is "
            "known: copy both files, or build it again with zipsdk build"
        )
    plan, spec = record.get("plan"), record.get("spec")
    kinds = {"flavor": str, "runtime": str, "targets": list, "batches": list, "sizes": list}
    if not isinstance(plan, dict) or not isinstance(spec, dict):
        raise ModelError(f"{sidecar_path(path)}: got no record of a plan; build it again with zipsdk build")
    for key, kind in kinds.items():
        if not isinstance(plan.get(key), kind):
            raise ModelError(
                f"{sidecar_path(path)}: {key}: got {plan.get(key)!r}, expected a {kind.__name__}; build again"
            )
    batches, targets = plan["batches"], plan["targets"]
    whole = bool(batches) and all(type(b) is int and b > 0 for b in batches)
    if plan["flavor"] not in FLAVORS or not whole or batches != sorted(set(batches)):
        raise ModelError(
            f"{sidecar_path(path)}: got flavor {plan['flavor']!r} and batches {batches}, expected one of "
            f"{', '.join(FLAVORS)} and rising integers; build it again"
        )
    if not targets or not all(isinstance(t, str) and re.fullmatch(r"sm\d+", t) for t in targets):
        raise ModelError(
            f"{sidecar_path(path)}: targets: got {targets}, expected names such as ['sm86']; build it again"
        )
    return {**record, "spec": ModelSpec.from_json(json.dumps(spec), str(sidecar_path(path)))}
