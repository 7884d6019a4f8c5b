"""Test that everything a user holds pickles and deep-copies, with equal results."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.images import noise_images
from zipsdk import Blur, Grayscale, Linear, OneOf, Purifier, errors, images
from zipsdk._util.runtimes import BrokenPackageError

MATRIX = np.random.default_rng(1).standard_normal((2, 4))
LINEAR = Linear.separable(MATRIX, MATRIX)
copied = pytest.mark.parametrize(
    "again", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy], ids=["pickle", "deepcopy"]
)


@copied
@pytest.mark.parametrize(
    "transform", [Blur(4), Grayscale(), LINEAR, Linear(np.eye(3)[:1]), OneOf(Blur(2), [Blur(4), LINEAR])], ids=str
)
def test_transforms_give_the_same_results(transform, again):
    kept = again(transform)
    first = transform.choices[1][1] if isinstance(transform, OneOf) else transform
    other = kept.choices[1][1] if isinstance(kept, OneOf) else kept
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(other.project(x), first.project(x))
    assert str(kept) == str(transform) and repr(kept) == repr(transform)


@copied
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "fast", "transforms": "random", "seed": 3, "lam": float("inf"), "eta": 0.5, "combine": "joint"},
        {"transforms": OneOf(Blur(2), [Grayscale(), Blur(8)]), "steps": 3, "start": 700, "clip_x0": True},
        {"transforms": [LINEAR], "tile_size": 64, "cuda_graph": False, "preset": "fast"},
    ],
    ids=["defaults", "random", "OneOf", "Linear"],
)
def test_purifiers_give_the_same_results(options, again):
    purifier = Purifier(FakeEngine(), **options)
    kept = again(purifier)
    assert kept.info == purifier.info and kept.table == purifier.table
    if "Linear" not in repr(purifier.settings):  # Linear has no equality
        assert again(purifier.settings) == kept.settings == purifier.settings
    batch = noise_images(3)
    np.testing.assert_array_equal(kept.run(batch, seed=5), purifier.run(batch, seed=5))


@copied
def test_specs_and_readers_are_kept(again):
    spec = make_spec(beta_schedule="betas", timesteps=3, betas=(0.1, 0.2, 0.3))
    assert again(spec) == spec
    batch = noise_images(2).astype(np.float32) / 255
    read, restore = again(images.read(batch))
    np.testing.assert_array_equal(restore([image.rgb for image in read]), batch)


@copied
def test_engines_reopen_their_file(again):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=2, precision="int8")
    other = again(engine)
    assert (other.path, other.info, other.spec) == (engine.path, engine.info, engine.spec) and other is not engine
    x, t = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32), np.float32([400, 0])
    np.testing.assert_array_equal(other(x, t), engine(x, t))


def test_a_shallow_copy_shares_the_engine():
    purifier = Purifier(FakeEngine(), seed=2)
    assert copy.copy(purifier).engine is purifier.engine
    assert copy.copy(purifier).settings == purifier.settings


def error_classes():
    found = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, errors.ZipSdkError)]
    return [*found, BrokenPackageError]


@copied
@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_errors_keep_message_and_attributes(cls, again):
    count = {errors.MissingDependencyError: 3, BrokenPackageError: 3}.get(cls, 1)
    error = cls(*["onnxruntime", "cpu", "too old"][:count])
    other = again(error)
    assert type(other) is cls and str(other) == str(error) and vars(other) == vars(error)
    assert count == 1 or vars(error)["package"] == "onnxruntime"
