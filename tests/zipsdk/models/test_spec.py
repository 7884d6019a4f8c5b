"""What a model file says of itself: what is written is read again, and all else is refused with the file's name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.fakes.engine import make_spec
from zipsdk.errors import ModelError
from zipsdk.models.spec import FORMAT, INT8, PRECISIONS, ModelSpec


def raw(**changes):
    return {"format": FORMAT, **dataclasses.asdict(make_spec()), **changes}


COSINE = {"beta_schedule": "cosine"}
GIVEN = {"beta_schedule": "betas", "timesteps": 3, "betas": (0.1, 0.2, 0.3)}


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


@pytest.mark.parametrize("changes", [COSINE, GIVEN, {"beta_schedule": "scaled_linear", "timesteps": 4000}])
def test_other_noise_schedules_travel_in_format_2(changes):
    spec = make_spec(**changes)
    text = spec.to_json()
    assert json.loads(text)["format"] == 2 and ("betas" in json.loads(text)) == (changes is GIVEN)
    assert ModelSpec.from_json(text, "x") == spec
    refused(text.replace('"format": 2', '"format": 1'), "in model spec format 1, expected 'linear'")


def test_a_linear_schedule_is_written_as_older_versions_read_it():
    """Format 1 has exactly these fields; a reader of that format refuses any other."""
    written = json.loads(make_spec().to_json())
    assert set(written) == {
        "format", "name", "canvas", "multiple", "min_side", "max_side", "channels", "beta_schedule", "beta_start",
        "beta_end", "timesteps", "prediction", "precision", "input_x", "input_t", "output", "source_sha256", "licence",
        "training_data", "transforms", "lam",
    }  # fmt: skip
    assert written["format"] == 1
    assert ModelSpec.from_json(json.dumps(written), "x") == make_spec()


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
        ({"beta_schedule": "sigmoid"}, "got 'sigmoid', wanted beta_schedule in ('linear', 'scaled_linear', 'cosine', "),
        ({"beta_schedule": "betas"}, "got 0, wanted 1000 betas"),
        ({"betas": [0.1] * 1000}, "got 1000, wanted 0 betas"),
        ({"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, 0.1, 0.1]}, "got 3, wanted 2 betas"),
        (
            {"beta_schedule": "betas", "timesteps": 3, "betas": [0.0, 0.1, 1.0]},
            "got [0.0, 1.0], wanted betas in (0, 1)",
        ),
        ({"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, float("nan")]}, "got [nan], wanted betas in (0, 1)"),
        ({"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, "0.1"]}, "betas: got [0.1, '0.1'], wanted tuple"),
        ({"timesteps": 20_000}, "whose alpha-bar stays above 1e-30"),  # the betas of 1000 steps, taken 20,000 times
        ({"beta_start": 0.5}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0.02}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": 1}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": float("nan")}, "0 < beta_start < beta_end < 1"),
        ({"timesteps": 1}, "got 1, wanted timesteps in 2..100000"),
        ({"timesteps": 100_001}, "got 100001, wanted timesteps in 2..100000"),
        ({"precision": "fp8"}, "got 'fp8', wanted precision in"),
        ({"lam": -1}, "got -1, wanted lam in (0, inf]"),
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
        ({"format": 3}, "format 3, wanted 1 to 2"),
        ({"format": 0}, "format 0, wanted 1 to 2"),
        ({"format": "1"}, "format '1', wanted 1 to 2"),
        ({"format": True}, "format True, wanted 1 to 2"),
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
    [({"min_side": 4, "canvas": 4, "max_side": 4}, True), ({"timesteps": 2}, True),
     ({"timesteps": 100_000, "beta_start": 1e-6, "beta_end": 2e-4}, True),
     ({"lam": float("inf")}, True), ({"lam": 0}, False), ({"canvas": 132}, False)],
)  # fmt: skip
def test_the_limits_themselves(changes, fits):
    if fits:
        make_spec(**changes)
    else:
        with pytest.raises(ModelError, match="export the model again"):
            make_spec(**changes)
