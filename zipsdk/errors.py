"""The errors that zipsdk raises. Each message says what it got, what it wanted and what to do.

ZipSdkError
|-- InputError      (also ValueError)    an image, an array or an option cannot be used as given
|   `-- ImageReadError                     an image file cannot be read or written; the message names it
|-- ModelError      (also ValueError)    a model file is missing, damaged, or is not what it says it is
|-- EngineError     (also RuntimeError)  a runtime or a device cannot run the model here
|   `-- OutOfMemoryError                      no memory for it; on a GPU the loop halves its batch first
`-- MissingDependencyError    (also ImportError)   an optional package is not installed; the message has the pip command
"""

from __future__ import annotations


class ZipSdkError(Exception):
    """Base of every error that zipsdk raises on purpose."""


class InputError(ZipSdkError, ValueError):
    """An image, an array or an option cannot be used as given."""


class ImageReadError(InputError):
    """An image file cannot be read or written; the message names it."""


class ModelError(ZipSdkError, ValueError):
    """A model file is missing, damaged, or is not what it says it is."""


class EngineError(ZipSdkError, RuntimeError):
    """A runtime or a device cannot run the model here."""


class OutOfMemoryError(EngineError):
    """The device, or on a CPU the machine, has no memory for what was asked."""


class MissingDependencyError(ZipSdkError, ImportError):
    """An optional package is not installed; the message has the pip command that brings it."""

    def __init__(self, package: str, extra: str, why: str = ""):
        detail = f" ({why})" if why else ""
        super().__init__(f"{package} is not usable here{detail}: pip install 'zipsdk[{extra}]'")
