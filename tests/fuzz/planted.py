"""Kinds that break the rules on purpose, to test that the fuzzer detects it."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe

#: Numbers from here on break a rule.
LIMIT = 600


def draw_number(draw: Draw) -> Recipe:
    """Draw a number in 0..1000 and a word."""
    return {"number": draw(st.integers(0, 1000)), "word": draw(st.text("ab", max_size=30))}


def check_raise(recipe: Recipe, folder: Path) -> str:
    """Raise an exception that is not one of zipsdk for a large number, and refuse small ones."""
    (folder / "file").write_text(recipe["word"])
    if recipe["number"] >= LIMIT:
        raise KeyError(recipe["number"])
    if recipe["number"] < 100:
        return "InputError"
    return "accepted"


def check_crash(recipe: Recipe, folder: Path) -> str:
    """End the interpreter for a large number."""
    del folder
    if recipe["number"] >= LIMIT:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "accepted"


def check_memory(recipe: Recipe, folder: Path) -> str:
    """Use 100 MB for a large number."""
    del folder
    if recipe["number"] >= LIMIT:
        # not from the heap, whose free memory would be used first
        with mmap.mmap(-1, 100 << 20) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
    return "accepted"
