"""Test the results of a guard: the decisive feature, JSON values and reprs without pixels."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

import zipsdk
from tests.fakes.guard import Cleaner, Recorder, dark, fail, poisoned
from tests.fakes.guard import Guard as ScaleUpGuard
from tests.fakes.guard import backdoored as patched
from tests.fakes.light import backdoored, photos, triggered
from zipsdk import AblationDetector, Guard, PurifyAll
from zipsdk.decision import Counters, Decision
from zipsdk.detectors.ablation_views import FEATURES


def test_the_feature_is_the_one_in_the_reason():
    x = photos(12)
    x[::2] = triggered(x[::2])
    decisions = Guard.fit(backdoored, photos(40, 1), Cleaner()).run(x)
    assert {d.flagged for d in decisions} == {True, False}
    for d in decisions:
        assert d.feature in FEATURES and f"most decisive feature: {d.feature}; " in d.reason
    assert {d.feature for d in decisions[::2]} == {"top left"}  # where the trigger is


def test_there_is_no_feature_without_a_score():
    for detector in (PurifyAll(), zipsdk.ScaleUp()):
        assert [d.feature for d in Guard(backdoored, Cleaner(), detector).run(photos(2))] == [None, None]
    (unchecked,) = Guard(Recorder(backdoored, [fail]), Cleaner()).run(photos(1))
    assert unchecked.label is not None and unchecked.feature is None
    (tied,) = Guard(lambda x: np.zeros((len(x), 3)), Cleaner()).run(photos(1))
    assert math.isnan(tied.suspicion) and tied.feature is None


def test_an_image_without_a_label_keeps_its_feature():
    (decision,) = Guard(Recorder(backdoored, [None, fail]), Cleaner()).run(triggered(photos(1)))
    assert decision.label is None and decision.suspicion is not None and decision.feature == "top left"


def test_a_users_detector_may_name_a_feature_or_not():
    class Named(zipsdk.ScaleUp):
        def feature(self, scores):
            return f"{len(scores)} views"

    class Unnamed:
        def __getattr__(self, name):
            if name == "feature":
                raise AttributeError(name)
            return getattr(zipsdk.ScaleUp(), name)

    batch = np.concatenate([dark(1), poisoned(dark(1))])
    assert [d.feature for d in ScaleUpGuard(patched, Cleaner(), Named()).run(batch)] == ["6 views"] * 2
    assert [d.feature for d in ScaleUpGuard(patched, Cleaner(), Unnamed()).run(batch)] == [None] * 2


def test_to_dict_has_all_fields_but_the_pixels():
    trusted, flagged = ScaleUpGuard(patched, Cleaner()).run(np.concatenate([dark(1), poisoned(dark(1))]))
    assert trusted.to_dict() == {
        "label": 1, "flagged": False, "suspicion": 0.0, "class_scores": np.eye(10)[1].tolist(), "feature": None,
        "reason": "not flagged: score 0, threshold 0.5", "error": None,
    }  # fmt: skip
    assert (flagged.to_dict()["flagged"], flagged.to_dict()["suspicion"]) == (True, 1.0)
    for d in (trusted, flagged):
        assert json.loads(json.dumps(d.to_dict(), allow_nan=False)) == d.to_dict()
        assert set(d.to_dict()) == {f.name for f in dataclasses.fields(d)} - {"image"}


@pytest.mark.parametrize("suspicion", [None, math.nan, math.inf, -math.inf, np.float32(1.5), 2])
def test_to_dict_is_json_whatever_the_scores(suspicion):
    scores = np.array([0.25, -math.inf, math.nan, 1e308])
    values = Decision(3, True, suspicion, scores, "why").to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["class_scores"] == [0.25, None, None, 1e308]
    finite = suspicion is not None and math.isfinite(suspicion)
    assert values["suspicion"] == (suspicion if finite else None)
    none = Decision(None, True, suspicion, None, "why", error="because").to_dict()
    assert (none["label"], none["class_scores"], none["error"]) == (None, None, "because")


def test_reprs_are_short_and_have_no_pixels():
    image = np.full((32, 32, 3), 77, np.uint8)
    for purified in (image, Image.fromarray(image), image.astype(np.float64)):
        shown = repr(Decision(7, True, 5.1234, np.full(1000, 0.77), "flagged: top left", purified, None, "top left"))
        assert shown == "Decision(label=7, flagged=True, suspicion=5.12, feature='top left')"
    shown = repr(Decision(None, True, None, None, "why", image, "the purifier failed: no room"))
    assert shown == (
        "Decision(label=None, flagged=True, suspicion=None, feature=None, error='the purifier failed: no room')"
    )


def test_counters_are_json_values():
    watch = Guard(backdoored, Cleaner(), AblationDetector())
    watch.run(photos(2))
    values = dataclasses.asdict(watch.counters)
    assert json.loads(json.dumps(values)) == values and values["images"] == 2 and values["queries"] >= 56
    assert Counters(**values) == watch.counters


def test_the_repr_of_a_guard_names_its_parts():
    assert repr(Guard(backdoored, Cleaner(), zipsdk.ScaleUp())) == "<Guard ScaleUp, Cleaner, adapt=False>"
