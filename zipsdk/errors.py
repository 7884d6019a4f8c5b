"""Define the errors that zipsdk raises. Each message says what it got, what it expected and what to do.

ZipSdkError
|-- InputError               (also ValueError)    an image, an array or an option cannot be used as given
|   `-- ImageReadError                            an image file cannot be read or written; the message names it
|-- ModelError               (also ValueError)    a model file is missing or damaged, or its contents are wrong
|-- EngineError              (also RuntimeError)  a runtime or a device cannot run the model on this machine
|   `-- OutOfMemoryError                          too little memory; on a GPU the loop halves its batch first
`-- MissingDependencyError   (also ImportError)   an optional package is not installed; the message has the pip command
"""

from __future__ import annotations


class ZipSdkError(Exception):
    """Base of every error that zipsdk raises on purpose."""


class InputError(ZipSdkError, ValueError):
    """An image, an array or an option cannot be used as given."""


class ImageReadError(InputError):
    """An image file cannot be read or written; the message names it."""


class ModelError(ZipSdkError, ValueError):
    """A model file is missing or damaged, or its contents are wrong."""


class EngineError(ZipSdkError, RuntimeError):
    """A runtime or a device cannot run the model on this machine."""


class OutOfMemoryError(EngineError):
    """The GPU, or for a CPU the machine, has too little memory."""


class MissingDependencyError(ZipSdkError, ImportError):
    """An optional package is not installed; the message has the pip command that installs it.

    Attributes:
        package: as pip names it.
        extra: the extra of zipsdk that installs it.
        why: what is missing, or "".
    """

    def __init__(self, package: str, extra: str, why: str = ""):
        detail = f" ({why})" if why else ""
        super().__init__(f"{package} is not usable here{detail}: pip install 'zipsdk[{extra}]'")
        self.package, self.extra, self.why = package, extra, why

    def __reduce__(self) -> tuple[object, ...]:  # an exception would be made from its message
        return type(self), (self.package, self.extra, self.why)
