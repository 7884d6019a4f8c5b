"""JSON that is wrong in a value, a key, its nesting or its bytes: specs, sidecars and manifests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index
from tests.fuzz.recipes import Recipe, pack

#: Values as JSON text, because Python's own writer would refuse or change some of them.
VALUES = (
    "null", "true", "false", "0", "1", "-1", "2", "3", "7", "64", "0.5", "-0.0", "1e3", "1e308", "1e999",
    "-1e999", "NaN",
    "Infinity", "1" * 30, "1" * 5000, "9223372036854775808", '""', '"x"', '"linear"', '"epsilon"', '"fp16"',
    '"\\ud800"',
    '"\\u0000"', '"../../etc"', '"a/b"', '"1"', '"é"', "[]", "{}", "[[]]", '["blur2"]', '["blur0"]', '["blur9999"]',
    '["gray","gray"]', '["blur2|gray"]', "[1]", "[null]", '{"a": 1}', "[" * 2000 + "]" * 2000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "[" * 100_000,
)  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value)


def draw_object(draw: Draw, base: dict[str, Any]) -> str:
    """Draw JSON text of an object with one to three members that are wrong."""
    members = [(_json(k), _json(v)) for k, v in base.items()]
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        what = draw(st.sampled_from(("value", "value", "value", "value", "drop", "add", "twice", "inner", "near")))
        i = index(draw, len(members))
        if not members or what == "add":
            members.append(
                (_json(draw(st.sampled_from(("extra", "", "format", "\0", "name")))), draw(st.sampled_from(VALUES)))
            )
        elif what == "value":
            members[i] = members[i][0], draw(st.sampled_from(VALUES))
        elif what == "drop":
            del members[i]
        elif what == "twice":
            members.append((members[i][0], draw(st.sampled_from(VALUES))))
        else:
            value = json.loads(members[i][1]) if len(members[i][1]) < 3000 and "9" * 400 not in members[i][1] else None
            if isinstance(value, dict) and value:
                members[i] = members[i][0], draw_object(draw, value)
            elif isinstance(value, list) and value and what == "inner":
                value[index(draw, len(value))] = draw(st.sampled_from((None, -1, 0, 1.5, "x", [], {}, 10**30, True)))
                members[i] = members[i][0], _json(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                members[i] = (
                    members[i][0],
                    _json(draw(st.sampled_from((value + 1, value - 1, value * 2, -value, value + 0.5)))),
                )
    return "{" + ", ".join(f"{k}: {v}" for k, v in members) + "}"


def _as_bytes(draw: Draw, text: str) -> bytes:
    how = draw(st.sampled_from((*["utf-8"] * 12, "utf-16", "utf-8-sig", "latin-1", "damage", "damage", "cut", "empty")))
    if how == "damage":
        return damage(draw, text.encode())
    if how == "cut":
        return text.encode()[: index(draw, len(text))]
    return b"" if how == "empty" else text.encode(how)


SPEC: dict[str, Any] = {
    "format": 3, "name": "toy", "image_size": 32, "multiple": 4, "min_side": 8, "max_side": 64, "channels": 3,
    "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "timesteps": 1000, "prediction": "epsilon",
    "precision": "fp32", "input_x": "x", "input_t": "t", "output": "eps", "source_sha256": "", "license": "CC0",
    "training_data": "", "transforms": ["blur2", "gray"], "lam": 10.0,
}  # fmt: skip
#: What stands for the size and the hash of the file in a sidecar.
SIZE, SHA256 = -77, "SHA256"
SIDECAR: dict[str, Any] = {
    "format": 1,
    "files": {"model": {"bytes": SIZE, "sha256": SHA256}},
    "export": {"parameters": 5},
}
PLAN: dict[str, Any] = {
    **SIDECAR,
    "spec": SPEC,
    "plan": {"flavor": "rtx", "runtime": "1.7.1", "targets": ["sm86"], "batches": [1, 8], "sizes": [32, 32, 32],
             "platform": "linux_x86_64", "device": "x"},
}  # fmt: skip


def draw_spec(draw: Draw) -> Recipe:
    """Draw the recipe of a model's spec."""
    return {"data": pack(draw_object(draw, SPEC).encode()), "side": draw(st.sampled_from((1, 8, 33, 200)))}


def draw_sidecar(draw: Draw) -> Recipe:
    """Draw the recipe of a sidecar of an ONNX file."""
    return {"data": pack(_as_bytes(draw, draw_object(draw, SIDECAR))), "plan": False}


def draw_plan(draw: Draw) -> Recipe:
    """Draw the recipe of a sidecar of a plan."""
    return {"data": pack(_as_bytes(draw, draw_object(draw, PLAN))), "plan": True}


MANIFEST: tuple[dict[str, Any], ...] = (
    {"batch": ["a.png", "b.png"]},
    {"done": "a.png", "source": "SOURCE/a.png", "size": 1, "mtime_ns": 1},
    {"done": "b.png", "source": "SOURCE/b.png", "size": 1, "mtime_ns": 1},
    {"batch": ["c.png"]},
    {"batch": []},
    {"batch": ["../x.png", "/etc/x.png", "a.png"]},
    {"done": "../x.png", "source": "", "size": 0, "mtime_ns": 0},
)


def draw_manifest(draw: Draw) -> Recipe:
    """Draw edits of a manifest: of each line of a true one "keep", "drop", "cut" or an object; and lines to add."""
    return {
        "lines": [
            draw(st.sampled_from(("keep", "keep", "keep", "keep", "drop", "twice", "cut"))) for _ in range(6)
        ],
        "header": draw(st.sampled_from(("",) * 12 + ("seed", "settings", "replaces", "zipsdk_manifest"))),
        "value": draw(st.sampled_from(VALUES)),
        "add": [
            draw_object(draw,
            draw(st.sampled_from(MANIFEST))) if draw(st.booleans()) else draw(st.sampled_from(VALUES))
            for _ in range(draw(st.sampled_from((0, 1, 2))))
        ],
        "at": draw(st.integers(1, 6)),
        "tail": draw(st.sampled_from(("", "\n", "{", "\0\0\0\n", '{"done": "c.p', "\r\n"))),
        "outputs": draw(st.sampled_from(("keep", "drop", "empty"))),
    }  # fmt: skip
