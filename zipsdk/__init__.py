"""Purify images in front of a classifier that may carry a backdoor (ZIP: Shi et al., NeurIPS 2023).

    import zipsdk
    clean = zipsdk.Purifier("zip-tiny").run(batch)

purifier.py, guard.py       entry points: purify every image, or the suspicious ones only
transforms.py               the linear transforms; a new one has the members of `Transform`
presets.py, settings.py     defaults and settings of a purifier
decider.py, decision.py     what is behind `Guard.run`, and its results
dispatcher.py, pending.py   what is behind `Purifier.run`: groups of one size, on the loop of the CPU or of the GPU
sampling/                   the method: sampler.py has the loop
images/                     files, PIL images and arrays to uint8 RGB and back; EXIF in metadata.py
detectors/                  which images are suspicious
engines/, models/, gpu/     the UNet: runtimes; model files; the loop on a GPU
batch/, cli/                folders of images; the command ``zipsdk``
testing/                    road signs, a classifier of them with a backdoor, a fake engine

The defenses that ZIP is compared with are in bench/defenses of the repository.
"""

from zipsdk import images, testing
from zipsdk.decision import Counters, Decision
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.base import Detector
from zipsdk.detectors.purify_all import PurifyAll
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.engines import load_engine
from zipsdk.errors import (
    EngineError,
    ImageReadError,
    InputError,
    MissingDependencyError,
    ModelError,
    OutOfMemoryError,
    ZipSdkError,
)
from zipsdk.guard import Guard
from zipsdk.models.spec import ModelSpec
from zipsdk.purifier import Purifier
from zipsdk.settings import Settings
from zipsdk.transforms import Blur, Grayscale, Linear, OneOf, Transform
from zipsdk.types import Classifier, Engine

__version__ = "0.1.0"

__all__ = [
    "AblationDetector",
    "Blur",
    "Classifier",
    "Counters",
    "Decision",
    "Detector",
    "Engine",
    "EngineError",
    "Grayscale",
    "Guard",
    "ImageReadError",
    "InputError",
    "Linear",
    "MissingDependencyError",
    "ModelError",
    "ModelSpec",
    "OneOf",
    "OutOfMemoryError",
    "Purifier",
    "PurifyAll",
    "ScaleUp",
    "Settings",
    "Transform",
    "ZipSdkError",
    "images",
    "load_engine",
    "testing",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
