"""Edits that need no knowledge of a format: numbers at the edges of their range, flips, cuts, repeats and splices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

EDGES = (0, 1, 2, 3, 4, 5, 8, 15, 16, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def number(draw: Draw, width: int, near: int = 0) -> int:
    """Draw an unsigned integer of `width` bytes: an edge, a small one, or one close to `near`."""
    most = 256**width - 1
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return int(draw(st.sampled_from(EDGES))) & most
    if kind == 1:
        return max(0, near + draw(st.integers(-3, 3))) & most
    return int(draw(st.integers(0, 64 if kind == 2 else most)))


def some_bytes(draw: Draw, most: int = 24) -> bytes:
    """Draw up to `most` bytes."""
    return bytes(draw(st.binary(max_size=most)))


def index(draw: Draw, length: int) -> int:
    """Draw an index into `length` elements; 0 where there are none."""
    return int(draw(st.integers(0, max(0, length - 1))))


def damage(draw: Draw, data: bytes, other: bytes = b"") -> bytes:
    """Apply one plain edit; `other` is what a splice continues with."""
    if not data:
        return some_bytes(draw)
    at = index(draw, len(data) + 1)
    kind = draw(st.sampled_from(("flip", "flip", "cut", "drop", "insert", "repeat", "zero", "splice")))
    if kind == "flip":
        out = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            out[index(draw, len(out))] ^= 1 << draw(st.integers(0, 7))
        return bytes(out)
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[at + draw(st.integers(1, 32)) :]
    if kind == "insert":
        return data[:at] + some_bytes(draw) + data[at:]
    if kind == "repeat":
        return data[:at] + data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 8)) + data[at:]
    if kind == "zero":
        n = min(draw(st.integers(1, 16)), len(data) - at)
        return data[:at] + bytes(n) + data[at + n :]
    tail = other or data
    return data[:at] + tail[index(draw, len(tail) + 1) :]


def patched(data: bytes, at: int, value: int, width: int, order: str) -> bytes:
    """Write an integer over `width` bytes at `at`."""
    raw = (value & (256**width - 1)).to_bytes(width, "big" if order == "big" else "little")
    return data[:at] + raw + data[at + width :]


def shuffled(draw: Draw, parts: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Edit a list of parts of a file: drop, repeat, exchange or change one, most often once."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        if not parts:
            break
        i, j = index(draw, len(parts)), index(draw, len(parts))
        kind = draw(st.sampled_from(("change", "change", "change", "change", "drop", "repeat", "exchange")))
        if kind == "change":
            parts[i] = change(parts[i])
        elif kind == "drop":
            del parts[i]
        elif kind == "repeat":
            parts[i:i] = [parts[j]] * draw(st.sampled_from((1, 1, 2, 40)))
        else:
            parts[i], parts[j] = parts[j], parts[i]
    return parts
