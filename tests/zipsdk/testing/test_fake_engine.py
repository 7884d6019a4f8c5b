"""`zipsdk.testing.FakeEngine`: an engine without a model, for users' tests."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from zipsdk import InputError, ModelSpec, Purifier
from zipsdk.testing import FakeEngine
from zipsdk.types import Engine


def test_a_purifier_takes_it_for_an_engine(rng):
    engine = FakeEngine()
    assert isinstance(engine, Engine) and isinstance(engine.spec, ModelSpec)
    images = rng.integers(0, 256, (2, 40, 50, 3), np.uint8)
    purifier = Purifier(engine, preset="fast", seed=1)
    clean = purifier.run(images)
    assert clean.shape == images.shape and clean.dtype == np.uint8 and (clean != images).any()
    assert (purifier.run(images) == clean).all()
    assert len(engine.calls) == 8 and engine.calls[0] == ((2, 3, 40, 52), 400.0)


def test_it_predicts_finite_noise_of_the_inputs_form(rng):
    x = rng.standard_normal((3, 3, 64, 64)).astype(np.float32)
    eps = FakeEngine()(x, np.full(3, 500, np.float32))
    assert eps.shape == x.shape and eps.dtype == np.float32 and np.isfinite(eps).all() and eps.std() > 0.1
    assert (pickle.loads(pickle.dumps(FakeEngine()))(x, np.full(3, 500, np.float32)) == eps).all()


def test_a_given_spec_is_kept():
    spec = ModelSpec(name="own", image_size=32, multiple=4, min_side=32, max_side=32)
    assert FakeEngine(spec).spec is spec


@pytest.mark.parametrize("spec", ["zip-tiny", FakeEngine(), ModelSpec])
def test_it_takes_specs_only(spec):
    with pytest.raises(InputError, match=r"spec: got .*expected a zipsdk\.ModelSpec or None"):
        FakeEngine(spec)
