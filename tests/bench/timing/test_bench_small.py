"""The small measurements and their records: what a batch costs, how far neighbors move an image, of which commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import zipsdk
from bench.common import record
from bench.common.metrics import compare_interior
from bench.quality import crosstalk
from bench.timing import cpu
from tests.fakes.clock import Clock
from tests.fakes.engine import FakeEngine, make_spec
from zipsdk import profiling
from zipsdk.errors import InputError

# ---- bench.timing.cpu


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(cpu, "time", made)
    return made


def test_a_batch_s_cost_is_the_median_an_image_and_what_is_not_the_unet(clock):
    """Runs of 2 + 6, 4 + 6 and 2 + 2 seconds outside and inside of the engine, after one that is not counted."""
    outside, inside = iter([50.0, 2.0, 4.0, 2.0]), iter([25.0, 25.0, 3.0, 3.0, 3.0, 3.0, 1.0, 1.0])

    class Slow(FakeEngine):
        def __call__(self, x, t):
            clock.now += next(inside)
            return x

    engine = profiling.stage("UNet")(Slow())

    class Twice:
        def run(self, batch):
            clock.now += next(outside)
            engine(engine(batch, None), None)

    assert cpu.measure_cpu(Twice(), np.zeros((4, 32, 48, 3), np.uint8), 3) == {
        "images": 4, "size": [32, 48], "ms_per_image": 2000.0, "ms_min_max": [1000.0, 2500.0],
        "not_unet": 0.4, "not_unet_min_max": [0.25, 0.5],
    }  # fmt: skip


def test_the_command_of_the_cost_has_six_rows(monkeypatch, tmp_path, capsys):
    """Each shape by both presets; the engine counts what is really evaluated."""
    engine = FakeEngine(make_spec(min_side=32, max_side=256))
    engine.info = {"engine": "fake"}
    asked = []
    monkeypatch.setattr(cpu.zipsdk, "load_engine", lambda model, **options: asked.append((model, options)) or engine)
    write = record.write
    monkeypatch.setattr(record, "write", lambda name, payload: write(name, payload, tmp_path))
    monkeypatch.setattr(sys, "argv", [cpu.__file__, "--repeats", "1", "--threads", "2", "--name", "made"])
    cpu.main()
    assert asked == [("zip-tiny", {"device": "cpu", "threads": 2})]
    content = json.loads((tmp_path / "made.json").read_text())
    rows = content["rows"]
    wanted = [(n, s, e) for n, s in ((64, 32), (1, 32), (1, 256)) for e in (20, 4)]
    assert [(r["images"], r["size"][0], r["info"]["steps"]) for r in rows] == wanted
    assert all(0 <= r["not_unet"] <= 1 and r["ms_per_image"] > 0 for r in rows)
    assert content["command"] == "python -m bench.timing.cpu --repeats 1 --threads 2 --name made"
    assert len(engine.calls) == 2 * 3 * (20 + 4)  # once to warm up, once measured
    assert capsys.readouterr().out.count("\n") == 8


# ---- bench.quality.crosstalk


def test_drift_by_hand():
    a = np.full((2, 32, 32, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = (90, 100, 100)  # on the border
    b[1, 16, 16] = (100, 140, 98)
    got = compare_interior(a, b)
    assert got["mean"] == pytest.approx(52 / (2 * 32 * 32 * 3))
    assert got["mean_inner"] == pytest.approx(42 / (2 * 16 * 16 * 3))
    assert got["max"] == 40 and got["pixels_changed"] == pytest.approx(2 / 2048)
    each = [10 * np.log10(255**2 / (total / 3072)) for total in (100, 1604)]
    assert got["psnr"] == pytest.approx(np.mean(each)) and compare_interior(b, a) == got
    # identical ones are left out of the mean, and alone they are infinitely near
    assert compare_interior(a[1:], b[1:])["psnr"] == pytest.approx(each[1])
    assert compare_interior(np.concatenate([a, a]), np.concatenate([b, a]))["psnr"] == pytest.approx(np.mean(each))
    assert compare_interior(a, a) == {"mean": 0, "mean_inner": 0, "max": 0, "pixels_changed": 0, "psnr": np.inf}


@pytest.mark.parametrize("leaks", [False, True])
def test_neighbors_move_an_image_only_through_the_network(monkeypatch, tmp_path, rng, leaks):
    """Pixel by pixel nothing moves, but by another seed; with the frame's mean in it, neighbors do."""

    class Engine(FakeEngine):
        def __call__(self, x, t):
            mean = x.mean((2, 3), keepdims=True) if leaks else 0
            return np.tanh(0.8 * x + 0.5 * mean).astype(np.float32)

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setattr(crosstalk.zipsdk, "load_engine", lambda model, **options: Engine())
    written = []
    monkeypatch.setattr(crosstalk.record, "write", lambda name, payload: written.append((name, payload)))
    monkeypatch.setattr(sys, "argv", ["crosstalk.py", "--data", str(folder), "--limit", "4"])
    crosstalk.main()
    ((name, payload),) = written
    rows = payload["rows"]
    assert (name, payload["images"], len(rows)) == ("crosstalk", 4, 5)
    moved = {title: r["max"] > 0 for title, r in rows.items()}
    assert moved == {
        "tiled, other neighbors": leaks, "tiled, neighbors with a white square": leaks,
        "tiled against its own size": leaks, "own size, in a batch of 1 against all": False,
        "own size, another seed (for scale)": True,
    }  # fmt: skip
    assert payload["info"] == zipsdk.Purifier(Engine(), "blur2+gray", seed=0, tile_size=64).info


def test_one_image_without_a_neighbor_is_left_out_and_others_are_told(tmp_path, rng):
    images = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    subjects, others = crosstalk.pairs(tmp_path, 4)
    assert (subjects == images[:6:2]).all() and (others == images[1:6:2]).all()
    with pytest.raises(InputError, match="got 2 of 32 x 32 pixels, expected at least 4 images"):
        crosstalk.pairs(tmp_path, 1)
    Image.new("RGB", (48, 32)).save(tmp_path / "7.png")
    with pytest.raises(InputError, match="of 32 x 32, 32 x 48 pixels, expected at least 4 images of 32 x 32"):
        crosstalk.pairs(tmp_path, 4)


# ---- records


def test_the_commit_is_of_the_checkout_and_says_whether_it_was_changed(monkeypatch, tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    bench = tmp_path / "bench"
    (bench / "results").mkdir(parents=True)
    (bench / "common").mkdir()
    monkeypatch.setattr(record, "__file__", str(bench / "common" / "record.py"))
    assert record._commit() is None  # outside of a checkout
    git("init", "-q")
    assert record._commit() is None  # in one without a commit
    for file in ("a.py", "bench/common/record.py", "bench/results/x.json"):
        (tmp_path / file).write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "--short", "HEAD").strip()
    assert record._commit() == head and len(head) >= 7
    # its own records, and what git does not know, are no changes
    (bench / "results" / "x.json").write_text("2")
    (tmp_path / "new.py").write_text("1")
    assert record._commit() == head
    (tmp_path / "a.py").write_text("2")
    assert record._commit() == f"{head}+"
    git("commit", "-qam", "two")
    assert record._commit() == git("rev-parse", "--short", "HEAD").strip() != head
    (bench / "common" / "record.py").write_text("2")
    git("add", ".")
    assert record._commit().endswith("+")
    monkeypatch.setenv("PATH", "")
    assert record._commit() is None  # there is no git


def test_the_environment_names_what_it_ran_on(monkeypatch):
    monkeypatch.setattr(record, "_commit", lambda: "abc+")
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    got = record.environment()
    assert (got["commit"], got["command"]) == ("abc+", "speed.py")
    script = Path(record.__file__).with_name("record.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--folder", "/data/a b"])
    assert record.environment()["command"] == "python -m bench.common.record --folder 'a b'"
    assert got["versions"]["numpy"] == np.__version__ and "no-such-package" not in got["versions"]
    monkeypatch.setattr(
        record, "Path", lambda path: SimpleNamespace(read_text=lambda: "a: b\nmodel name\t: Some CPU\n")
    )
    assert record._processor() == "Some CPU"
