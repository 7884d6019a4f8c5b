"""What every baseline keeps of what a `Defense` promises; ShrinkPad, the blur alone, and ZIP."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.literal import AB, smooth_images

pytest.importorskip("skimage")
pytest.importorskip("torch")

from PIL import Image

from bench.defenses.ddnm import DDNM
from bench.defenses.diffpure import DiffPure
from bench.defenses.guarded import Guarded
from bench.defenses.resizing import Resized
from bench.defenses.sampdetox import SampDetox
from bench.defenses.simple import BlurOnly, Nothing, ShrinkPad, fingerprints, noise_of
from bench.defenses.zip import Zip
from bench.evaluation.cache import hash_of
from zipsdk import Purifier
from zipsdk.errors import InputError
from zipsdk.sampling.noise import STEP_INITIAL
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.state import pad
from zipsdk.transforms import Blur, Grayscale, Linear, OneOf

pytestmark = pytest.mark.torch


def all_defenses(engine: FakeEngine) -> list:
    return [
        Nothing(),
        ShrinkPad(),
        BlurOnly("blur2+gray"),
        Resized(),
        Resized(0.75),
        DiffPure(engine, 100),
        DiffPure(engine, 150, "blur4", steps=30),
        DDNM(engine, "blur2"),
        DDNM(engine, [Blur(4), Grayscale()], steps=10),
        SampDetox(engine, budget=20),
        Zip(engine, "blur2+gray"),
        Zip(engine, "blur2|blur4", preset="fast"),
    ]


def each_defense():
    made = all_defenses(FakeEngine())
    return pytest.mark.parametrize("which", range(len(made)), ids=[d.name for d in made])


# ---- what a Defense promises


@each_defense()
@pytest.mark.parametrize("size", [(32, 32), (17, 30), (150, 40)])
def test_no_images_noise_depends_on_place_batch_or_order(which, size):
    defense = all_defenses(FakeEngine())[which]
    batch = smooth_images(5, *size)
    before = batch.copy()
    together = defense.run(batch, 3)
    assert together.shape == batch.shape and together.dtype == np.uint8
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_array_equal(defense.run(batch[::-1], 3)[::-1], together)
    for i in (0, 4):
        np.testing.assert_array_equal(defense.run(batch[i : i + 1], 3)[0], together[i])


@each_defense()
def test_seed_decides_what_is_random(which):
    defense, batch = all_defenses(FakeEngine())[which], smooth_images(3)
    same = np.array_equal(defense.run(batch, 1), defense.run(batch, 2**64 - 1))
    assert same == isinstance(defense, Nothing | BlurOnly | Resized)


@each_defense()
def test_steps_progress_and_facts(which):
    engine = FakeEngine()
    defense = all_defenses(engine)[which]
    done: list[int] = []
    out = defense.run(smooth_images(70), 0, progress=done.append)
    assert sum(done) == 70 and len(out) == 70
    visits = len(engine.calls) / max(1, len(done))  # one call of the engine a step for each part
    assert defense.total_steps == (visits if engine.calls else 0)
    assert defense.queries == 1 and defense.queries_classifier is False
    assert defense.run(smooth_images(1)[:0], 0).shape == (0, 32, 32, 3)
    with pytest.raises(InputError):
        defense.run(smooth_images(1).astype(np.float32), 0)


def test_memory_is_bounded_by_the_layout():
    engine = FakeEngine()
    DiffPure(engine, 10, steps=2).run(smooth_images(300), 0)
    assert max(shape[0] * shape[2] * shape[3] for shape, _ in engine.calls) == 256 * 32 * 32


def test_descriptions_are_json_and_differ_whenever_the_output_does():
    a, b = FakeEngine(make_spec(source_sha256="a")), FakeEngine(make_spec(source_sha256="b"))
    narrow = Linear([[1.0, 0.0, 0.0]])
    defenses = [
        *all_defenses(a),
        *(DiffPure(b, 100), DDNM(b, "blur2"), SampDetox(b, budget=20), Zip(b, "blur2+gray")),
        *(ShrinkPad(3), BlurOnly("blur2"), BlurOnly(narrow), BlurOnly(Linear([[0.0, 1.0, 0.0]]))),
        *(DiffPure(a, 100, steps=None), DiffPure(a, 100, steps=21), DiffPure(a, 101), DiffPure(a, 100, "gray")),
        *(DDNM(a, "blur2", steps=21), DDNM(a, "blur2", eta=0.5), DDNM(a, narrow), DDNM(a, "blur4")),
        *(SampDetox(a), SampDetox(a, t1=21), SampDetox(a, t2=121), SampDetox(a, budget=21)),
        *(SampDetox(a, data_range=255), SampDetox(a, data_range=2)),
        *(Zip(a, "blur2", steps=s, start=t) for s, t in ((20, None), (21, None), (20, 400), (21, 400))),
        *(Zip(a, "blur2+gray", combine="joint"), Zip(a, "blur2+gray", eta=0.5), Zip(a, "blur2+gray", lam=2.0)),
        *(Zip(a, "blur2", lam=float("inf")), Zip(a, [narrow]), Zip(a, OneOf(Blur(2), [Blur(4), Grayscale()]))),
        Zip(a, "blur2", steps=a.spec.timesteps),
    ]
    texts = [json.dumps(d.describe(), sort_keys=True, allow_nan=False) for d in defenses]
    assert len(set(texts)) == len(texts)
    again = [json.dumps(d.describe(), sort_keys=True) for d in all_defenses(a)]
    assert again == texts[: len(again)]
    assert "seed" not in Zip(a).describe() and "threads" not in json.dumps(texts)


def test_keys_of_measured_rows_never_change():
    """The keys of descriptions in bench/results/defense-cifar10.json at commit f4a6882."""
    sha256 = "74307a212c8f64ca8e2c7a375a386fa801394494ecd8970447f37460ab457edd"
    engine = FakeEngine(
        make_spec(name="zip-tiny", source_sha256=sha256, image_size=64, multiple=4, min_side=32, max_side=512)
    )
    engine.info = {"engine": "onnxruntime 1.32.0", "providers": ["CPUExecutionProvider"], "precision": "fp32"}
    zip_fast = Zip(engine, steps=4, start=400)
    keys = {
        "d7702b95da510037": Nothing(),
        "32de2b91d77e2975": ShrinkPad(),
        "5e38d3b182849193": BlurOnly("blur2"),
        "5be330df8948d1f0": Zip(engine),
        "cdef156314fa62d7": zip_fast,
        "628b1782db0ac4d9": Zip(engine, combine="joint"),
        "a79dbda00d707aab": Zip(engine, "blur4", lam=2.0),
        "f136fcca0521ca7f": Guarded(zip_fast, first=np.zeros((200, 32, 32, 3), np.uint8)),
        "5fe0abf1e1eb9103": Guarded(zip_fast, clean=np.zeros((200, 32, 32, 3), np.uint8)),
        "53dab175d1205d19": DiffPure(engine, 100),
        "d850cdbe8708baf5": DiffPure(engine, 100, "blur2", steps=None),
        "8b79b6936aeb10d4": DDNM(engine, "blur2"),
        "74f7480d73e05fb3": SampDetox(engine, budget=20),
        "8ded6ae2d0b110c8": SampDetox(engine, budget=20, data_range=255.0),
    }
    assert {hash_of(defense.describe()): defense.name for defense in keys.values()} == {
        key: defense.name for key, defense in keys.items()
    }


def test_names_tell_settings_apart():
    engine = FakeEngine()
    names = [d.name for d in (*all_defenses(engine), SampDetox(engine), SampDetox(engine, data_range=255))]
    names += [d.name for d in (Zip(engine, steps=engine.spec.timesteps), ShrinkPad(8))]
    assert len(set(names)) == len(names)
    assert Zip(engine, "blur2", steps=engine.spec.timesteps).name == "blur2 + ZIP (lambda 10, Algorithm 1)"


def test_transforms_are_told_apart_by_what_they_do():
    low, high = (Linear(m) for m in ([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]))
    assert str(low) == str(high)
    assert fingerprints([low]) != fingerprints([high])
    assert fingerprints([low]) == fingerprints([Linear([[1.0, 0.0, 0.0]])])
    assert fingerprints([Blur(2), Grayscale()]) == ["blur2", "gray"]


@pytest.mark.parametrize(
    "make",
    [
        lambda e: ShrinkPad(0),
        lambda e: ShrinkPad(32),
        lambda e: BlurOnly([]),
        lambda e: BlurOnly("blur2|gray"),
        lambda e: DiffPure(e, 1),
        lambda e: DiffPure(e, 1001),
        lambda e: DiffPure(e, 10, steps=11),
        lambda e: DiffPure(e, 10, "sharpen"),
        lambda e: DDNM(e, ""),
        lambda e: DDNM(e, "blur2", eta=1.1),
        lambda e: DDNM(e, "blur2", steps=0),
        lambda e: SampDetox(e, budget=1),
        lambda e: SampDetox(e, budget=141),
        lambda e: SampDetox(e, t1=1),
        lambda e: SampDetox(e, data_range=0),
        lambda e: Zip(e, lam=0.0),
        lambda e: Zip(e, preset="best"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_told_when_made(make):
    with pytest.raises(InputError, match=r"got .*(expected|wanted)"):
        make(FakeEngine())


# ---- the simple ones


@pytest.mark.parametrize(("side", "shrink"), [(32, 4), (64, 8), (30, 4), (100, 13), (1, 0), (2, 0)])
def test_shrinkpad_puts_the_shrunk_image_on_black(side, shrink):
    batch = 1 + smooth_images(40, side, side) // 2
    out = ShrinkPad().run(batch, 5)
    places = set()
    for before, after in zip(batch, out, strict=True):
        rows, columns = (np.flatnonzero(after.any(axis)) for axis in ((1, 2), (0, 2)))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        want = np.asarray(Image.fromarray(before).resize((side - shrink,) * 2, Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(after[box], want)
        places.add((rows[0], columns[0]))
    # of (shrink + 1)^2 equally likely places, 40 draws leave few that no image took
    assert max(map(max, places)) <= shrink and len(places) > min(40, (shrink + 1) ** 2) / 2
    assert len({p[0] for p in places}) > shrink / 2 and len({p[1] for p in places}) > shrink / 2


def test_shrinkpad_treats_each_side_by_itself():
    out = ShrinkPad().run(np.full((20, 16, 64, 3), 200, np.uint8), 0)
    assert ((out > 0).all(-1).sum((1, 2)) == 14 * 56).all()


def test_blur_only_is_the_mean_of_each_cell():
    batch = smooth_images(3, 33, 30)
    cells = pad(batch, 36, 32).astype(float).reshape(3, 9, 4, 8, 4, 3).mean((2, 4))
    exact = cells.repeat(4, 1).repeat(4, 2)[:, :33, :30]
    # sixteenths are exact, so a mean that ends in .5 may round either way, and nothing else
    assert np.abs(BlurOnly(Blur(4)).run(batch, 0) - exact).max() <= 0.5


def test_blur_only_joins_transforms():
    """Color at half resolution, and gray in full: the gray of the output is the input's."""
    batch = smooth_images(2)
    out = BlurOnly("blur2+gray").run(batch, 0).astype(float)
    assert np.abs(out.mean(-1) - batch.mean(-1)).max() <= 0.5 + 1e-9
    assert np.abs(out - batch).mean() > 3


# ---- ZIP


@pytest.mark.parametrize("settings", [{}, {"preset": "fast"}, {"lam": 2.0, "combine": "joint"}, {"steps": 7}])
def test_zip_is_the_purifier_with_this_seed(settings):
    engine, batch = FakeEngine(), smooth_images(3, 40, 36)
    defense = Zip(engine, "blur2+gray", **settings)
    for seed in (9, 3):
        want = Purifier(engine, "blur2+gray", **settings, seed=seed).run(batch)
        np.testing.assert_array_equal(defense.run(batch, seed), want)


def test_algorithm_1_visits_every_step():
    engine = FakeEngine(make_spec(timesteps=60))
    defense = Zip(engine, "blur2", lam=2.0, steps=60)
    assert defense.total_steps == 60
    assert defense._purifier.table == step_table(engine.spec, lam=2.0, eta=1.0, steps=60)
    defense.run(smooth_images(1), 0)
    assert [t for _, t in engine.calls] == list(range(59, -1, -1))


def test_all_take_the_noise_of_the_purifier():
    """So that ZIP and a baseline differ by their formulas, not by their draws."""
    batch = smooth_images(2)
    seen = []

    class Watch(FakeEngine):
        def __call__(self, x, t):
            seen.append(x.copy())
            return super().__call__(x, t)

    Zip(Watch(), "blur2").run(batch, 6)
    first = seen[0]
    seen.clear()
    DDNM(Watch(), "blur2").run(batch, 6)
    np.testing.assert_array_equal(seen[0], first)
    np.testing.assert_array_equal(first, noise_of(batch, 6).normal(STEP_INITIAL, 32, 32))
    seen.clear()
    DiffPure(Watch(), 100).run(batch, 6)
    x_p = batch.transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(seen[0] - np.sqrt(AB[99]) * x_p - np.sqrt(1 - AB[99]) * first).max() < 1e-6
