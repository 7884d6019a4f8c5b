"""Test the bundled model with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.images import natural, noise_images
from tests.helpers.paths import ROOT
from zipsdk import EngineError, InputError, ModelError, Purifier, load_engine
from zipsdk.engines.sharded_session import split_batch
from zipsdk.models import list_models, resolve
from zipsdk.sampling.tiling import plan_tiles

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")


@pytest.fixture(scope="module")
def engine():
    return load_engine("zip-tiny", device="cpu")


def test_bundled_model_is_small_and_has_a_spec(engine):
    path = resolve("zip-tiny")
    assert list_models() == ["zip-tiny", "zip-tiny-int8"]
    assert path is not None and path.stat().st_size < 12e6
    spec = engine.spec
    assert (spec.name, spec.image_size, spec.flexible) == ("zip-tiny", 64, True)
    assert spec.license and spec.training_data and len(spec.source_sha256) == 64
    assert (path.parent / "zip-tiny.md").exists()  # its model card
    assert engine.info["providers"] == ["CPUExecutionProvider"]


@pytest.mark.torch
def test_the_bundled_model_is_the_export_of_the_weights_in_the_repository(engine):
    """Its spec has their hash, and its outputs differ only by weights stored as float16."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
    from export import checkpoints

    weights = ROOT / "export" / "zip-tiny.safetensors"
    module, sha256 = checkpoints.load(weights)
    assert engine.spec.source_sha256 == sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = module.config
    assert (engine.spec.image_size, engine.spec.multiple) == (config.image_size, config.downsampling)
    schedule = (engine.spec.beta_start, engine.spec.beta_end, engine.spec.timesteps)
    assert schedule == (config.beta_start, config.beta_end, config.timesteps)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 40)).astype(np.float32)
    t = np.float32([950, 400, 0])
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    off, size = (np.linalg.norm(a.reshape(3, -1), axis=1) for a in (engine(x, t) - expected, expected))
    assert (off < 3e-4 * size).all()  # measured: 2e-6, 4e-5 and 1.4e-4


def test_the_bundled_model_denoises(engine):
    """At each noise level, eps is much closer to the noise than zero or x_t."""
    x0 = natural(4, 64).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    rng = np.random.default_rng(0)
    for t, ab, most in ((50, 0.970, 0.35), (200, 0.656, 0.1), (500, 0.078, 0.03)):
        eps = rng.standard_normal(x0.shape).astype(np.float32)
        x_t = (np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps).astype(np.float32)
        got = engine(x_t, np.full(4, t, np.float32))
        assert np.mean((got - eps) ** 2) < most


def test_purified_is_closer_to_the_image_than_blurred(engine):
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's photographs: pip install 'zipsdk[bench]'")
    photo = data.astronaut()[0:256, 128:384]
    x = photo.reshape(2, 128, 2, 128, 3).transpose(0, 2, 1, 3, 4).reshape(4, 128, 128, 3)
    clean = Purifier(engine, "blur2", preset="fast", seed=0).run(x)
    cells = (4, 64, 2, 64, 2, 3)
    blurred = np.broadcast_to(x.reshape(cells).mean((2, 4), keepdims=True), cells).reshape(x.shape)
    assert np.mean((clean - x.astype(float)) ** 2) < 0.85 * np.mean((blurred - x) ** 2)


@pytest.mark.parametrize("side", [32, 64])
def test_an_image_gives_the_same_result_alone_in_a_batch_and_in_another_process(engine, side):
    """The loop is independent of the batch. ONNX Runtime's sums are not: one gray level in fewer than one of 10,000
    values is allowed."""
    batch = np.concatenate([natural(4, side), noise_images(3, side, side)])
    purifier = Purifier(engine, "blur2+gray", steps=4, seed=3)
    together = purifier.run(batch)
    for i in (0, 6):
        difference = np.abs(purifier.run(batch[i]).astype(int) - together[i])
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 1e-4
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.helpers.images import natural, noise_images\nfrom zipsdk import Purifier\n"
        f"out = Purifier('zip-tiny', 'blur2+gray', steps=4, seed=3).run(noise_images(3, {side}, {side})[2])\n"
        "sys.stdout.buffer.write(out.tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    difference = np.abs(np.frombuffer(other, np.uint8).reshape(side, side, 3).astype(int) - together[6])
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-4


def test_windows_leave_no_seam(engine):
    """Purify a 200x150 image in windows of 64: no line is visible at their edges."""
    y, x = np.mgrid[0:150, 0:200]
    smooth = np.uint8(np.stack([60 + 0.5 * x + 0.3 * y, 200 - 0.6 * x, 90 + 0.7 * y], -1))
    clean = Purifier(engine, "blur2", preset="fast", seed=1, tile_size=64).run(smooth).astype(float)
    layout = plan_tiles(engine.spec, 150, 200, 2, 64)
    steps = np.abs(np.diff(clean, axis=1)).mean((0, 2))
    lines = np.array([c - 1 for x0 in layout.xs for c in (x0, x0 + 64) if 0 < c < 200])
    around = np.setdiff1d(np.concatenate([lines - 2, lines + 2]), lines)
    # a seam must exceed the spread of the differences between lines
    assert abs(steps[lines].mean() - steps[around].mean()) < 4 * steps.std() / np.sqrt(len(lines))


@pytest.mark.parametrize("limits", [{"max_side": 128}, {"image_size": 128, "min_side": 128, "max_side": 128}],
                         ids=["flexible", "fixed"])  # fmt: skip
@pytest.mark.parametrize("height", [1, 2])
def test_thin_images_are_restored_in_windows_as_well_as_whole(engine, limits, height):
    """Measured: 0.1 to 0.4 dB less, of 34 to 36 dB; 8 to 9 dB less when windows repeat the noise."""

    class Limited:
        spec = dataclasses.replace(engine.spec, **limits)

        def __call__(self, x, t):
            return engine(x, t)

    y, x = np.mgrid[0:height, 0:300] / 64
    strip = np.uint8(127.5 + 100 * np.stack([np.sin(3 * x + 5 * y), np.sin(5 * x + 1), np.sin(4 * x - y + 2)], -1))
    clean = (Purifier(e, "blur2", preset="fast", seed=1).run(strip) for e in (engine, Limited()))
    whole, windows = (10 * np.log10(255**2 / np.mean((c - strip.astype(float)) ** 2)) for c in clean)
    assert whole > 30 and abs(whole - windows) < 1.5


def test_a_damaged_model_is_refused(tmp_path):
    source = resolve("zip-tiny")
    for f in source.parent.glob("zip-tiny.onnx*"):
        shutil.copy(f, tmp_path / f.name)
    broken = tmp_path / "zip-tiny.onnx"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    with pytest.raises(ModelError, match="SHA-256"):
        load_engine(broken)
    (tmp_path / "zip-tiny.onnx.json").unlink()
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        load_engine(broken)
    broken.write_bytes(b"")
    with pytest.raises(ModelError):
        load_engine(broken)


def test_a_named_device_is_never_replaced():
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(EngineError, match=r"zipsdk\[gpu\]"):
            load_engine("zip-tiny", device="cuda:0")
    with pytest.raises(InputError, match="device"):
        load_engine("zip-tiny", device="gpu")
    with pytest.raises(InputError, match="threads"):
        load_engine("zip-tiny", threads=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "2"}, "threads: got '2', expected an integer"),
        ({"threads": 1.5}, "threads: got 1.5, expected an integer"),
        ({"device": 0}, "device: got 0, expected 'auto'"),
        ({"device": None}, "device: got None, expected 'auto'"),
    ],
)
def test_options_of_other_types_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        load_engine("zip-tiny", **{"device": "cpu", **options})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_splits_batches_among_its_own_threads():
    """Run in a separate process with an alarm: a child that waits for its parent's threads never ends."""
    code = (
        "import os, signal, numpy as np; from zipsdk import load_engine\n"
        "engine = load_engine('zip-tiny', device='cpu', threads=2)\n"
        "x, t = np.zeros((4, 3, 32, 32), np.float32), np.zeros(4, np.float32)\n"
        "expected = engine(x, t)\n"
        "if not (child := os.fork()):\n"
        "    signal.alarm(10)\n"
        "    os._exit(not np.array_equal(engine(x, t), expected))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "0\n"


def test_info_has_the_number_of_threads(engine):
    assert load_engine("zip-tiny", threads=1).info["threads"] == 1
    assert engine.info["threads"] >= 1


@pytest.mark.parametrize(
    ("n", "side", "threads", "sizes"),
    [
        (64, 32, 2, [8] * 8),
        (64, 32, 1, [8] * 8),
        (20, 32, 2, [5] * 4),
        (9, 32, 2, [4, 5]),  # no shard is larger than the other thread's work
        (4, 32, 5, [1] * 4),
        (2, 64, 2, [1, 1]),
        (3, 32, 2, []),  # one thread would idle for a third of the time
        (1, 32, 2, []),
        (64, 128, 2, []),
        (0, 32, 2, []),
    ],
)
def test_a_batch_is_split_into_equal_shards(n, side, threads, sizes):
    parts = split_batch(n, side * side, threads)
    assert sorted(part.stop - part.start for part in parts) == sizes
    assert [i for part in parts for i in range(part.start, part.stop)] == (list(range(n)) if sizes else [])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_split_batch_keeps_its_order(threads):
    x = np.random.default_rng(0).standard_normal((18, 3, 32, 32)).astype(np.float32)
    t = np.linspace(0, 950, 18).round().astype(np.float32)
    engine = load_engine("zip-tiny", device="cpu", threads=threads)
    one_by_one = np.concatenate([engine(x[i : i + 1], t[i : i + 1]) for i in range(18)])
    np.testing.assert_allclose(engine(x, t), one_by_one, atol=1e-5)
    with pytest.raises(EngineError, match=r"the evaluation of \(18, 3, 32, 30\) failed"):
        engine(np.ascontiguousarray(x[..., :30]), t)  # not a multiple of 4
