"""Write Markdown: tables, templates, and the generated parts of a page."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "bench" / "pages" / "templates"


def marks(name: str) -> tuple[str, str]:
    """Return the marks around a generated part."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


START, END = marks("measured")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; bars within cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fill(template: str, **values: object) -> str:
    """Return ``templates/TEMPLATE.md`` with values in place of {names}."""
    return (TEMPLATES / f"{template}.md").read_text().strip().format(**values)


def replace(path: Path, text: str, name: str = "measured") -> None:
    """Replace a generated part of a page."""
    start, end = marks(name)
    head, rest = path.read_text().split(start, 1)
    _, tail = rest.split(end, 1)
    path.write_text(f"{head}{start}\n{text}\n{end}{tail}")
