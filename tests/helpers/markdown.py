"""Read the Markdown pages of the repository: fenced blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

_FENCE = re.compile(r"^( *)```(\w*).*\n((?:.*\n)*?)\1```", re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\Z")


def pages() -> list[Path]:
    """List README.md, the other pages beside it, and those of docs/."""
    return [*sorted(p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md"), *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and first line in the page; `not_run` is the reason in the mark above it."""

    language: str
    text: str
    line: int
    not_run: str = ""


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = []
    for match in _FENCE.finditer(text):
        mark = _NOT_RUN.search(text[: match.start()])
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(match[2], match[3], line, mark[1] if mark else ""))
    return found


def prose(text: str) -> str:
    """Return a page without fenced blocks, indented code and code spans."""
    text = _FENCE.sub("", text)
    text = re.sub(r"(?m)^ {4}.*$", "", text)
    return re.sub(r"`[^`]*`", "", text)


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each link that stays in the repository."""
    for target in _LINK.findall(prose(text)):
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"(?m)^#+ +(.+?)$", _FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.add(f"{slug}-{number}" if number else slug)
    return found
