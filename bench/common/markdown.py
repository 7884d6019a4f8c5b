"""Write Markdown: tables, templates, and the generated part of a page."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "bench" / "pages" / "templates"
START, END = "<!-- measured -->", "<!-- /measured -->"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; bars within cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fill(template: str, **values: object) -> str:
    """Return ``templates/TEMPLATE.md`` with values in place of {names}."""
    return (TEMPLATES / f"{template}.md").read_text().strip().format(**values)


def replace(path: Path, text: str) -> None:
    """Replace the generated part of a page."""
    old = path.read_text()
    head, rest = old.split(START, 1)
    _, tail = rest.split(END, 1)
    path.write_text(f"{head}{START}\n{text}\n{END}{tail}")
