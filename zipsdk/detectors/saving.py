"""Save detectors, with the reference statistics that they have measured, and load them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from zipsdk._util.atomic import write_atomically
from zipsdk._util.validation import is_path
from zipsdk.detectors.base import Detector
from zipsdk.errors import InputError

FORMAT, VERSION = "zipsdk detector", 1

DetectorT = TypeVar("DetectorT", bound="SavableDetector")


class SavableDetector(Detector):
    """A detector that is a dataclass of JSON values, apart from fields with a leading underscore."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the options and the reference statistics to a JSON file; `load` returns an equal detector.

        A crash leaves the old file or the new one. Images that `observe` has collected so far are not saved.

        Raises:
            InputError: `path` is no path.
            OSError: the file cannot be written.
        """
        _check_path(path)
        options = {name: getattr(self, name) for name in _options(type(self))}
        content = {"format": FORMAT, "version": VERSION, "detector": type(self).__name__, "options": options}
        write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls: type[DetectorT], path: str | os.PathLike[str]) -> DetectorT:
        """Read a detector that `save` has written.

        Raises:
            InputError: the file cannot be read, or holds something else.
        """
        return load_detector(path, [cls])


def load_detector(path: str | os.PathLike[str], kinds: Sequence[type[DetectorT]]) -> DetectorT:
    """Read a detector of one of several classes.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    _check_path(path)
    saved = _read(path)
    if saved.get("version") != VERSION:
        raise InputError(
            f"{path}: got version {saved.get('version')!r}, expected {VERSION}; save it again with this zipsdk"
        )
    found = [kind for kind in kinds if kind.__name__ == saved.get("detector")]
    if not found:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{path}: got the detector {saved.get('detector')!r}, expected {expected}")
    options, expected_options = saved.get("options"), _options(found[0])
    if not isinstance(options, dict) or set(options) != set(expected_options):
        raise InputError(f"{path}: got options {options!r}, expected values for {', '.join(expected_options)}")
    try:
        return found[0](**options)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def _check_path(path: object) -> None:
    if not is_path(path):
        raise InputError(f"path: got {path!r}, expected the path of a file")


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        saved = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise InputError(f"{path}: got {type(e).__name__}: {e.strerror}, expected a readable file") from e
    except (ValueError, RecursionError):  # no JSON; reported below
        saved = None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise InputError(f"{path}: got another kind of file, expected one that save has written")
    return saved


def _options(kind: type[SavableDetector]) -> list[str]:
    return [f.name for f in fields(kind) if f.init and not f.name.startswith("_")]  # type: ignore[arg-type]
