"""Expand patterns of file names; a name that exists is taken literally."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from fnmatch import translate
from pathlib import Path

_MAGIC = re.compile(r"[*?[]")


def split_pattern(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Split a path before its first part that is a pattern and not the name of an existing file or folder.

    ``photos [2024]/*.jpg`` -> (``photos [2024]``, (``*.jpg``,)) where that folder exists, else (``.``, all parts).
    The second value is empty if no part is a pattern.
    """
    base = Path()
    for i, part in enumerate(path.parts):
        if _MAGIC.search(part) and not os.path.lexists(base / part):
            return base, path.parts[i:]
        base /= part
    return base, ()


def expand(
    base: Path, parts: tuple[str, ...], on_error: Callable[[OSError], None], caseless: bool = False
) -> Iterator[Path]:
    """Yield the paths below `base` that match the parts of a pattern, sorted within each folder.

    A part is the name of an entry (taken literally if it exists), a pattern of ``*``, ``?`` and ``[...]``, or ``**``:
    any number of folders. A pattern follows links to folders, ``**`` does not. A name that starts with a dot is matched
    only by a part that starts with a dot. Matching is case-sensitive, except on Windows.

    Args:
        base: an existing folder.
        parts: the parts of the pattern, as `split_pattern` returns them.
        on_error: called with the OSError of each folder that cannot be listed.
        caseless: ignore case, also in parts that are not patterns.
    """
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        while rest and rest[0] == "**":  # a second ** would yield the same paths again
            rest = rest[1:]
        for root, folders, files in os.walk(base, onerror=on_error):
            current = Path(root)
            visible = sorted(f for f in folders if not f.startswith("."))
            folders[:] = [f for f in visible if not (current / f).is_symlink()]
            if rest:
                yield from expand(current, rest, on_error, caseless)
            else:
                yield from (current / f for f in sorted(files) if not f.startswith("."))
    elif os.path.lexists(base / part):
        yield from expand(base / part, rest, on_error, caseless)
    elif caseless or _MAGIC.search(part):
        for name in _names(base, part, on_error, caseless):
            yield from expand(base / name, rest, on_error, caseless)


def _names(folder: Path, pattern: str, on_error: Callable[[OSError], None], caseless: bool) -> list[str]:
    fold: Callable[[str], str] = str.casefold if caseless else os.path.normcase
    matches = re.compile(translate(fold(pattern))).match
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # other errors: not a folder
            on_error(e)
        return []
    hidden = pattern.startswith(".")
    return [name for name in names if matches(fold(name)) and (hidden or not name.startswith("."))]
