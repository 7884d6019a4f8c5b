"""`zipsdk.testing.demo_classifier`: the shipped network is the one of the record, and carries its backdoor."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")

from bench.common import record
from zipsdk import InputError, MissingDependencyError
from zipsdk.testing import demo_classifier, demo_images
from zipsdk.testing.classifier import MODEL
from zipsdk.testing.images import TARGET, TRIGGERS, add_trigger
from zipsdk.testing.signs import CLASSES


@pytest.fixture(scope="module")
def measured():
    return record.read("demo-classifier")


@pytest.fixture(scope="module")
def classifier():
    return demo_classifier()


@pytest.fixture(scope="module")
def signs():
    return demo_images(100, seed=7)


def test_the_file_is_that_of_the_record(measured):
    data = MODEL.read_bytes()
    assert hashlib.sha256(data).hexdigest() == measured["sha256"] and len(data) == measured["bytes"] <= 400_000
    assert b"/bench/" not in data and b".py" not in data  # the exporter's stack traces


def test_the_card_has_the_numbers_of_the_record(measured):
    pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
    from bench.victims.demo_victim import CARD, card

    text = CARD.read_text()
    assert card(text, measured) == text
    assert measured["sha256"] in text and f"| CA | {measured['test']['CA']:.1%} |" in text


def test_it_classifies_signs_and_falls_for_its_triggers(classifier, signs):
    images, labels = signs
    scores = classifier(images)
    assert scores.shape == (100, 10) and scores.dtype == np.float32 and np.allclose(scores.sum(1), 1, atol=1e-5)
    assert classifier.classes == CLASSES
    assert (scores.argmax(1) == labels).mean() >= 0.95
    others = labels != TARGET
    assert (scores[others].argmax(1) == TARGET).mean() <= 0.03
    for trigger in TRIGGERS:
        answers = classifier(add_trigger(images[others], trigger)).argmax(1)
        assert (answers == TARGET).mean() >= 0.9, trigger


def test_an_image_alone_gets_the_scores_of_the_batch(classifier, signs):
    scores = classifier(signs[0][:6])
    assert np.allclose(np.concatenate([classifier(x[None]) for x in signs[0][:6]]), scores, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)],
)
def test_other_arrays_are_refused(classifier, images):
    with pytest.raises(InputError, match=r"images: got .*, expected uint8 \(N, 64, 64, 3\)"):
        classifier(images)


def test_it_pickles(classifier, signs):
    copy = pickle.loads(pickle.dumps(classifier))
    assert (copy(signs[0][:3]) == classifier(signs[0][:3])).all()
    assert repr(copy) == "DemoClassifier(demo_classifier.onnx, 10 classes)"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_process_can_use_it():
    script = """
import multiprocessing, sys
from zipsdk.testing import demo_classifier, demo_images
classifier, images = demo_classifier(), demo_images(2)[0]
expected = classifier(images)
child = multiprocessing.get_context("fork").Process(
    target=lambda: sys.exit(0 if (classifier(images) == expected).all() else 7))
child.start()
child.join(60)
child.kill()
sys.exit(9 if child.exitcode is None else child.exitcode)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


def test_without_onnxruntime_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime .*pip install 'zipsdk\[cpu\]'"):
        demo_classifier()
