"""Test the properties of A, A^+ and P that the method requires."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from zipsdk import Purifier
from zipsdk.errors import InputError, ModelError
from zipsdk.sampling import guidance
from zipsdk.sampling.guidance import Guidance
from zipsdk.transforms import Blur, Grayscale, Linear, OneOf, SeparableLinear, Transform, parse, recommended

RNG = np.random.default_rng(5)
TRANSFORMS = [
    Blur(2),
    Blur(3),
    Blur(4),
    Blur(8),
    Blur(16),
    Grayscale(),
    Linear([[0.299, 0.587, 0.114]]),
    Linear([[1, 0, 0], [1, 0, 0]]),  # rank 1 of two rows
    Linear(RNG.standard_normal((7, 27)), block=(3, 3)),
    Linear(RNG.standard_normal((3, 24)), block=(2, 4)),
    Linear.separable(RNG.standard_normal((5, 8)), RNG.standard_normal((3, 6))),
    Linear.separable(np.eye(48)[:40], np.eye(48)),  # whole rows of a 48-pixel image
]


@pytest.mark.parametrize("a", TRANSFORMS, ids=str)
def test_pseudo_inverse_and_projection_satisfy_their_equations(a):
    assert isinstance(a, Transform)
    x = RNG.uniform(-1, 1, (2, 3, 48, 96 if a.divisor != 48 else 48))
    before = x.copy()
    y = a.forward(x)
    np.testing.assert_allclose(a.forward(a.pinv(y)), y, atol=1e-10)  # A A^+ A = A
    p = a.project(x)
    np.testing.assert_allclose(p, a.pinv(y), atol=1e-10)
    np.testing.assert_allclose(a.project(p), p, atol=1e-10)  # P P = P
    z = RNG.uniform(-1, 1, x.shape)
    assert np.sum(z * p) == pytest.approx(np.sum(a.project(z) * x), abs=1e-9)  # P is symmetric: orthogonal
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(p, x)


@pytest.mark.parametrize("a", TRANSFORMS, ids=str)
def test_float32_stays_float32(a):
    x = RNG.uniform(-1, 1, (1, 3, 48, 48)).astype(np.float32)
    p = a.project(x)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, a.project(x.astype(np.float64)), atol=3e-6)


def test_blur_and_gray_equal_their_definitions():
    x = RNG.uniform(-1, 1, (1, 3, 8, 12))
    expected = np.empty_like(x)
    for y0 in range(0, 8, 4):
        for x0 in range(0, 12, 4):
            for c in range(3):
                expected[0, c, y0 : y0 + 4, x0 : x0 + 4] = x[0, c, y0 : y0 + 4, x0 : x0 + 4].mean()
    np.testing.assert_allclose(Blur(4).project(x), expected, atol=1e-14)
    np.testing.assert_allclose(Grayscale().project(x), np.broadcast_to(x.mean(1, keepdims=True), x.shape), atol=1e-14)


def test_joint_is_the_orthogonal_projection_on_both_range_spaces():
    side = 4
    d = 3 * side * side
    guide = Guidance([Blur(2), Grayscale()], "joint")
    p = guide(np.eye(d).reshape(d, 3, side, side)).reshape(d, d)
    p1, p2 = (t.project(np.eye(d).reshape(d, 3, side, side)).reshape(d, d) for t in guide.transforms)
    np.testing.assert_allclose(p, p1 + p2 - p1 @ p2, atol=1e-12)
    np.testing.assert_allclose(p @ p, p, atol=1e-12)
    np.testing.assert_allclose(p, p.T, atol=1e-12)
    # its rank: blurred colors and gray detail, 3/4 n^2 + n^2 - n^2/4
    assert round(np.trace(p)) == 12 + 16 - 4
    mean = Guidance([Blur(2), Grayscale()])
    np.testing.assert_allclose(mean(np.eye(d).reshape(d, 3, side, side)).reshape(d, d), (p1 + p2) / 2, atol=1e-12)


@pytest.mark.parametrize("kind", [Blur, Grayscale, Linear, SeparableLinear])
def test_the_divisor_is_a_property_as_in_the_protocol(kind):
    """Pyright, unlike mypy, accepts no class variable for a property of a protocol."""
    assert isinstance(inspect.getattr_static(kind, "divisor"), property)


def test_guide_divisor_is_the_least_common_multiple():
    assert Guidance([Blur(4), Blur(6), Grayscale()]).divisor == 12


def test_the_largest_divisor_is_accepted(monkeypatch):
    monkeypatch.setattr(guidance, "MAX_DIVISOR", 12)
    assert Guidance([Blur(4), Blur(6)]).divisor == 12
    with pytest.raises(InputError, match="every 14 pixels only, expected at most 12"):
        Guidance([Blur(2), Blur(7)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(1), "at least 2"),
        (lambda: Blur(2.0), "integer"),  # type: ignore[arg-type]
        (lambda: Blur(True), "integer"),
        (lambda: Blur(np.int64(1)), "at least 2"),  # type: ignore[arg-type]
        (lambda: Linear(np.eye(3)), "keeps everything"),
        (lambda: Linear(np.ones((2, 4))), "3 columns"),
        (lambda: Linear([[np.nan, 0, 0]]), "finite"),
        (lambda: Linear(np.ones((2, 12)), block=2), "block=2, expected"),  # type: ignore[arg-type]
        (lambda: Linear(np.ones((2, 9)), block=(-1, -3)), "at least 1"),
        (lambda: Linear(np.ones((2, 12)), block=(2, 2.0)), "integers"),  # type: ignore[arg-type]
        (lambda: Linear(np.ones((2, 3)), block=(1,)), "height, width"),  # type: ignore[arg-type]
        (lambda: Linear.separable(np.eye(2), np.eye(2)), "keep everything"),
        (lambda: Guidance([]), "at least one"),
        (lambda: Guidance([Blur(2)], "sum"), "combine"),
        (lambda: Guidance(["blur2"]), "objects such as"),  # type: ignore[list-item]
        (lambda: Guidance([Grayscale]), "got <class .*Grayscale'>, expected objects such as"),  # type: ignore[list-item]
        (lambda: Guidance([Grayscale(), Linear([[1, -1, 0], [0, 1, -1]])]), "keep everything"),
        # refused before they take gigabytes of memory
        (lambda: Guidance([Blur(9999)]), "blur9999: got cells that align every 9999 pixels only"),
        (
            lambda: Guidance([Blur(97), Blur(101), Blur(103)]),
            "every 1009091 pixels only, expected at most 2048; choose",
        ),
        (lambda: OneOf(Blur(2)), "at least 2"),
        (lambda: OneOf(5, Blur(2)), "got 5, expected one such as"),  # type: ignore[arg-type]
        (lambda: parse("blur"), "expected blurN"),
        (lambda: parse("blur2+"), "expected blurN"),
        (lambda: parse(""), "expected blurN"),
    ],
)
def test_invalid_transforms_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_blur_accepts_numpy_integers():
    assert Blur(np.uint8(16)) == Blur(16) and type(Blur(np.uint8(16)).n) is int
    x = RNG.uniform(-1, 1, (1, 3, 32, 32))
    np.testing.assert_array_equal(Blur(np.uint8(16)).project(x), Blur(16).project(x))


def test_parse_reads_names_and_choices():
    assert parse("blur2+gray") == [Blur(2), Grayscale()]
    assert parse(" Blur8 ") == [Blur(8)]
    one_of = parse("blur2|blur4+gray")
    assert isinstance(one_of, OneOf)
    assert one_of.choices == ((Blur(2),), (Blur(4), Grayscale()))
    assert str(one_of) == "blur2|blur4+gray"


def test_a_model_that_recommends_an_unknown_transform_is_refused():
    spec = make_spec(transforms=("blur2", "blurr2"))
    with pytest.raises(ModelError, match=r"fake: model spec: transforms: got 'blurr2' in 'blur2\+blurr2'"):
        Purifier(FakeEngine(spec))
    assert Purifier(FakeEngine(spec), "blur4").info["transforms"] == "blur4"
    assert recommended(make_spec(transforms=("blur4", "gray"))) == [Blur(4), Grayscale()]
