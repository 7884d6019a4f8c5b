"""Test `Purifier.run`: results, reproducibility, types and refused inputs."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.fakes.engine import FakeEngine, FunctionEngine
from tests.helpers.images import noise_images
from tests.helpers.paths import ROOT
from zipsdk import Blur, Grayscale, InputError, OneOf, Purifier
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.noise_keys import resolve_noise_keys
from zipsdk.sampling.sampler import sample
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.state import pad


def test_run_equals_the_float64_loop_rounded_to_8_bit():
    batch = noise_images(3, 34, 41)
    purifier = Purifier(FakeEngine(), [Blur(2), Grayscale()], lam=10.0, seed=5)
    got = purifier.run(batch, noise_keys=[7, 8, 9])

    engine = FakeEngine()
    x_p = pad(batch, 36, 44).transpose(0, 3, 1, 2) / 127.5 - 1.0
    expected = sample(
        lambda x, t: engine(x, np.full(len(x), t, np.float64)),
        x_p,
        step_table(engine.spec, lam=10.0),
        Guidance([Blur(2), Grayscale()]),
        Noise(5, [7, 8, 9]),
    )
    expected = np.clip((expected + 1) * 127.5, 0, 255)[:, :, :34, :41].transpose(0, 2, 3, 1)
    assert np.abs(got - expected).max() <= 0.501


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (17, 90), (200, 140)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_an_image_gives_the_same_result_alone_in_a_batch_and_in_any_order(size, seed):
    batch = noise_images(7, *size)
    purifier = Purifier(FakeEngine(), "blur2+gray", seed=seed)
    together = purifier.run(batch)
    np.testing.assert_array_equal(purifier.run(batch[::-1])[::-1], together)
    for i in (0, 3, 6):
        np.testing.assert_array_equal(purifier.run(batch[i]), together[i])
    mixed = purifier.run([noise_images(1, 40, 40)[0], batch[2], noise_images(1, 50, 32)[0]])
    np.testing.assert_array_equal(mixed[1], together[2])


def test_an_image_gives_the_same_result_in_another_process():
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
    """Use an engine that works pixel by pixel, so that neighbors and places have no effect."""

    def pointwise(x, t):
        return np.tanh(x) * np.float32(0.5)

    batch = noise_images(9)
    tiled = Purifier(FunctionEngine(pointwise), "blur2", seed=1, tile_size=64)
    direct = Purifier(FunctionEngine(pointwise), "blur2", seed=1)
    np.testing.assert_array_equal(tiled.run(batch), direct.run(batch))
    np.testing.assert_array_equal(tiled.run(batch[[5, 1, 8]]), direct.run(batch)[[5, 1, 8]])


def test_runs_differ_without_a_seed_and_repeat_with_one():
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


def test_run_takes_a_seed_for_one_call():
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


def test_types_and_data_formats_are_kept(tmp_path):
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


def test_closing_on_a_cpu_changes_nothing():
    with Purifier(FakeEngine(), "blur2", seed=1) as purifier:
        clean = purifier.run(noise_images(1))
    purifier.close()
    np.testing.assert_array_equal(purifier.run(noise_images(1)), clean)


def test_progress_counts_every_image():
    done: list[int] = []
    Purifier(FakeEngine(), "blur2").run([*noise_images(3), *noise_images(2, 40, 50)], progress=done.append)
    assert sum(done) == 5


def test_an_invalid_progress_is_refused_before_any_work():
    engine = FakeEngine()
    with pytest.raises(InputError, match="progress: got int, expected a function of a number of images, or None"):
        Purifier(engine, "blur2").run(noise_images(1), progress=3)
    assert engine.calls == []


def test_an_invalid_image_is_refused_before_any_work():
    engine = FakeEngine()
    with pytest.raises(InputError):
        Purifier(engine, "blur2").run([noise_images(1)[0], np.full((8, 8, 3), np.nan, np.float32)])
    assert engine.calls == []


def test_too_many_pixels_are_refused_with_a_remedy():
    many = np.broadcast_to(np.uint8(0), (1, 20_000, 20_000, 1))
    with pytest.raises(InputError, match=r"20000 x 20000 pixels, .* make them smaller, or cut them into parts"):
        Purifier(FakeEngine(), "blur2").run(many)
    with pytest.raises(InputError, match="expected sides of at most 65536; cut the image"):
        Purifier(FakeEngine(), "blur2").run(np.zeros((1, 1, 65537, 3), np.uint8))


@pytest.mark.parametrize(
    "keys", [[1], [1, 2, 3], [-1, 2], [0.5, 1.0], "ab", [True, 2], [2**64, 1], [[1], [2]], np.array([1.0, 2.0]), 7],
)  # fmt: skip
def test_invalid_noise_keys_are_refused(keys):
    with pytest.raises(InputError, match=r"noise_keys: got .*, expected a flat list of 2 integers in 0\.\.2\^64-1"):
        Purifier(FakeEngine(), "blur2").run(noise_images(2), noise_keys=keys)


@pytest.mark.parametrize("keys", [[2**63, 1], (2**64 - 1, 0), [np.uint64(2**63), np.int8(1)]])
def test_noise_keys_on_both_sides_of_half_the_range(keys):
    """NumPy turns such a list into floats."""
    purifier = Purifier(FakeEngine(), "blur2", seed=1)
    expected = purifier.run(noise_images(2), noise_keys=np.array([int(i) for i in keys], np.uint64))
    np.testing.assert_array_equal(purifier.run(noise_images(2), noise_keys=keys), expected)


def test_no_images_take_no_noise_keys():
    purifier = Purifier(FakeEngine(), "blur2")
    assert purifier.run(noise_images(0), noise_keys=[]).shape == (0, 32, 32, 3)
    assert purifier.run([], noise_keys=()) == []


def test_noise_keys_are_the_keyed_hash_of_bytes_and_shape():
    """Spell the hash out, because another one would change every result of a seed."""
    image = noise_images(1, 5, 7)[0]
    expected = hashlib.blake2b(image.tobytes() + b"(5, 7, 3)", digest_size=8, key=(3).to_bytes(8, "little")).digest()
    for same in (image, np.asfortranarray(image)):
        assert resolve_noise_keys([same], None, 3).tolist() == [int.from_bytes(expected, "big")]


def test_calling_a_purifier_is_calling_run():
    purifier = Purifier(FakeEngine(), preset="fast", seed=1)
    batch = noise_images(2).transpose(0, 3, 1, 2)
    expected = purifier.run(batch, data_format="NCHW", seed=4)
    np.testing.assert_array_equal(purifier(batch, data_format="NCHW", seed=4), expected)
    assert purifier.run(purifier(Image.fromarray(noise_images(1)[0]))).mode == "RGB"  # as in torchvision's Compose
