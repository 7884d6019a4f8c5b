"""The front door: what goes in comes out, and nothing depends on what it should not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import zipsdk
from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.images import noise_images
from tests.helpers.paths import ROOT
from zipsdk import Blur, Grayscale, InputError, OneOf, Purifier
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.noise_keys import resolve_noise_keys
from zipsdk.sampling.sampler import sample
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.state import pad


def test_run_is_the_float64_loop_rounded_to_8_bit():
    batch = noise_images(3, 34, 41)
    purifier = Purifier(FakeEngine(), [Blur(2), Grayscale()], lam=10.0, seed=5)
    got = purifier.run(batch, noise_keys=[7, 8, 9])

    engine = FakeEngine()
    x_p = pad(batch, 36, 44).transpose(0, 3, 1, 2) / 127.5 - 1.0
    want = sample(
        lambda x, t: engine(x, np.full(len(x), t, np.float64)),
        x_p,
        step_table(engine.spec, lam=10.0),
        Guidance([Blur(2), Grayscale()]),
        Noise(5, [7, 8, 9]),
    )
    want = np.clip((want + 1) * 127.5, 0, 255)[:, :, :34, :41].transpose(0, 2, 3, 1)
    assert np.abs(got - want).max() <= 0.501


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (17, 90), (200, 140)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_same_alone_in_a_batch_of_7_and_in_any_order(size, seed):
    batch = noise_images(7, *size)
    purifier = Purifier(FakeEngine(), "blur2+gray", seed=seed)
    together = purifier.run(batch)
    np.testing.assert_array_equal(purifier.run(batch[::-1])[::-1], together)
    for i in (0, 3, 6):
        np.testing.assert_array_equal(purifier.run(batch[i]), together[i])
    mixed = purifier.run([noise_images(1, 40, 40)[0], batch[2], noise_images(1, 50, 32)[0]])
    np.testing.assert_array_equal(mixed[1], together[2])


def test_same_in_another_process():
    code = (
        "import numpy as np, sys; sys.path.insert(0, '.')\n"
        "from tests.fakes.engine import FakeEngine\n"
        "from tests.helpers.images import noise_images\n"
        "from zipsdk import Purifier\n"
        "sys.stdout.buffer.write(Purifier(FakeEngine(), 'blur2', seed=3).run(noise_images(7)[4]).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    assert other == Purifier(FakeEngine(), "blur2", seed=3).run(noise_images(7))[4].tobytes()


def test_tiled_images_get_the_same_noise_in_any_tile():
    """With an engine that works pixel by pixel, neighbors and places make no difference at all."""

    class Pointwise(FakeEngine):
        def __call__(self, x, t):
            return np.tanh(x) * np.float32(0.5)

    batch = noise_images(9)
    tiled = Purifier(Pointwise(), "blur2", seed=1, tile_size=64)
    direct = Purifier(Pointwise(), "blur2", seed=1)
    np.testing.assert_array_equal(tiled.run(batch), direct.run(batch))
    np.testing.assert_array_equal(tiled.run(batch[[5, 1, 8]]), direct.run(batch)[[5, 1, 8]])


def test_fresh_randomness_by_default_and_fixed_by_seed():
    batch = noise_images(2)
    fresh = Purifier(FakeEngine(), "blur2", lam=2.0)
    assert not np.array_equal(fresh.run(batch), fresh.run(batch))
    fixed = Purifier(FakeEngine(), "blur2", lam=2.0, seed=4)
    np.testing.assert_array_equal(fixed.run(batch), fixed.run(batch))
    other = Purifier(FakeEngine(), "blur2", lam=2.0, seed=5)
    assert not np.array_equal(fixed.run(batch), other.run(batch))
    twins = fixed.run(np.stack([batch[0], batch[0]]), noise_keys=[1, 2])
    assert not np.array_equal(twins[0], twins[1])


def test_one_of_draws_by_image_and_matches_the_fixed_transform():
    batch = noise_images(12)
    mixed = Purifier(FakeEngine(), OneOf(Blur(2), Blur(8)), seed=2).run(batch)
    fixed = [Purifier(FakeEngine(), [b], seed=2).run(batch) for b in (Blur(2), Blur(8))]
    chosen = [next(k for k in (0, 1) if np.array_equal(mixed[i], fixed[k][i])) for i in range(12)]
    assert 0 < sum(chosen) < 12
    alone = Purifier(FakeEngine(), OneOf(Blur(2), Blur(8)), seed=2).run(batch[3])
    np.testing.assert_array_equal(alone, mixed[3])


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


def test_info_tells_settings_apart():
    settings = [{}, {"tile_size": 64}, {"clip_x0": True}, {"eta": 0.5}, {"combine": "joint"}, {"steps": 10}]
    said = [json.dumps(Purifier(FakeEngine(), "blur2+gray", seed=0, **s).info) for s in settings]
    assert len(set(said)) == len(said)


def test_evaluations_and_presets():
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
def test_a_preset_starts_at_the_same_noise_whatever_the_number_of_time_steps(timesteps, fast):
    scale = 1000 / timesteps  # as models with more time steps have their betas
    spec = make_spec(timesteps=timesteps, beta_start=1e-4 * scale, beta_end=0.02 * scale)
    steps = Purifier(FakeEngine(spec), preset="fast").table.steps
    assert [s.t for s in steps] == fast
    assert steps[0].ab == pytest.approx(0.194, abs=0.01)
    said = Purifier(FakeEngine(spec), preset="fast", start=200).table.steps
    assert said[0].t == 200  # what is said is taken as it is


def test_fast_starts_in_as_much_noise_on_a_cosine_schedule():
    """alpha-bar is 0.194 at step 400 of the linear schedule, and 0.646 at step 400 of the cosine one."""
    linear, cosine = (Purifier(FakeEngine(spec), preset="fast").table.steps for spec in
                      (make_spec(), make_spec(beta_schedule="cosine")))  # fmt: skip
    assert (linear[0].t, cosine[0].t) == (400, 707)
    assert cosine[0].ab == pytest.approx(linear[0].ab, abs=2e-3)


def test_info_says_what_ran():
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
    with pytest.raises(AttributeError):
        purifier.settings.lam = 2.0


def test_a_seed_of_one_run():
    batch, purifier = noise_images(2), Purifier(FakeEngine(), "blur2", lam=2.0, seed=1)
    once = purifier.run(batch, seed=7)
    np.testing.assert_array_equal(once, Purifier(FakeEngine(), "blur2", lam=2.0, seed=7).run(batch))
    np.testing.assert_array_equal(purifier.run(batch), Purifier(FakeEngine(), "blur2", lam=2.0, seed=1).run(batch))
    np.testing.assert_array_equal(purifier.run(batch, seed=np.uint64(7)), once)
    for bad in (-1, 2**64, 1.0, "1", True):
        with pytest.raises(InputError, match="seed: got"):
            purifier.run(batch, seed=bad)


@pytest.mark.parametrize(
    "options", [{}, {"preset": "fast"}, {"transforms": OneOf(Blur(2), [Blur(4), Grayscale()]), "seed": 3},
                {"lam": float("inf"), "start": 200, "steps": 1, "eta": 0, "combine": "joint", "tile_size": 64},
                {"transforms": (Blur(n) for n in (2, 4)), "clip_x0": True}],
)  # fmt: skip
def test_a_purifier_pickles(options):
    purifier = Purifier(FakeEngine(), **options)
    copy = pickle.loads(pickle.dumps(purifier))
    assert copy.info == purifier.info and copy.table == purifier.table
    np.testing.assert_array_equal(copy.run(noise_images(3), seed=4), purifier.run(noise_images(3), seed=4))


def test_types_and_layouts_round_trip(tmp_path):
    purifier = Purifier(FakeEngine(), "blur2", seed=1)
    u8 = noise_images(2)
    base = purifier.run(u8)
    assert base.dtype == np.uint8 and base.shape == u8.shape
    as_float = purifier.run((u8 / np.float32(255)).astype(np.float32))
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(np.rint(as_float * 255), base)
    nchw = purifier.run(u8.transpose(0, 3, 1, 2), data_format="NCHW")
    np.testing.assert_array_equal(nchw.transpose(0, 2, 3, 1), base)
    image = purifier.run(Image.fromarray(u8[0]))
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image), base[0])
    Image.fromarray(u8[1]).save(tmp_path / "a.png")
    mixed = purifier.run([u8[0], tmp_path / "a.png", str(tmp_path / "a.png")])
    np.testing.assert_array_equal(mixed[0], base[0])
    np.testing.assert_array_equal(np.asarray(mixed[1]), base[1])
    assert purifier.run(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 32, 32, 3)
    assert purifier.run([]) == []


def test_stream_keeps_order_and_reads_ahead():
    batches = [noise_images(2, seed=i) for i in range(5)]
    reading: list[int] = []
    inside = threading.Event()

    def source():
        for i, b in enumerate(batches):
            reading.append(i)
            if i == 1:
                inside.set()
            yield b

    class Waiting(FakeEngine):
        def __call__(self, x, t):
            # the second batch is fetched while the first is computed, or this never returns in time
            assert inside.wait(20), "the next batch was not read while this one computed"
            return super().__call__(x, t)

    purifier = Purifier(Waiting(), "blur2", seed=1)
    out = list(purifier.stream(source()))
    assert reading == [0, 1, 2, 3, 4]
    plain = Purifier(FakeEngine(), "blur2", seed=1)
    for got, batch in zip(out, batches, strict=True):
        np.testing.assert_array_equal(got, plain.run(batch))


def test_stream_raises_where_the_bad_batch_stands():
    stream = Purifier(FakeEngine(), "blur2").stream([noise_images(1), np.zeros((2, 2), complex), noise_images(1)])
    assert next(stream).shape == (1, 32, 32, 3)
    with pytest.raises(InputError):
        next(stream)


def silent_source(silent: threading.Event):
    """One batch, and then nothing until `silent` is set."""
    yield noise_images(1)
    silent.wait(30)


def test_a_stream_is_left_at_once_though_its_source_is_silent():
    silent, before = threading.Event(), threading.active_count()
    stream = Purifier(FakeEngine(), "blur2").stream(silent_source(silent))
    try:
        assert next(stream).shape == (1, 32, 32, 3)
        begun = time.monotonic()
        stream.close()
        assert time.monotonic() - begun < 10
    finally:
        silent.set()
    # and its thread ends with the call that it is in
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_the_program_ends_though_the_source_of_a_stream_is_silent():
    code = (
        "import sys, threading; sys.path.insert(0, '.')\n"
        "from tests.fakes.engine import FakeEngine\n"
        "from tests.helpers.images import noise_images\n"
        "from zipsdk import Purifier\n"
        "def source():\n"
        "    yield noise_images(1)\n"
        "    threading.Event().wait()\n"
        "for clean in Purifier(FakeEngine(), 'blur2').stream(source()):\n"
        "    break\n"
        "print('left')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_closing_on_a_cpu_changes_nothing():
    with Purifier(FakeEngine(), "blur2", seed=1) as purifier:
        clean = purifier.run(noise_images(1))
    purifier.close()
    np.testing.assert_array_equal(purifier.run(noise_images(1)), clean)


def test_progress_counts_every_image():
    done: list[int] = []
    Purifier(FakeEngine(), "blur2").run([*noise_images(3), *noise_images(2, 40, 50)], progress=done.append)
    assert sum(done) == 5


def test_a_bad_image_stops_before_any_work():
    engine = FakeEngine()
    with pytest.raises(InputError):
        Purifier(engine, "blur2").run([noise_images(1)[0], np.full((8, 8, 3), np.nan, np.float32)])
    assert engine.calls == []


@pytest.mark.parametrize(
    ("options", "said"),
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
        ({"transforms": OneOf(Blur(2), Grayscale)}, "objects such as"),
    ],
)
def test_bad_options_are_refused_at_once(options, said):
    with pytest.raises(InputError, match=said):
        Purifier(FakeEngine(), **options)


def test_numbers_of_numpy_are_numbers():
    """And what they give is Python's, which can be written as JSON."""
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
def test_a_model_that_recommends_what_no_purifier_takes_is_refused(changes):
    with pytest.raises(zipsdk.ModelError, match=r"model spec: .*export the model again"):
        Purifier(FakeEngine(make_spec(**changes)))
    raw = {**dataclasses.asdict(make_spec()), "format": 1, **changes}
    if changes.get("transforms") != "blur2" and changes.get("lam") != "10":  # else the type is refused
        with pytest.raises(zipsdk.ModelError, match=r"(x\.onnx|fake): model spec: "):
            Purifier(FakeEngine(ModelSpec.from_json(json.dumps(raw), "x.onnx")))


def test_a_model_may_recommend_a_choice_of_transforms():
    spec = make_spec(transforms=("blur2|blur4", "gray"), lam=float("inf"))
    assert Purifier(FakeEngine(ModelSpec.from_json(spec.to_json(), "x"))).info["transforms"] == "blur2|blur4+gray"


def test_too_many_pixels_are_refused_with_what_helps():
    many = np.broadcast_to(np.uint8(0), (1, 20_000, 20_000, 1))
    with pytest.raises(InputError, match=r"20000 x 20000 pixels, .* make them smaller, or cut them into parts"):
        Purifier(FakeEngine(), "blur2").run(many)
    with pytest.raises(InputError, match="expected sides of at most 65536; cut the image"):
        Purifier(FakeEngine(), "blur2").run(np.zeros((1, 1, 65537, 3), np.uint8))


@pytest.mark.parametrize(
    "ids", [[1], [1, 2, 3], [-1, 2], [0.5, 1.0], "ab", [True, 2], [2**64, 1], [[1], [2]], np.array([1.0, 2.0]), 7],
)  # fmt: skip
def test_bad_noise_keys_are_refused(ids):
    with pytest.raises(InputError, match=r"noise_keys: got .*, expected a flat list of 2 integers in 0\.\.2\^64-1"):
        Purifier(FakeEngine(), "blur2").run(noise_images(2), noise_keys=ids)


@pytest.mark.parametrize("ids", [[2**63, 1], (2**64 - 1, 0), [np.uint64(2**63), np.int8(1)]])
def test_noise_keys_on_both_sides_of_half_the_range(ids):
    """Which NumPy makes floats of."""
    purifier = Purifier(FakeEngine(), "blur2", seed=1)
    want = purifier.run(noise_images(2), noise_keys=np.array([int(i) for i in ids], np.uint64))
    np.testing.assert_array_equal(purifier.run(noise_images(2), noise_keys=ids), want)


def test_no_ids_for_no_images():
    purifier = Purifier(FakeEngine(), "blur2")
    assert purifier.run(noise_images(0), noise_keys=[]).shape == (0, 32, 32, 3)
    assert purifier.run([], noise_keys=()) == []


def test_not_an_engine():
    with pytest.raises(InputError, match="spec and __call__"):
        Purifier(lambda x, t: x)
    with pytest.raises(InputError, match="got the class FakeEngine"):
        Purifier(type("FakeEngine", (FakeEngine,), {"spec": make_spec()}))
    with pytest.raises(zipsdk.ModelError, match="neither a file nor"):
        Purifier("no-such-model")


def test_import_is_light():
    """No torch, no runtime, no drivers; bench/speed.py has the time."""
    code = (
        "import sys, zipsdk\n"
        "heavy = 'torch onnxruntime onnx tensorrt pycuda matplotlib skimage tqdm'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout  # fmt: skip
    assert out.strip() == "[]"


def test_exported_names():
    assert sorted(zipsdk.__all__) == zipsdk.__all__
    assert all(hasattr(zipsdk, name) for name in zipsdk.__all__)


def test_version_is_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert zipsdk.__version__ == project["version"]
    assert f"## [{zipsdk.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_ids_of_images_are_the_keyed_hash_of_their_bytes_and_shape():
    """Written out: another hash would change every result of a seed."""
    image = noise_images(1, 5, 7)[0]
    want = hashlib.blake2b(image.tobytes() + b"(5, 7, 3)", digest_size=8, key=(3).to_bytes(8, "little")).digest()
    for same in (image, np.asfortranarray(image)):
        assert resolve_noise_keys([same], None, 3).tolist() == [int.from_bytes(want)]
