"""The errors that zipsdk raises. Each message says what it got, what it wanted and what to do.

ZipError
|-- InputError      (also ValueError)    a picture, an array or an option cannot be used as given
|   `-- PictureError                     a picture file cannot be read or written; the message names it
|-- ModelError      (also ValueError)    a model file is missing, damaged, or is not what it says it is
|-- EngineError     (also RuntimeError)  a runtime or a device cannot run the model here
|   `-- OutOfMemory                      no memory for it; on a GPU the loop halves its batch first
`-- MissingExtra    (also ImportError)   an optional package is not installed; the message has the pip command
"""

from __future__ import annotations


class ZipError(Exception):
    """Base of every error that zipsdk raises on purpose."""


class InputError(ZipError, ValueError):
    """A picture, an array or an option cannot be used as given."""


class PictureError(InputError):
    """A picture file cannot be read or written; the message names it."""


class ModelError(ZipError, ValueError):
    """A model file is missing, damaged, or is not what it says it is."""


class EngineError(ZipError, RuntimeError):
    """A runtime or a device cannot run the model here."""


class OutOfMemory(EngineError):
    """The device, or on a CPU the machine, has no memory for what was asked."""


class MissingExtra(ZipError, ImportError):
    """An optional package is not installed; the message has the pip command that brings it."""

    def __init__(self, package: str, extra: str, why: str = ""):
        detail = f" ({why})" if why else ""
        super().__init__(f"{package} is not usable here{detail}: pip install 'zipsdk[{extra}]'")
