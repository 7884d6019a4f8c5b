"""Lite-BD: both stages, what neither can do, and the number of queries."""

from __future__ import annotations

import numpy as np
import pytest

from bench.defenses.litebd import LiteBD, _gains, chosen_band
from tests.helpers.literal import smooth_images
from zipsdk.errors import InputError, ModelError

WAVE = np.cos(2 * np.pi * 6 * np.arange(32) / 32)  # below half the highest frequency: resizing by 0.5 keeps it
BOARD = 2 * (np.indices((6, 6)).sum(0) % 2) - 1


class Counted:
    """Dark is 0, bright is 1, the trigger is 2. Counts queries."""

    def __init__(self, triggered):
        self.triggered, self.queries = triggered, 0

    def __call__(self, images):
        self.queries += len(images)
        x = images.astype(float)
        labels = np.where(self.triggered(x), 2, x.mean((1, 2, 3)) > 127)
        return np.eye(3, dtype=np.float32)[labels]


def board(x):
    return (x[:, 20:26, 20:26].mean(-1) * BOARD).mean((1, 2)) > 40


def wave(x):
    return (x.mean((1, 3)) * WAVE).mean(-1) > 5


def tint(x):
    return (x[..., 0] - x[..., 2]).mean((1, 2)) > 30


@pytest.fixture
def clean() -> np.ndarray:
    y, x = np.indices((32, 32)) / 31
    base = np.array([70, 90, 165, 185])[:, None, None]
    return (base + 15 * y - 10 * x)[..., None].repeat(3, -1).astype(np.uint8)


def with_board(images):
    out = images.copy()
    out[:, 20:26, 20:26] = np.clip(127 + 127 * BOARD, 0, 255)[..., None]
    return out


def with_wave(images):
    return np.clip(images + 20 * WAVE[:, None], 0, 255).astype(np.uint8)


def with_tint(images):
    return np.clip(images + np.array([25, 0, -25]), 0, 255).astype(np.uint8)


TRUTH = [0, 0, 1, 1]


def test_stage_1_takes_a_fine_patch_away_in_two_queries(clean):
    classify, x = Counted(board), with_board(clean)
    assert classify(x).argmax(1).tolist() == [2] * 4
    classify.queries = 0
    out = LiteBD().run(x, 0, classify=classify)
    assert classify.queries == 2 * 4
    assert classify(out).argmax(1).tolist() == TRUTH
    np.testing.assert_array_equal(out, LiteBD().stage_1.run(x, 0))


def test_stage_2_takes_a_wave_away_in_all_queries(clean):
    classify, x = Counted(wave), with_wave(clean)
    assert classify(LiteBD().stage_1.run(x, 0)).argmax(1).tolist() == [2] * 4  # stage 1 alone fails
    classify.queries = 0
    out = LiteBD().run(x, 0, classify=classify)
    assert classify.queries == 23 * 4 == LiteBD().queries * 4
    assert classify(out).argmax(1).tolist() == TRUTH
    # the rest of the image stays; three gray levels are the ramps of the filter and the unsharp mask
    inside = np.s_[:, 6:26, 6:26]
    assert (
        np.abs(out[inside].astype(int) - clean[inside]).mean()
        < 3
        < np.abs(x[inside].astype(int) - clean[inside]).mean()
    )


def test_a_tint_outlives_both_stages(clean):
    classify, x = Counted(tint), with_tint(clean)
    out = LiteBD().run(x, 0, classify=classify)
    np.testing.assert_array_equal(out, x)
    assert classify.queries == 22 * 4  # no band changes the label, so no result is queried
    assert classify(out).argmax(1).tolist() == [2] * 4


def test_the_attackers_class_is_not_known(clean):
    """Permuted classes give the same images: no class is special."""
    x = np.concatenate([clean, with_wave(clean), with_board(clean)])
    classify = Counted(lambda x: wave(x) | board(x))
    out = LiteBD().run(x, 0, classify=classify)
    np.testing.assert_array_equal(LiteBD().run(x, 9, classify=lambda i: np.roll(classify(i), 1, axis=1)), out)
    np.testing.assert_array_equal(out[:4], clean)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 30), (64, 48)])
def test_no_image_depends_on_its_batch(size):
    batch = np.random.default_rng(1).integers(0, 256, (70, *size, 3), np.uint8)
    weights = np.random.default_rng(2).standard_normal((batch[0].size, 4))
    done = []

    def classify(images):
        return images.reshape(len(images), -1).astype(float) @ weights

    before = batch.copy()
    out = LiteBD(bands=5).run(batch, 0, classify=classify, progress=done.append)
    assert out.shape == batch.shape and out.dtype == np.uint8 and sum(done) == 70
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_array_equal(LiteBD(bands=5).run(batch[::-1], 3, classify=classify)[::-1], out)
    np.testing.assert_array_equal(LiteBD(bands=5).run(batch[69:], 0, classify=classify)[0], out[69])
    assert LiteBD().run(batch[:0], 0, classify=classify).shape == (0, *size, 3)


def test_bands_stop_their_frequencies_and_no_others():
    gains = _gains(32, 32, 20, 0.08)
    assert gains.shape == (20, 32, 17) and gains.min() == 0 and gains.max() == 1
    assert (gains[:, 0, 0] == 1).all()
    # 6 of 32 cycles on one axis: 0.375 of an axis, 0.265 of the diagonal, the sixth of 20 bands
    assert gains[5, 0, 6] == gains[5, 6, 0] == 0
    assert gains[3, 0, 6] == pytest.approx(0.5 - 0.5 * np.cos(np.pi * (6 / 32 / np.sqrt(0.5) - 0.2) / 0.08))
    assert (gains[[0, 1, 2, 9, 19], 0, 6] == 1).all()
    # a frequency that no band stops could carry a trigger through stage 2
    assert (gains.min(0).ravel()[1:] == 0).all()
    batch = smooth_images(1, 20, 33)
    np.testing.assert_allclose(
        LiteBD(bands=1).without_bands(batch[0])[0], batch.mean((1, 2))[0] + np.zeros_like(batch[0])
    )


@pytest.mark.parametrize(
    ("labels", "band"),
    [([0, 0, 0], None), ([], None), ([0, 1, 2, 1], 3), ([1, 1, 1, 2, 2], 1), ([1, 2, 0, 0], 1), ([2, 1, 1, 2, 0], 3)],
)
def test_majority_of_the_changed_labels_picks_the_band(labels, band):
    assert chosen_band(np.array(labels, int), 0) == band


def test_descriptions_and_names():
    made = [LiteBD(), LiteBD(bands=50), LiteBD(scale=0.75), LiteBD(transition=0.1), LiteBD(unsharp=0)]
    assert len({str(d.describe()) for d in made}) == len(made) and len({d.name for d in made[:3]}) == 3
    assert (LiteBD().queries, LiteBD(bands=50).queries, LiteBD().total_steps) == (23, 53, 0)


@pytest.mark.parametrize(
    "options",
    [{"bands": 0}, {"transition": 0}, {"transition": 1}, {"unsharp": -1}, {"unsharp": float("nan")}, {"scale": 1}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match=r"got .*expected"):
        LiteBD(**options)


def test_it_needs_a_classifier_that_answers(clean):
    with pytest.raises(InputError, match="Lite-BD queries it"):
        LiteBD().run(clean, 0)
    with pytest.raises(ModelError, match="expected finite scores"):
        LiteBD().run(clean, 0, classify=lambda images: np.full((len(images), 3), np.nan))
