"""Test that texts of objects are short and show neither pixels nor weights."""

from __future__ import annotations

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine, make_spec
from zipsdk import Blur, Grayscale, Linear, OneOf, Purifier
from zipsdk.pending import SizeGroup
from zipsdk.sampling.tiling import plan_tiles

RANDOM = np.random.default_rng(1).standard_normal((2, 12))


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (Blur(2), "Blur(n=2)"),
        (Grayscale(), "Grayscale()"),
        (OneOf(Blur(2), [Blur(4), Grayscale()]), "OneOf(Blur(n=2), [Blur(n=4), Grayscale()])"),
        (Linear(RANDOM, block=(2, 2)), "Linear(<2x12 matrix>, block=(2, 2))"),
        (Linear.separable(RANDOM, RANDOM[:1]), "Linear.separable(<2x12 matrix>, <1x12 matrix>)"),
        (make_spec(), "<ModelSpec fake: fp32, images of 32..128 pixels>"),
        (make_spec(beta_schedule="betas", timesteps=50, betas=tuple(np.linspace(0.001, 0.1, 50))),
         "<ModelSpec fake: fp32, images of 32..128 pixels>"),
        (Purifier(FakeEngine(), seed=123456),
         "<Purifier fake: blur2+gray, lam=10.0, steps=20, start=None, eta=1.0, combine='mean'>"),
        (Purifier(FakeEngine(), [Linear(RANDOM, block=(2, 2))], preset="fast", lam=2),
         "<Purifier fake: linear2of2x2, lam=2.0, steps=4, start=400, eta=1.0, combine='mean'>"),
        (Purifier(FakeEngine(), "gray").guides, "(Guidance([Grayscale()], combine='mean'),)"),
        (Purifier(FakeEngine()).table, "<StepTable: 20 steps from t = 950, pure noise>"),
        (Purifier(FakeEngine(), preset="fast").table, "<StepTable: 4 steps from t = 400, warm>"),
    ],
)  # fmt: skip
def test_a_text_is_short_and_has_no_pixels_weights_or_seed(thing, text):
    assert repr(thing) == text


def test_groups_do_not_show_their_images():
    image = np.full((32, 32, 3), 77, np.uint8)
    layout = plan_tiles(make_spec(), 32, 32, 2, None)
    group = SizeGroup([0], [image], layout, np.uint64([1]), np.intp([0]), 1, lambda n: None)
    assert "77" not in repr(group)


def test_engines_show_model_precision_and_device():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    engine = zipsdk.load_engine("zip-tiny-int8", device="cpu", threads=2)
    assert repr(engine) == "<OnnxEngine zip-tiny-int8: int8, cpu, threads=2>"


def test_choices_of_transforms_are_compared_by_value():
    one = OneOf(Blur(2), [Blur(4), Grayscale()])
    assert one == OneOf(Blur(2), [Blur(4), Grayscale()]) and hash(one) == hash(OneOf(Blur(2), [Blur(4), Grayscale()]))
    assert one != OneOf([Blur(4), Grayscale()], Blur(2)) and one != "blur2|blur4+gray"
