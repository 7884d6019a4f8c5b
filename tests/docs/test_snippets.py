"""The Python blocks of README.md and docs/ run as they stand, page by page, in an empty folder.

A block that cannot run here has the line ``<!-- not run: REASON -->`` above it. Blocks of a page share their names, and
may use a few that stand for the reader's own: see `readers_names`.
"""

from __future__ import annotations

import importlib
import re

import pytest
from PIL import Image

import zipsdk
from tests.helpers.markdown import blocks, pages
from tests.helpers.paths import ROOT
from zipsdk import testing

BLOCKS = {page: found for page in pages() if (found := [b for b in blocks(page.read_text()) if b.language == "python"])}
RUN = {page: chosen for page, found in BLOCKS.items() if (chosen := [block for block in found if not block.not_run])}


def name_of(page):
    return str(page.relative_to(ROOT))


def readers_names(torch):
    """Return what a snippet does not define: images, and a classifier as a function and as a torch module."""
    images, _ = testing.demo_images(4)
    names = {"batch": images, "batches": [images, images[:2]], "classify": testing.demo_classifier()}
    names["recent"], _ = testing.demo_images(100, seed=1)
    names["clean"], names["labels"] = testing.demo_images(50, seed=2)
    if torch:
        nn = pytest.importorskip("torch").nn
        names |= {"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "mean": 0.5, "std": 0.25}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    chosen = RUN[page]
    uses_torch = any(re.search(r"^import torch", block.text, re.MULTILINE) for block in chosen)
    names = {"__name__": "__main__", **readers_names(uses_torch)}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(names["batch"][0]).save("photos/0.png")
    for block in chosen:
        exec(compiled(block, page), names)


@pytest.mark.parametrize("page", BLOCKS, ids=name_of)
def test_blocks_compile_and_name_what_exists(page):
    for block in BLOCKS[page]:
        compiled(block, page)
        for name in re.findall(r"\bzipsdk((?:\.[A-Za-z]\w*)+)", block.text):
            assert exists(name[1:].split(".")), f"{page}:{block.line}: zipsdk{name}"


def compiled(block, page):
    """Compile a block with the line numbers of its page."""
    return compile("\n" * (block.line - 1) + block.text, str(page), "exec")


def exists(path):
    """Tell whether zipsdk has an attribute or a module of this path."""
    found = zipsdk
    for name in path:
        if not hasattr(found, name):
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except (AttributeError, ModuleNotFoundError):
                return False
        found = getattr(found, name)
    return True


def test_a_name_that_does_not_exist_is_found():
    assert exists(["guard", "Guard"])
    assert exists(["images", "contact_sheet"])
    assert not exists(["Purifer"])
    assert not exists(["Purifier", "runs"])


def test_most_blocks_run():
    found = [block for page in BLOCKS.values() for block in page]
    assert len([block for block in found if block.not_run]) <= len(found) // 5


def test_a_mark_needs_its_reason():
    text = "<!-- not run: no GPU -->\n```python\na\n```\n\n<!-- not run: -->\n```python\nb\n```\n\n```python\nc\n```\n"
    found = [(b.text, b.line, b.not_run) for b in blocks(text)]
    assert found == [("a\n", 3, "no GPU"), ("b\n", 8, ""), ("c\n", 12, "")]
