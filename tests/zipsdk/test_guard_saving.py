"""Test that a saved guard decides as before, and that other files are refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.guard import Cleaner
from tests.fakes.light import backdoored, by_light, photos, triggered
from tests.helpers.decisions import content
from zipsdk import AblationDetector, Guard, InputError, Purifier, PurifyAll, ScaleUp
from zipsdk.detectors.base import Detector


def uneven(x):
    """Return scores whose class changes with some scales of some images."""
    return np.eye(3)[x.mean(axis=(1, 2, 3)).astype(int) * 3 // 256]


def shades():
    levels = np.random.default_rng(0).integers(1, 250, 40)
    return np.tile(levels[:, None, None, None], (1, 6, 6, 3)).astype(np.uint8)


DETECTORS = {
    "default": AblationDetector(),
    "measured": AblationDetector(threshold=math.pi, certain=10 / 3, learn=99).calibrate(by_light, photos(20)),
    "scale-up": ScaleUp((2, 7), 1 / 3),
    "z-scores": ScaleUp().calibrate(uneven, shades(), threshold=-1 / 7),
    "all": PurifyAll(),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_loaded_detector_is_equal(name, tmp_path):
    detector = DETECTORS[name]
    detector.save(tmp_path / "detector.json")
    loaded = type(detector).load(tmp_path / "detector.json")
    assert loaded == detector and type(loaded) is type(detector)
    assert Guard.load(tmp_path / "detector.json", by_light, Cleaner()).detector == detector
    # every bit of every number
    loaded.save(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "detector.json").read_bytes()
    json.loads((tmp_path / "again.json").read_text(), parse_constant=pytest.fail)


def test_calibrated_detectors_have_something_to_save():
    assert DETECTORS["measured"].reference is not None
    assert DETECTORS["z-scores"].overall is not None and DETECTORS["z-scores"].classes


def test_a_loaded_guard_decides_as_before(tmp_path):
    purifier, x = Purifier(FakeEngine(), "blur2", steps=2, seed=1), photos(20, 7)
    x[::2] = triggered(x[::2])
    guard = Guard.fit(backdoored, photos(40), purifier)
    guard.save(tmp_path / "guard.json")
    loaded = Guard.load(tmp_path / "guard.json", backdoored, purifier, timeout=60, max_batch=7)
    assert (loaded.adapt, loaded._classifier.timeout, loaded._classifier.max_batch) == (False, 60, 7)
    expected = [content(d) for d in guard.run(x)]
    assert [content(d) for d in loaded.run(x)] == expected
    assert [content(d) for d in Guard(backdoored, purifier).run(x)] != expected
    assert [p.name for p in tmp_path.iterdir()] == ["guard.json"]


def test_an_adapting_guard_saves_what_it_has_learned(tmp_path):
    guard = Guard(by_light, Cleaner(), AblationDetector(learn=20), adapt=True)
    guard.run(photos(19))
    guard.save(tmp_path / "early.json")
    assert Guard.load(tmp_path / "early.json", by_light, Cleaner()).detector == AblationDetector(learn=20)
    guard.run(photos(9, 1))
    guard.save(tmp_path / "late.json")
    late = Guard.load(tmp_path / "late.json", by_light, Cleaner(), adapt=True)
    assert late.adapt and late.detector == guard.detector and late.detector.reference is not None


def test_saving_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "detector.json"
    ScaleUp().save(path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("no power")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no power"):
        AblationDetector().save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@dataclass(frozen=True)
class Stricter(ScaleUp):
    """A user's subclass."""

    margin: float = 0.25


def test_a_users_subclass_is_loaded_by_its_own_class(tmp_path):
    Guard(by_light, Cleaner(), Stricter(margin=1 / 7)).save(tmp_path / "mine.json")
    assert Stricter.load(tmp_path / "mine.json") == Stricter(margin=1 / 7)
    with pytest.raises(InputError, match="got the detector 'Stricter', expected AblationDetector or ScaleUp or Purif"):
        Guard.load(tmp_path / "mine.json", by_light, Cleaner())


def test_a_users_detector_is_not_saved(tmp_path):
    class Mine(Detector):
        views = second_look_views = score = is_suspicious = explain = resolve = lambda self, *_: None

    with pytest.raises(InputError, match="detector: got Mine, expected one of zipsdk; save your own"):
        Guard(by_light, Cleaner(), Mine()).save(tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == []


def written(**changes) -> dict:
    """Return the content of a saved detector, with changes."""
    options = {"threshold": 3.3, "certain": 4.5, "reference": None, "learn": 200}
    return {"format": "zipsdk detector", "version": 1, "detector": "AblationDetector", "options": options, **changes}


def test_the_format(tmp_path):
    AblationDetector().save(tmp_path / "detector.json")
    assert json.loads((tmp_path / "detector.json").read_text()) == written()


OPTIONS = written()["options"]
WRONG = {
    "another program": ({"images": 3}, "got another kind of file, expected one that save has written"),
    "a list": ([written()], "got another kind of file"),
    "a newer version": (written(version=2), "got version 2, expected 1"),
    "no version": (written(version=None), "got version None, expected 1"),
    "another detector": (written(detector="Mine"), "got the detector 'Mine', expected AblationDetector or ScaleUp"),
    "a detector of another type": (written(detector=["ScaleUp"]), r"got the detector \['ScaleUp'\]"),
    "the options of another": (written(detector="ScaleUp"), "got options .*expected values for scales, threshold"),
    "no options": (written(options=None), "got options None, expected values for threshold, certain"),
    "a missing option": (written(options={"threshold": 3.3}), "got options .*expected values for threshold, certain"),
    "an unknown option": (written(options={**OPTIONS, "more": 1}), "got options .*expected values for"),
    "a bad number": (written(options={**OPTIONS, "threshold": -1}), "threshold: got -1, expected a standardized"),
    "a bad reference": (written(options={**OPTIONS, "reference": [[0, 1]]}), "reference: got .*27 pairs"),
    "a huge number": (written(options={**OPTIONS, "reference": [[10**400, 1]] * 27}), "reference: got .*27 pairs"),
    "nan": (written(options={**OPTIONS, "certain": math.nan}), "certain: got nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused(name, tmp_path):
    wrong, message = WRONG[name]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=rf"wrong\.json: {message}"):
        Guard.load(tmp_path / "wrong.json", by_light, Cleaner())
    with pytest.raises(InputError, match=r"wrong\.json: got|wrong\.json: \w+: got"):
        AblationDetector.load(tmp_path / "wrong.json")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n", b"{", b"[" * 100_000, b"null", b"3"])
def test_a_file_that_is_no_json_is_refused(data, tmp_path):
    (tmp_path / "wrong.json").write_bytes(data)
    with pytest.raises(InputError, match=r"wrong\.json: got another kind of file"):
        ScaleUp.load(tmp_path / "wrong.json")


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=r"got (FileNotFound|IsADirectory)Error: .*expected a readable file"):
            Guard.load(path, by_light, Cleaner())
    for path in (None, 3, b"x.json"):
        with pytest.raises(InputError, match=r"path: got .*expected the path of a file"):
            AblationDetector.load(path)
        with pytest.raises(InputError, match=r"path: got .*expected the path of a file"):
            Guard(by_light, Cleaner(), PurifyAll()).save(path)
    AblationDetector().save(tmp_path / "ablation.json")
    with pytest.raises(InputError, match=r"got the detector 'AblationDetector', expected ScaleUp$"):
        ScaleUp.load(tmp_path / "ablation.json")
