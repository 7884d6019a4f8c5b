"""Test the options of `Purifier` and `load_engine` that are strings, and all pairs of options."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine
from tests.helpers.images import noise_images
from zipsdk import Blur, InputError, Purifier
from zipsdk.models import resolve
from zipsdk.transforms import USUAL

CHANGES = {
    "preset": "fast", "transforms": [Blur(4)], "lam": 3.0, "steps": 7, "start": 200, "eta": 0.5, "combine": "joint",
    "seed": 5, "clip_x0": True, "tile_size": 64, "cuda_graph": False,
}  # fmt: skip


def settings(**options):
    return dict(vars(Purifier(FakeEngine(), **options).settings))


@pytest.mark.parametrize(
    "pair", [*itertools.combinations(CHANGES, 1), *itertools.combinations(CHANGES, 2)], ids="+".join
)
def test_an_option_changes_no_other_one(pair):
    given = {name: CHANGES[name] for name in pair}
    expected = settings()
    if given.pop("preset", None):
        expected |= {"steps": 4, "start": 400}
    expected |= given
    if "transforms" in given:
        expected["transforms"] = (Blur(4),)
    assert settings(**{name: CHANGES[name] for name in pair}) == expected


def test_the_preset_follows_from_the_model_which_denoises():
    assert settings() == settings(preset=None) == settings(preset="paper")
    assert (settings()["steps"], settings()["start"]) == (20, None)


def test_random_draws_one_of_the_usual_transforms_for_each_image():
    purifier = Purifier(FakeEngine(), "random", steps=1, start=400, seed=3, clip_x0=True)
    assert purifier.info["transforms"] == USUAL == Purifier(FakeEngine(), " Random").info["transforms"]
    images = noise_images(64)
    out = purifier.run(images)
    drawn = Counter()
    for i, choice in enumerate(USUAL.split("|")):
        alone = Purifier(FakeEngine(), choice, steps=1, start=400, seed=3, clip_x0=True).run(images)
        drawn[i] = sum(np.array_equal(a, b) for a, b in zip(out, alone, strict=True))
    assert sum(drawn.values()) == 64 and min(drawn.values()) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fst"}, "preset: got 'fst', expected one of 'paper', 'fast'"),
        ({"combine": "sum"}, "combine: got 'sum', expected 'mean' .* or 'joint'"),
        ({"transforms": "median3"}, r"transforms: got 'median3', expected blurN .*or \"random\""),
        ({"transforms": "blur2+median3"}, r"transforms: got 'median3' in 'blur2\+median3', expected"),
        ({"cuda_graph": "no"}, "cuda_graph: got 'no', expected True or False"),
        ({"device": "cpu"}, "got FakeEngine with device, threads or precision"),
        ({"threads": 2}, "pass them to zipsdk.load_engine"),
        ({"precision": "fp32"}, "apply to a model's name or path"),
    ],
)
def test_wrong_strings_fail_at_run_time_too(options, message):
    with pytest.raises(InputError, match=message):
        Purifier(FakeEngine(), **options)


def test_a_wrong_data_format_fails_before_anything_runs():
    engine = FakeEngine()
    with pytest.raises(InputError, match="data_format: got 'CHW'"):
        Purifier(engine).run(noise_images(1), data_format="CHW")  # type: ignore[call-overload]
    assert not engine.calls


# ---- device, threads and precision of a model that is opened


@pytest.fixture(autouse=True)
def _runtime(request):
    if "zip_tiny" in request.node.name:
        pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")


def test_zip_tiny_is_opened_with_the_options_of_the_purifier():
    info = Purifier("zip-tiny", device="cpu", threads=1, precision="int8").info
    assert (info["model"], info["precision"], info["threads"]) == ("zip-tiny-int8", "int8", 1)
    with pytest.raises(InputError, match="device: got 'gpu'"):
        Purifier("zip-tiny", device="gpu")

    class OfAnotherLibrary:
        def __fspath__(self):
            return str(resolve("zip-tiny"))

    assert Purifier(OfAnotherLibrary(), device="cpu", threads=1).info["model"] == "zip-tiny"


def test_a_precision_picks_a_variant_of_zip_tiny_or_equals_the_file():
    def opened(model, precision):
        return zipsdk.load_engine(model, device="cpu", threads=1, precision=precision)

    assert [opened("zip-tiny", p).path.stem for p in (None, "fp32", "int8")] == [
        "zip-tiny",
        "zip-tiny",
        "zip-tiny-int8",
    ]
    int8 = opened("zip-tiny-int8", "int8").path
    assert opened(int8, None).spec.precision == opened(int8, "int8").spec.precision == "int8"
    for model, precision, has in (
        ("zip-tiny", "fp16", "fp32"),
        (int8, "fp32", "int8"),
        ("zip-tiny-int8", "bf16", "int8"),
    ):
        with pytest.raises(InputError, match=rf"precision: got '{precision}' for .*zip-tiny.*, which is {has}; leave"):
            opened(model, precision)
    for wrong in ("half", 16, ["fp16"]):
        with pytest.raises(InputError, match=r"precision: got .* expected one of 'fp32', 'fp16', 'bf16', 'int8'"):
            opened("zip-tiny", wrong)


def test_opening_zip_tiny_is_logged(caplog):
    with caplog.at_level("INFO", logger="zipsdk"):
        engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=1)
    (record,) = caplog.records
    assert record.getMessage() == f"opened {engine.path} as {engine!r}" and record.name == "zipsdk.engines"


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.plan"])
def test_a_folder_is_not_a_model(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(zipsdk.ModelError, match=rf"{name}: got a folder, expected an \.onnx or \.plan file"):
        zipsdk.load_engine(tmp_path / name)
