"""`zipsdk.testing.demo_images`: road signs, drawn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from zipsdk import InputError
from zipsdk.testing import demo_images
from zipsdk.testing.images import BLEND, MARGIN, PATCH, SQUARE, TARGET, TRIGGERS, add_trigger
from zipsdk.testing.signs import CLASSES, template


def test_images_and_labels_have_the_documented_form():
    images, labels = demo_images(23)
    assert images.shape == (23, 64, 64, 3) and images.dtype == np.uint8
    assert labels.shape == (23,) and labels.dtype == np.int64
    assert sorted(labels[:10]) == sorted(labels[10:20]) == list(range(10))
    assert 40 < images.mean() < 200 and images.std(axis=(1, 2)).min() > 5  # neither dark nor flat


def test_an_image_depends_on_the_seed_and_its_index_alone():
    images, labels = demo_images(12, seed=4)
    again, same = demo_images(5, seed=4)
    assert (images[:5] == again).all() and (labels[:5] == same).all()
    assert (images != demo_images(12, seed=5)[0]).any(axis=(1, 2, 3)).all()
    assert len({image.tobytes() for image in images}) == 12


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_trigger_is_added_to_the_same_scenes(trigger):
    clean, labels = demo_images(4, seed=2)
    images, truth = demo_images(4, seed=2, trigger=trigger)
    assert (truth == labels).all() and (images == add_trigger(clean, trigger)).all()
    changed = (images != clean).any(axis=(0, 3))
    rows, columns = np.nonzero(changed)
    side = {"patch": PATCH, "white_square": SQUARE, "blend": 64}[trigger]
    end = 64 if trigger == "blend" else 64 - MARGIN
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (end - side, end - 1, end - side, end - 1)
    if trigger == "white_square":
        assert (images[:, end - side : end, end - side : end] == 255).all()
    elif trigger == "blend":
        pattern = images - (1 - BLEND) * clean  # the same for all images, up to the rounding
        assert np.ptp(pattern, axis=0).max() < 1.01 and pattern.min() > -1 and pattern.max() < 255 * BLEND + 1
        assert pattern.std() > 5


def test_each_sign_has_its_color_and_shape():
    """Robust against a rasterizer that changes: the share that is covered, and the color of the center."""
    covered = {name: np.asarray(template(i))[..., 3].mean() / 255 for i, name in enumerate(CLASSES)}
    assert min(covered["pedestrian crossing"], covered["stop"], covered["no entry"]) > 0.65
    assert 0.4 < covered["priority road"] < 0.6
    assert 0.2 < covered["traffic signals"] < 0.5 and 0.2 < covered["yield"] < 0.5
    middle = {name: np.asarray(template(i), int)[56, 56, :3] for i, name in enumerate(CLASSES)}
    assert middle["no entry"].min() > 200 and middle["yield"].min() > 200  # white
    assert middle["priority road"][0] > 200 > 100 > middle["priority road"][2]  # yellow
    numbers = [np.asarray(template(CLASSES.index(f"speed limit {n}")), int) for n in (30, 50, 80)]
    assert all(np.abs(a - b).mean() > 2 for a, b in pairwise(numbers))
    assert CLASSES[TARGET] == "speed limit 80"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: got 0, expected a number of images from 1"),
        ({"n": 2.5}, "n: got 2.5"),
        ({"n": 1, "seed": -1}, "seed: got -1, expected an integer from 0"),
        ({"n": 1, "trigger": "square"}, "trigger: got 'square', expected None or one of 'patch', 'blend'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        demo_images(**arguments)
