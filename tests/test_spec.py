"""What a model file says of itself: what is written is read again, and all else is refused with the file's name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import make_spec

from zipsdk.errors import ModelError
from zipsdk.spec import FORMAT, INT8, PRECISIONS, ModelSpec


def raw(**changes):
    return {"format": FORMAT, **dataclasses.asdict(make_spec()), **changes}


def refused(text, said):
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_json(text, "some/x.onnx")
    message = str(caught.value)
    assert message.startswith("some/x.onnx: ") and said in message, message


def test_what_is_written_is_read_again():
    spec = make_spec(
        beta_start=2e-4, beta_end=0.03, timesteps=500, precision="int8", input_x="a", input_t="b", output="c",
        source_sha256="ab", licence="MIT", training_data="pictures", transforms=("blur4",), lam=float("inf"),
    )  # fmt: skip
    assert ModelSpec.from_json(spec.to_json(), "x") == spec


def test_only_a_name_and_the_sides_are_required():
    wanted = {"format": FORMAT, "name": "n", "canvas": 64, "multiple": 4, "min_side": 64, "max_side": 64}
    spec = ModelSpec.from_json(json.dumps(wanted), "x")
    assert not spec.flexible and spec == ModelSpec(name="n", canvas=64, multiple=4, min_side=64, max_side=64)
    for key in wanted:
        refused(json.dumps({k: v for k, v in wanted.items() if k != key}), "format None" if key == "format" else key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # values that no loop here knows
        ({"prediction": "v"}, "got 'v', wanted prediction = 'epsilon'"),
        ({"channels": 1}, "got 1, wanted channels = 3"),
        ({"channels": 4}, "got 4, wanted channels = 3"),
        ({"beta_schedule": "cosine"}, "got 'cosine', wanted beta_schedule"),
        ({"beta_start": 0.5}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0.02}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": 1}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": float("nan")}, "0 < beta_start < beta_end < 1"),
        ({"timesteps": 1}, "got 1, wanted timesteps in 2..100000"),
        ({"timesteps": 100_001}, "got 100001, wanted timesteps in 2..100000"),
        ({"precision": "fp8"}, "got 'fp8', wanted precision in"),
        ({"lam": -1}, "got -1, wanted lam in (0, inf]"),
        ({"transforms": ["blurr2"]}, "blurr2"),
        # sides
        ({"multiple": 3}, "multiples of 3"),
        ({"multiple": 0}, "multiple >= 1"),
        ({"canvas": 66}, "multiples of 4"),
        ({"min_side": 33}, "multiples of 4"),
        ({"max_side": 127}, "multiples of 4"),
        ({"canvas": 512}, "'canvas': 512, 'max_side': 128}, wanted 1 <= min_side <= canvas <= max_side"),
        ({"canvas": 28}, "min_side <= canvas <= max_side"),
        ({"min_side": 0}, "1 <= min_side"),
        # types
        ({"canvas": "64"}, "canvas: got '64', wanted int"),
        ({"canvas": 64.0}, "canvas: got 64.0, wanted int"),
        ({"canvas": True}, "canvas: got True, wanted int"),
        ({"canvas": None}, "canvas: got None, wanted int"),
        ({"name": 7}, "name: got 7, wanted str"),
        ({"licence": None}, "licence: got None, wanted str"),
        ({"lam": "10"}, "lam: got '10', wanted float"),
        ({"lam": True}, "lam: got True, wanted float"),
        ({"transforms": "blur2"}, "transforms: got 'blur2', wanted tuple"),
        ({"transforms": ["blur2", 2]}, "transforms: got ['blur2', 2], wanted tuple"),
        ({"transforms": None}, "transforms: got None, wanted tuple"),
        ({"timesteps": 1000.0}, "timesteps: got 1000.0, wanted int"),
        ({"beta_start": "0.1"}, "beta_start: got '0.1', wanted float"),
        ({"lam": 10**400}, ", wanted float"),
        # another format, or fields of one
        ({"new": 1}, "unknown fields ['new']"),
        ({"format": 2}, "format 2, wanted 1"),
        ({"format": "1"}, "format '1', wanted 1"),
    ],
)
def test_a_spec_that_this_version_does_not_know_is_refused(changes, said):
    assert ModelSpec.from_json(json.dumps(raw()), "x") == make_spec()  # as it was before the change
    refused(json.dumps(raw(**changes)), said)
    if changes.keys() <= dataclasses.asdict(make_spec()).keys():  # whoever makes one is told the same
        with pytest.raises(ModelError) as caught:
            make_spec(**changes)
        assert str(caught.value).startswith("model spec: ") and said in str(caught.value)


def test_numbers_of_numpy_and_a_list_are_taken():
    spec = make_spec(canvas=np.int64(64), lam=np.float32(10), transforms=["blur2", "gray"])
    assert spec == make_spec() and hash(spec) == hash(make_spec())
    assert ModelSpec.from_json(spec.to_json(), "x.onnx") == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [("not json", "is not JSON"), ("", "is not JSON"), ("[1]", "format 'list'"), ("null", "format 'NoneType'")],
)
def test_what_is_no_spec_at_all_is_refused(text, said):
    refused(text, said)


def test_every_precision_that_a_tool_here_writes_is_known():
    assert [make_spec(precision=p).precision for p in (*PRECISIONS, INT8)] == ["fp32", "fp16", "bf16", "int8"]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({"min_side": 4, "canvas": 4, "max_side": 4}, True), ({"timesteps": 2}, True), ({"timesteps": 100_000}, True),
     ({"lam": float("inf")}, True), ({"lam": 0}, False), ({"canvas": 132}, False)],
)  # fmt: skip
def test_the_limits_themselves(changes, fits):
    if fits:
        make_spec(**changes)
    else:
        with pytest.raises(ModelError, match="export the model again"):
            make_spec(**changes)
