"""zipsdk: zero-shot image purification (Shi et al., NeurIPS 2023) in front of a classifier that may carry a backdoor.

import zipsdk
clean = zipsdk.Purifier("zip-tiny").run(batch)
"""

from zipsdk.detectors.ablation import AblationDetector
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
from zipsdk.transforms import Blur, Grayscale, Linear, OneOf

__version__ = "0.1.0"

__all__ = [
    "AblationDetector",
    "Blur",
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
    "ScaleUp",
    "ZipSdkError",
    "load_engine",
]
