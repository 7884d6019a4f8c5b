"""Test model specs: valid ones survive a round trip, and others are refused with the file's name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.fakes.engine import make_spec
from zipsdk.errors import ModelError
from zipsdk.models.spec import FORMAT, INT8, PRECISIONS, ModelSpec


def raw(**changes):
    """Return the stored fields of a spec, with changes."""
    return {"format": FORMAT, **dataclasses.asdict(make_spec()), **changes}


COSINE = {"beta_schedule": "cosine"}
GIVEN = {"beta_schedule": "betas", "timesteps": 3, "betas": (0.1, 0.2, 0.3)}


def refused(text, expected):
    """Check that the text is refused with the file's name and `expected` in the message."""
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_json(text, "some/x.onnx")
    message = str(caught.value)
    assert message.startswith("some/x.onnx: ") and expected in message, message


def test_a_spec_survives_a_round_trip():
    spec = make_spec(
        beta_start=2e-4, beta_end=0.03, timesteps=500, precision="int8", input_x="a", input_t="b", output="c",
        source_sha256="ab", license="MIT", training_data="images", transforms=("blur4",), lam=float("inf"),
    )  # fmt: skip
    assert ModelSpec.from_json(spec.to_json(), "x") == spec


@pytest.mark.parametrize("changes", [COSINE, GIVEN, {"beta_schedule": "scaled_linear", "timesteps": 4000}])
def test_other_noise_schedules_survive_a_round_trip(changes):
    spec = make_spec(**changes)
    text = spec.to_json()
    assert json.loads(text)["format"] == 3 and ("betas" in json.loads(text)) == (changes is GIVEN)
    assert ModelSpec.from_json(text, "x") == spec


def test_all_fields_except_empty_betas_are_written():
    written = json.loads(make_spec().to_json())
    assert set(written) == {
        "format", "name", "image_size", "multiple", "min_side", "max_side", "channels", "beta_schedule", "beta_start",
        "beta_end", "timesteps", "prediction", "precision", "input_x", "input_t", "output", "source_sha256", "license",
        "training_data", "transforms", "lam",
    }  # fmt: skip
    assert written["format"] == FORMAT
    assert ModelSpec.from_json(json.dumps(written), "x") == make_spec()


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_are_refused(version):
    refused(json.dumps({**json.loads(make_spec().to_json()), "format": version}), f"format {version}, expected 3")


def test_only_a_name_and_the_sides_are_required():
    expected = {"format": FORMAT, "name": "n", "image_size": 64, "multiple": 4, "min_side": 64, "max_side": 64}
    spec = ModelSpec.from_json(json.dumps(expected), "x")
    assert not spec.flexible and spec == ModelSpec(name="n", image_size=64, multiple=4, min_side=64, max_side=64)
    for key in expected:
        refused(json.dumps({k: v for k, v in expected.items() if k != key}), "format None" if key == "format" else key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # values that the loop does not support
        ({"prediction": "v"}, "got 'v', expected prediction = 'epsilon'"),
        ({"channels": 1}, "got 1, expected channels = 3"),
        ({"channels": 4}, "got 4, expected channels = 3"),
        (
            {"beta_schedule": "sigmoid"},
            "got 'sigmoid', expected beta_schedule in ('linear', 'scaled_linear', 'cosine', ",
        ),
        ({"beta_schedule": "betas"}, "got 0, expected 1000 betas"),
        ({"betas": [0.1] * 1000}, "got 1000, expected 0 betas"),
        ({"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, 0.1, 0.1]}, "got 3, expected 2 betas"),
        (
            {"beta_schedule": "betas", "timesteps": 3, "betas": [0.0, 0.1, 1.0]},
            "got [0.0, 1.0], expected betas in (0, 1)",
        ),
        (
            {"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, float("nan")]},
            "got [nan], expected betas in (0, 1)",
        ),
        ({"beta_schedule": "betas", "timesteps": 2, "betas": [0.1, "0.1"]}, "betas: got [0.1, '0.1'], expected tuple"),
        ({"timesteps": 20_000}, "whose alpha-bar stays above 1e-30"),  # the betas of 1000 steps, taken 20,000 times
        ({"beta_start": 0.5}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0.02}, "0 < beta_start < beta_end < 1"),
        ({"beta_start": 0}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": 1}, "0 < beta_start < beta_end < 1"),
        ({"beta_end": float("nan")}, "0 < beta_start < beta_end < 1"),
        ({"timesteps": 1}, "got 1, expected timesteps in 2..100000"),
        ({"timesteps": 100_001}, "got 100001, expected timesteps in 2..100000"),
        ({"precision": "fp8"}, "got 'fp8', expected precision in"),
        ({"lam": -1}, "got -1, expected lam in (0, inf]"),
        # sides
        ({"multiple": 3}, "multiples of 3"),
        ({"multiple": 0}, "multiple >= 1"),
        ({"image_size": 66}, "multiples of 4"),
        ({"min_side": 33}, "multiples of 4"),
        ({"max_side": 127}, "multiples of 4"),
        ({"image_size": 512}, "'image_size': 512, 'max_side': 128}, expected 1 <= min_side <= image_size <= max_side"),
        ({"image_size": 28}, "min_side <= image_size <= max_side"),
        ({"min_side": 0}, "1 <= min_side"),
        # types
        ({"image_size": "64"}, "image_size: got '64', expected int"),
        ({"image_size": 64.0}, "image_size: got 64.0, expected int"),
        ({"image_size": True}, "image_size: got True, expected int"),
        ({"image_size": None}, "image_size: got None, expected int"),
        ({"name": 7}, "name: got 7, expected str"),
        ({"license": None}, "license: got None, expected str"),
        ({"lam": "10"}, "lam: got '10', expected float"),
        ({"lam": True}, "lam: got True, expected float"),
        ({"transforms": "blur2"}, "transforms: got 'blur2', expected tuple"),
        ({"transforms": ["blur2", 2]}, "transforms: got ['blur2', 2], expected tuple"),
        ({"transforms": None}, "transforms: got None, expected tuple"),
        ({"timesteps": 1000.0}, "timesteps: got 1000.0, expected int"),
        ({"beta_start": "0.1"}, "beta_start: got '0.1', expected float"),
        ({"lam": 10**400}, ", expected float"),
        # another format, or fields of one
        ({"new": 1}, "unknown fields ['new']"),
        ({"format": 4}, "format 4, expected 3"),
        ({"format": 0}, "format 0, expected 3"),
        ({"format": "1"}, "format '1', expected 3"),
        ({"format": True}, "format True, expected 3"),
    ],
)
def test_an_unsupported_spec_is_refused(changes, message):
    assert ModelSpec.from_json(json.dumps(raw()), "x") == make_spec()  # valid before the change
    refused(json.dumps(raw(**changes)), message)
    if changes.keys() <= dataclasses.asdict(make_spec()).keys():  # the constructor raises the same message
        with pytest.raises(ModelError) as caught:
            make_spec(**changes)
        assert str(caught.value).startswith("model spec: ") and message in str(caught.value)


def test_numpy_numbers_and_a_list_are_accepted():
    spec = make_spec(image_size=np.int64(64), lam=np.float32(10), transforms=["blur2", "gray"])
    assert spec == make_spec() and hash(spec) == hash(make_spec())
    assert ModelSpec.from_json(spec.to_json(), "x.onnx") == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [("not json", "is not JSON"), ("", "is not JSON"), ("[1]", "format 'list'"), ("null", "format 'NoneType'")],
)
def test_text_that_is_not_a_spec_is_refused(text, message):
    refused(text, message)


def test_every_precision_of_the_exporter_is_accepted():
    assert [make_spec(precision=p).precision for p in (*PRECISIONS, INT8)] == ["fp32", "fp16", "bf16", "int8"]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({"min_side": 4, "image_size": 4, "max_side": 4}, True), ({"timesteps": 2}, True),
     ({"timesteps": 100_000, "beta_start": 1e-6, "beta_end": 2e-4}, True),
     ({"lam": float("inf")}, True), ({"lam": 0}, False), ({"image_size": 132}, False)],
)  # fmt: skip
def test_limits_are_inclusive(changes, fits):
    if fits:
        make_spec(**changes)
    else:
        with pytest.raises(ModelError, match="export the model again"):
            make_spec(**changes)
