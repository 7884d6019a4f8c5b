"""Write Markdown tables, and replace the generated part of a page."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
START, END = "<!-- measured -->", "<!-- /measured -->"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a table; bars in cells, such as those of random choices, are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def replace(path: Path, text: str) -> None:
    """Replace the text between the marks of a page."""
    old = path.read_text()
    head, rest = old.split(START, 1)
    _, tail = rest.split(END, 1)
    path.write_text(f"{head}{START}\n{text}\n{END}{tail}")
