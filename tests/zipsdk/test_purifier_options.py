"""Test the options of `Purifier`: presets, defaults, checks and `info`."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.images import noise_images
from zipsdk import Blur, Grayscale, InputError, OneOf, Purifier
from zipsdk.models.spec import FORMAT, ModelSpec


def test_a_preset_is_two_defaults_and_explicit_values_change_nothing_else():
    def info(**options):
        made = Purifier(FakeEngine(), **options).info
        return made["steps"], made["start"], made["transforms"], made["lam"]

    assert info() == info(preset="paper") == (20, None, "blur2+gray", 10)
    assert info(preset="fast") == (4, 400, "blur2+gray", 10)
    assert info(preset="fast", start=400) == info(preset="fast")
    assert info(preset="fast", steps=4) == info(preset="fast")
    assert info(preset="fast", start=200) == (4, 200, "blur2+gray", 10)
    assert info(preset="fast", steps=6) == (6, 400, "blur2+gray", 10)
    assert info(start=400) == (20, 400, "blur2+gray", 10)
    assert info(steps=7) == (7, None, "blur2+gray", 10)
    assert info(preset="fast", transforms="blur4", lam=3) == (4, 400, "blur4", 3)


def test_info_differs_between_settings():
    settings = [{}, {"tile_size": 64}, {"clip_x0": True}, {"eta": 0.5}, {"combine": "joint"}, {"steps": 10}]
    infos = [json.dumps(Purifier(FakeEngine(), "blur2+gray", seed=0, **s).info) for s in settings]
    assert len(set(infos)) == len(infos)


def test_presets_set_the_visited_steps():
    def steps_of(**options):
        engine = FakeEngine()
        Purifier(engine, "blur2", **options).run(noise_images(1))
        return [t for _, t in engine.calls]

    assert steps_of() == list(range(950, -1, -50))
    assert steps_of(preset="fast") == [400, 267, 133, 0]
    assert steps_of(start=400, steps=9) == steps_of(preset="fast", steps=9) == list(range(400, -1, -50))
    assert steps_of(start=200, steps=4) == [200, 133, 67, 0]
    assert len(steps_of(steps=7)) == 7


@pytest.mark.parametrize(("timesteps", "fast"), [(1000, [400, 267, 133, 0]), (4000, [1600, 1067, 533, 0]),
                                                  (250, [100, 67, 33, 0])])  # fmt: skip
def test_a_preset_starts_at_the_same_noise_for_any_number_of_time_steps(timesteps, fast):
    scale = 1000 / timesteps  # as in models with more time steps
    spec = make_spec(timesteps=timesteps, beta_start=1e-4 * scale, beta_end=0.02 * scale)
    steps = Purifier(FakeEngine(spec), preset="fast").table.steps
    assert [s.t for s in steps] == fast
    assert steps[0].ab == pytest.approx(0.194, abs=0.01)
    given = Purifier(FakeEngine(spec), preset="fast", start=200).table.steps
    assert given[0].t == 200  # an explicit start is not converted


def test_fast_starts_at_the_same_noise_on_a_cosine_schedule():
    """alpha-bar is 0.194 at step 400 of the linear schedule, and 0.646 at step 400 of the cosine one."""
    linear, cosine = (Purifier(FakeEngine(spec), preset="fast").table.steps for spec in
                      (make_spec(), make_spec(beta_schedule="cosine")))  # fmt: skip
    assert (linear[0].t, cosine[0].t) == (400, 707)
    assert cosine[0].ab == pytest.approx(linear[0].ab, abs=2e-3)


def test_info_lists_the_settings():
    info = Purifier(FakeEngine(), OneOf(Blur(2), [Blur(4), Grayscale()]), lam=3, preset="fast").info
    assert info["transforms"] == "blur2|blur4+gray"
    assert (info["steps"], info["start"], info["lam"], info["seed"]) == (4, 400, 3.0, None)
    assert info["engine"] == "FakeEngine"


def test_defaults_come_from_the_model():
    purifier = Purifier(FakeEngine(make_spec(transforms=("blur4",), lam=2.0)))
    assert (purifier.info["transforms"], purifier.settings.lam) == ("blur4", 2.0)


def test_settings_are_frozen():
    purifier = Purifier(FakeEngine(), "blur2", seed=1)
    for name in ("lam", "seed", "table", "guides", "engine", "settings", "preset"):
        with pytest.raises(AttributeError, match="cannot be changed; build another one"):
            setattr(purifier, name, 2)
        with pytest.raises(AttributeError, match="cannot be changed; build another one"):
            delattr(purifier, name)
    with pytest.raises(AttributeError):
        purifier.settings.lam = 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "'paper', 'fast'"),
        ({"preset": ["fast"]}, "'paper', 'fast'"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"lam": 0}, "random image"),
        ({"transforms": []}, "at least one"),
        ({"transforms": "sharpen"}, "blurN"),
        ({"combine": "median"}, "combine"),
        ({"tile_size": 30}, "tile_size"),
        ({"tile_size": 64, "transforms": "blur3"}, "divides the UNet input"),
        ({"tile_size": 64.0}, "tile_size: got 64.0, expected a multiple"),
        ({"tile_size": "64"}, "tile_size: got '64', expected a multiple"),
        ({"steps": 0}, "steps"),
        ({"steps": 1}, "steps: got 1 from pure noise"),
        ({"steps": 2.5}, "steps"),
        ({"start": 300.5}, "start"),
        ({"lam": "abc"}, "lam"),
        ({"lam": 10**400}, "lam: got 1000"),
        ({"transforms": 5}, "transforms: got 5, expected one such as Blur"),
        ({"transforms": Grayscale}, "objects such as"),
        ({"transforms": [Blur(2), Grayscale]}, "objects such as"),
        ({"transforms": OneOf(Blur(2), Grayscale)}, "objects such as"),  # type: ignore[arg-type]
    ],
)
def test_invalid_options_are_refused_at_construction(options, message):
    with pytest.raises(InputError, match=message):
        Purifier(FakeEngine(), **options)


def test_options_may_be_numpy_numbers():
    """They are stored as Python numbers, which JSON accepts."""
    options = {"lam": np.float32(2), "steps": np.int64(3), "start": np.int32(200), "seed": np.uint64(5)}
    purifier = Purifier(FakeEngine(), "blur2", tile_size=np.int64(64), eta=np.float64(1), **options)
    plain = Purifier(FakeEngine(), "blur2", tile_size=64, lam=2, steps=3, start=200, seed=5)
    assert purifier.table == plain.table and purifier.info == plain.info and json.dumps(purifier.info)
    np.testing.assert_array_equal(purifier.run(noise_images(3)), plain.run(noise_images(3)))


def test_a_generator_of_transforms_is_read_once():
    assert Purifier(FakeEngine(), (Blur(n) for n in (2, 4))).info["transforms"] == "blur2+blur4"


@pytest.mark.parametrize(
    "changes", [{"lam": -1}, {"lam": 0}, {"lam": float("nan")}, {"lam": "10"}, {"transforms": ("blurr2",)},
                {"transforms": ()}, {"transforms": "blur2"}, {"transforms": (2,)}],
)  # fmt: skip
def test_a_model_that_recommends_invalid_settings_is_refused(changes):
    with pytest.raises(zipsdk.ModelError, match=r"model spec: .*export the model again"):
        Purifier(FakeEngine(make_spec(**changes)))
    raw = {**dataclasses.asdict(make_spec()), "format": FORMAT, **changes}
    if changes.get("transforms") != "blur2" and changes.get("lam") != "10":  # else the type is refused
        with pytest.raises(zipsdk.ModelError, match=r"(x\.onnx|fake): model spec: "):
            Purifier(FakeEngine(ModelSpec.from_json(json.dumps(raw), "x.onnx")))


def test_a_model_may_recommend_a_choice_of_transforms():
    spec = make_spec(transforms=("blur2|blur4", "gray"), lam=float("inf"))
    assert Purifier(FakeEngine(ModelSpec.from_json(spec.to_json(), "x"))).info["transforms"] == "blur2|blur4+gray"


def test_objects_that_are_not_engines_are_refused():
    with pytest.raises(InputError, match="spec and __call__"):
        Purifier(lambda x, t: x)
    with pytest.raises(InputError, match="got the class FakeEngine"):
        Purifier(type("FakeEngine", (FakeEngine,), {"spec": make_spec()}))
    with pytest.raises(zipsdk.ModelError, match="neither a file nor"):
        Purifier("no-such-model")
