"""Inputs as JSON objects, and the results of running them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import traceback
import zlib
from pathlib import Path
from typing import Any

Recipe = dict[str, Any]


class Violation(AssertionError):
    """The code under test broke a rule that holds for every input."""


def demand(ok: Any, what: str) -> None:
    """Raise `Violation` with `what` unless `ok`."""
    if not ok:
        raise Violation(what)


def pack(data: bytes) -> str:
    """Bytes as text for a recipe; compressed, because bombs are long and simple."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> bytes:
    """Undo `pack`."""
    return zlib.decompress(base64.b64decode(text))


def digest(recipe: Recipe) -> str:
    """Name a recipe by the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def signature(e: BaseException) -> str:
    """Name a failure by its type, the innermost frame in zipsdk and its text without numbers and paths."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/zipsdk/" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "check"
    text = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "_", str(e))
    return f"{type(e).__name__} in {where}: {re.sub(r'-?[0-9][0-9.e+-]*', '#', text)[:90]}"


def text_of(e: BaseException) -> str:
    """Format the traceback, its last 30 lines."""
    return "\n".join("".join(traceback.format_exception(e)).splitlines()[-30:])
