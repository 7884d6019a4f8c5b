"""Write the generated part of docs/cli.md: the options of each command, from the parsers of `zipsdk.cli`.

    python -m bench.pages.cli

A test compares the page with the parsers.
"""

from __future__ import annotations

import argparse

from bench.common.markdown import ROOT, table
from zipsdk.cli import build_parser
from zipsdk.cli.args import EXIT_CODES

PAGE = ROOT / "docs" / "cli.md"
START, END = "<!-- commands -->", "<!-- /commands -->"


def page(text: str) -> str:
    """Return the page with its generated part drawn again."""
    head, rest = text.split(START)
    return f"{head}{START}\n{commands()}\n{END}{rest.split(END)[1]}"


def commands() -> str:
    """Describe all commands, then the exit codes that they share."""
    codes = EXIT_CODES.strip().split("\n")[1:]
    rows = [[code.strip(), meaning.strip()] for code, meaning in (line.rsplit("  ", 1) for line in codes)]
    return "\n\n".join([*map(command, parsers().values()), "## Exit codes", table(["exit code", "meaning"], rows)])


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name."""
    actions = build_parser()._actions
    return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


def command(parser: argparse.ArgumentParser) -> str:
    """Describe one command: a table for each group of arguments, then examples and notes."""
    tables: dict[str, list[list[str]]] = {"": []}
    for group in parser._action_groups:
        title = "" if group.title in ("positional arguments", "options") else str(group.title)
        actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
        tables.setdefault(title, []).extend([name(a), meaning(a)] for a in actions)
    parts = [f"## {parser.prog}", parser.description]
    for title, rows in tables.items():
        parts.append(f"**{title[0].upper()}{title[1:]}**" if title else "")
        parts.append(table(["argument", "meaning"], rows) if rows else "")
    notes = (parser.epilog or "").replace(EXIT_CODES, "").strip()
    parts.append(f"```text\n{notes}\n```" if notes else "")
    return "\n\n".join(filter(None, parts))


def name(action: argparse.Action) -> str:
    """Return the names of an argument and its value, in code style that survives a bar in a table cell."""
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
    if action.nargs == 0:
        value = ""
    elif action.nargs == "?" and action.option_strings:
        value = f"[{value}]"
    elif action.nargs == "+":
        value = f"{value} ..."
    names = [f"{option} {value}".strip() for option in action.option_strings] or [str(value)]
    return ", ".join(f"<code>{n.replace('|', '&#124;')}</code>" if "|" in n else f"`{n}`" for n in names)


def meaning(action: argparse.Action) -> str:
    """Return the help of an argument, on one line."""
    return " ".join(((action.help or "") % vars(action)).replace("<", "&lt;").split())


def main() -> None:
    """Draw the page again."""
    argparse.ArgumentParser(prog="python -m bench.pages.cli", description=__doc__.split("\n")[0]).parse_args()
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
