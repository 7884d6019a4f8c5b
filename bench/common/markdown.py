"""Tables for pages, and the part of a page that is drawn from records."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
START, END = "<!-- measured -->", "<!-- /measured -->"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; a bar within a cell, as in the name of a random choice, is no border."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def replace(path: Path, text: str) -> None:
    """Put `text` where the marks are in a page, for what is between them."""
    old = path.read_text()
    head, rest = old.split(START, 1)
    _, tail = rest.split(END, 1)
    path.write_text(f"{head}{START}\n{text}\n{END}{tail}")
