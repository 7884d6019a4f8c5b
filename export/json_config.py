"""Read the JSON configuration files of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zipsdk.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file has no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as e:
        raise ModelError(f"{path}: cannot be read as JSON ({e}); copy it again") from e
    if not isinstance(found, dict):
        raise ModelError(f"{path}: got a {type(found).__name__}, expected a JSON object; copy it again")
    return found


class JsonConfig:
    """Hold the values of a configuration file, and refuse those that are not supported.

    Attributes:
        path: the file.
        values: its JSON object.
    """

    def __init__(self, path: Path, kind: str):
        """Read the file; `kind` names what it configures, for messages.

        Raises:
            ModelError: the file has no JSON object.
        """
        self.path, self.kind = path, kind
        self.values = read_json(path)

    def get(self, key: str, default: object = None) -> Any:
        """Return a value, or the default if the file has none."""
        return self.values.get(key, default)

    def require(self, ok: bool, key: str, got: object, expected: str) -> None:
        """Refuse a value unless it is `ok`.

        Raises:
            ModelError: it is not; the message names the key, the value and what was expected.
        """
        if not ok:
            raise ModelError(f"{self.path}: {key}: got {got!r}, expected {expected}; this {self.kind} is not supported")
