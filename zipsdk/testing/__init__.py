"""Try zipsdk without a classifier, images or a model of your own.

    classifier = zipsdk.testing.demo_classifier()
    images, labels = zipsdk.testing.demo_images(20, trigger="patch")

signs.py, scenes.py     road signs, drawn; scenes with them
images.py               labeled images, with a trigger or without
classifier.py           a classifier of them with a backdoor; demo_classifier.md says how it was made
engine.py               a fake engine for tests
"""

from zipsdk.testing.classifier import DemoClassifier, demo_classifier
from zipsdk.testing.engine import FakeEngine
from zipsdk.testing.images import demo_images

__all__ = ["DemoClassifier", "FakeEngine", "demo_classifier", "demo_images"]
