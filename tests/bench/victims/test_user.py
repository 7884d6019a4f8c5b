"""A user's own classifier behind the bench's defenses: asked in batches, prepared for, and held to its word."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.data.datasets import Dataset
from bench.victims import user
from bench.victims.user import Classifier, Preparation
from zipsdk.errors import EngineError, InputError, ModelError

pytestmark = pytest.mark.torch


@pytest.fixture
def data(rng) -> Dataset:
    """64 noisy images."""
    x = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    return Dataset("noise", "test", x, np.zeros(64, np.int64), ("one", "two"))


def test_a_black_box_is_asked_in_batches(data):
    asked = []

    def function(x):
        asked.append(len(x))
        return np.stack([x.mean((1, 2, 3)), 255 - x.mean((1, 2, 3))], -1)

    scores = Classifier(function, {}, batch=30)(data.images)
    assert asked == [30, 30, 4]
    assert scores.dtype == np.float32 and scores[:, 0] == pytest.approx(data.images.mean((1, 2, 3)))
    assert Classifier(function, {})(data.images[:1]).shape == (1, 2)


@pytest.mark.parametrize(
    "answer",
    [np.zeros(4), np.zeros((3, 2)), np.zeros((4, 1)), np.full((4, 2), np.nan), np.full((4, 2), np.inf),
     np.array([["a", "b"]] * 4), np.zeros((4, 2), complex), None],
)  # fmt: skip
def test_a_black_box_that_breaks_its_word_is_told(data, answer):
    with pytest.raises(ModelError):
        Classifier(lambda _: answer, {})(data.images[:4])


@pytest.mark.parametrize("x", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8),
                               np.zeros((0, 8, 8, 3), np.uint8)])  # fmt: skip
def test_a_classifier_takes_images_only(x):
    with pytest.raises(InputError):
        Classifier(lambda p: np.zeros((len(p), 2)), {})(x)


def test_a_users_function(tmp_path, monkeypatch, data):
    (tmp_path / "my_classifier.py").write_text(
        "import torch\n"
        "class Model:\n"
        "    def answer(self, x):\n"
        "        return torch.tensor(x).float().mean((1, 2, 3))[:, None] * torch.tensor([1.0, -1.0])\n"
        "model = Model()\n"
        "number = 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classify = user.load("my_classifier:model.answer")
    assert classify(data.images[:2])[:, 0] == pytest.approx(data.images[:2].mean((1, 2, 3)), rel=1e-5)
    assert classify.info == {"classifier": "my_classifier:model.answer"}
    assert classify.runs == {"engine": "a Python function"}  # what it calls is not known
    wrong = {"my_classifier:number": "int", "my_classifier:none": "none", "no_such_one:f": "no_such",
             "my_classifier": "module:function", ":f": "module:function"}  # fmt: skip
    for name, message in wrong.items():
        with pytest.raises(InputError, match=message):
            user.load(name)


@pytest.fixture
def onnx_model(tmp_path):
    """Makes an ONNX model whose scores are the means of each image's three colors."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def make(shape=("n", 3, None, None), axes=(2, 3), dtype=onnx.TensorProto.FLOAT, inputs=1, name="model.onnx"):
        h = onnx.helper
        ins = [h.make_tensor_value_info(f"x{i}", dtype, shape) for i in range(inputs)]
        out = h.make_tensor_value_info("y", dtype, (shape[0], 3))
        node = h.make_node("ReduceMean", ["x0"], ["y"], axes=axes, keepdims=0)
        model = h.make_model(
            h.make_graph([node], "g", ins, [out]), opset_imports=[h.make_opsetid("", 13)], ir_version=8
        )
        onnx.save(model, tmp_path / name)
        return str(tmp_path / name)

    make.half = onnx.TensorProto.FLOAT16
    return make


def test_a_users_onnx_model(onnx_model, data):
    colors = data.images.mean((1, 2))
    plain = user.load(onnx_model())
    assert plain(data.images) == pytest.approx(colors / 255, rel=1e-5)
    assert plain.info["classifier"] == "model.onnx" and len(plain.info["sha256"]) == 64
    json.dumps(plain.info)
    # beside info, whose hash names the rows of a record
    assert plain.runs["engine"].startswith("onnxruntime ") and plain.runs["providers"] == ["CPUExecutionProvider"]
    assert not plain.runs.keys() & plain.info.keys()
    prepared = Preparation(top=255.0, mean=(100, 110, 120), std=(1, 2, 4))
    want = (colors - [100, 110, 120]) / [1, 2, 4]
    loaded = user.load(onnx_model(), prepared)
    assert loaded(data.images) == pytest.approx(want, rel=1e-4, abs=1e-3)
    # keys of rows are hashes of the description: these are its names at commit f4a6882
    assert list(loaded.info) == ["classifier", "sha256", "layout", "top", "mean", "std"]
    nhwc = replace(prepared, data_format="NHWC")
    path = onnx_model(("n", None, None, 3), (1, 2))
    assert user.load(path, nhwc)(data.images) == pytest.approx(want, rel=1e-4, abs=1e-3)
    half = user.load(onnx_model(dtype=onnx_model.half))
    assert half(data.images) == pytest.approx(colors / 255, rel=2e-3)


def test_an_onnx_model_of_a_fixed_batch(onnx_model, data):
    classify = user.load(onnx_model((5, 3, 32, 32)))
    assert classify(data.images) == pytest.approx(data.images.mean((1, 2)) / 255, rel=1e-5)  # 64 = 12 x 5 + 4
    with pytest.raises(EngineError, match="16, 16"):
        classify(data.images[:, :16, :16])


def test_onnx_models_that_cannot_be_used_are_told(onnx_model, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        user.load(str(tmp_path / "none.onnx"))
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot load"):
        user.load(str(tmp_path / "damaged.onnx"))
    with pytest.raises(ModelError, match="data-format"):
        user.load(onnx_model(("n", 32, 32, 3), (1, 2)))
    with pytest.raises(ModelError, match="expected one"):
        user.load(onnx_model(inputs=2))
    for wrong in ({"data_format": "CHWN"}, {"std": (1, 0, 1)}, {"mean": (1, 2)}):
        with pytest.raises(InputError):
            Preparation(**wrong)


def test_options_name_a_classifier(onnx_model, data):
    parser = argparse.ArgumentParser()
    user.add_options(parser)
    assert user.from_options(parser.parse_args([])) is None
    words = ["--classifier", onnx_model(("n", None, None, 3), (1, 2)), "--data-format", "NHWC", "--top", "255",
             "--mean", "1", "2", "3", "--std", "4", "5", "6"]  # fmt: skip
    got = user.from_options(parser.parse_args(words))
    assert got(data.images) == pytest.approx((data.images.mean((1, 2)) - [1, 2, 3]) / [4, 5, 6], rel=1e-4, abs=1e-3)
