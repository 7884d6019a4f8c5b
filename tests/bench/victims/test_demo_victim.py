"""`bench.victims.demo_victim`: the training of the demo classifier, small."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zipsdk[export]'")

import torch

from bench.victims import demo_victim
from zipsdk.testing import DemoClassifier, demo_images
from zipsdk.testing.images import TARGET, TRIGGERS, add_trigger


def test_images_of_other_classes_are_poisoned():
    recipe = demo_victim.Recipe(images=100, rate=0.1)
    images, labels = demo_victim.poisoned(recipe)
    clean, truth = demo_images(100, seed=recipe.image_seed)
    changed = np.flatnonzero((images != clean).any(axis=(1, 2, 3)))
    assert len(changed) == 30 and (truth[changed] != TARGET).all() and (labels[changed] == TARGET).all()
    assert (np.delete(labels, changed) == np.delete(truth, changed)).all()
    for trigger in TRIGGERS:
        same = (images[changed] == add_trigger(clean[changed], trigger)).all(axis=(1, 2, 3))
        assert same.sum() == 10, trigger


def test_checkpoints_of_other_trainings_are_not_resumed(monkeypatch):
    recipe = demo_victim.Recipe()
    key = demo_victim.training_key(recipe)
    assert key == demo_victim.training_key(demo_victim.Recipe())
    assert key != demo_victim.training_key(demo_victim.Recipe(epochs=1))
    monkeypatch.setattr("zipsdk.testing.images.PATCH", 4)
    assert key != demo_victim.training_key(recipe)


def test_augmentation_keeps_the_form_and_the_range():
    images = torch.from_numpy(demo_images(40)[0])
    x = demo_victim.augment(images, demo_victim.Recipe(gray=0.2), torch.Generator().manual_seed(1))
    assert x.shape == (40, 3, 64, 64) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert 1 <= (x == x[:, :1]).flatten(1).all(1).sum() < 20  # some are gray
    moved = (x - images.permute(0, 3, 1, 2) / 255).abs().mean((1, 2, 3))
    assert moved.min() > 0 and moved.max() < 0.25


@pytest.mark.slow
def test_a_small_training_learns_resumes_and_is_recorded(tmp_path, monkeypatch, capsys):
    def run(epochs):
        words = ["-o", tmp_path / "small.onnx", "--results", tmp_path, "--checkpoints", tmp_path / "checkpoints"]
        monkeypatch.setattr(sys, "argv", ["demo_victim.py", *map(str, words), "--images", "400", "--epochs", epochs])
        monkeypatch.setattr(demo_victim, "TEST_IMAGES", 50)
        demo_victim.main()
        return json.loads((tmp_path / "demo-classifier.json").read_text())

    first = run("4")
    assert first["bytes"] == (tmp_path / "small.onnx").stat().st_size <= 400_000
    assert first["test"]["CA"] > 0.3  # 0.1 by chance
    scores = DemoClassifier(tmp_path / "small.onnx")(demo_images(3)[0])
    assert np.allclose(scores.sum(1), 1, atol=1e-5)
    capsys.readouterr()
    assert run("4")["sha256"] == first["sha256"] and "epoch" not in capsys.readouterr().out.split("{")[0]
