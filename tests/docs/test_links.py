"""Relative links and anchors of README.md and docs/ lead somewhere, on GitHub and on the site."""

from __future__ import annotations

import pytest

from tests.helpers.markdown import anchors, links, pages
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"


def broken(page, text):
    """Return the links of a page that lead nowhere."""
    found = []
    for path, anchor in links(text):
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{path}: no such file")
        elif page.is_relative_to(DOCS) and not target.is_relative_to(DOCS):
            found.append(f"{path}: not on the site; name the file without a link")
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            found.append(f"{path}#{anchor}: no such heading")
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("see [x](nowhere.md)", "no such file"),
        ("see [x](install.md#nothing)", "no such heading"),
        ("see [`x`](#nothing)", "no such heading"),
        ("![x](img/nothing.png)", "no such file"),
        ("see [x](../LICENSE)", "not on the site"),
    ],
)
def test_a_broken_link_is_found(text, message):
    (found,) = broken(DOCS / "index.md", f"# Home\n\n{text}\n")
    assert message in found


def test_links_in_code_are_ignored():
    text = "# Home\n\n`[x](a.md)`\n\n    [x](b.md)\n\n```python\nx[0](c)\n```\n[x](install.md#gpus) and [y](#home)\n"
    assert broken(DOCS / "index.md", text) == []
