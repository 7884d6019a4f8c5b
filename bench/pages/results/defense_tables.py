"""Write the tables of a page of results."""

from __future__ import annotations

import re
from pathlib import Path

from bench.common.markdown import fill, table
from bench.defenses.guarded import Guarded
from bench.evaluation import published, tables
from bench.evaluation.records import Record
from bench.pages.results.claims import compare_to_baselines
from bench.pages.results.groups import SHORT, Group, groups, of_table
from bench.pages.results.text import commands_of

#: Short headings of `tables.TABLES`.
HEADINGS = {"table1": "Table 1", "table2": "Table 2", "table3": "Table 3", "table4": "Table 4", "table6": "Table 6",
            "published": "Published steps", "agnostic": "One setting", "lambda": "Lambda", "steps": "Steps",
            "guarded": "Steps behind the guard"}  # fmt: skip


def about(name: str) -> str:
    """Describe one of `tables.TABLES` in a sentence."""
    text = tables.TABLES[name].about.removeprefix(f"{HEADINGS[name]}: ")
    return f"{text[0].upper()}{text[1:]}."


def table_of(content: Record, dataset: str, name: str) -> str:
    """Return one of `tables.TABLES` with its heading, or "" if the record has no row that it is about."""
    rows = rows_of(content, dataset, name)
    return f"### {HEADINGS[name]}\n\n{about(name)}\n\n{rows}" if rows else ""


def rows_of(content: Record, dataset: str, name: str) -> str:
    """Return the rows of one of `tables.TABLES` as Markdown, below what all rows share; or ""."""
    lines = []
    for g in of_table(content, name):
        theirs = published.figures(dataset, g.first.attack, g.first.defense)
        printed = "" if theirs is None else " / ".join("-" if v is None else f"{v:.1f}" for v in theirs)
        clean = g.clean_rate("ca")
        lines.append([unbroken(cell) for cell in (
            g.first.trigger_name, g.first.name + _remark(content, g),
            g.cell("ca"), g.cell("asr"), g.cell("pa"), g.cell("pa_nontarget"), printed,
            "" if clean is None else f"{clean.percent:.1f}", f"{g.first.steps:g}", str(g.first.images),
            str(len(g.rows)), _shares(g, "flagged"), _shares(g, "rejected"),
        )])  # fmt: skip
    if not lines:
        return ""
    header = ["trigger", "defense", "CA", "ASR", "PA", "PA, other classes", "the paper's CA / ASR / PA",
              "CA of a clean classifier", "steps", "images", "seeds",
              "flagged: clean / with trigger", "rejected: clean / with trigger"]  # fmt: skip
    same = [f"{header[i]}: {lines[0][i]}" for i in (9, 10) if len({line[i] for line in lines}) == 1]
    kept = [i for i, column in enumerate(header) if f"{column}: {lines[0][i]}" not in same]
    rows = without_blanks([header[i] for i in kept], [[line[i] for i in kept] for line in lines])
    notes = [f"All rows: {', '.join(same)}."] if same else []
    if any(line[-1] for line in lines):
        notes.append("Rejected images have no label: they count as neither correct nor the attacker's class.")
    return "\n\n".join([*notes, rows])


def unbroken(cell: str) -> str:
    """Keep brackets, "±" and "/" on one line, so that a wide table is scrolled and its columns stay readable."""
    return re.sub(r"\([^()]*\)|\[[^\]]*\]| [±/] ", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), cell)


def without_blanks(header: list[str], lines: list[list[str]]) -> str:
    """Return a table of the columns that are not empty."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    return table([header[i] for i in kept], [[line[i] for i in kept] for line in lines])


def _remark(content: Record, group: Group) -> str:
    """Return the remark after the name of a defense."""
    if group.first.defense.split()[0] == "zip":
        return " (one setting)"
    # descriptions have the keys that were hashed, "defence" among them
    description = content.defenses[group.first.defenses]
    if description["defence"] == "Guard" and description["version"] != Guarded.VERSION:
        return f" (by rule {description['version']}; now it is {Guarded.VERSION})"
    return ""


def _shares(group: Group, name: str) -> str:
    """Return the percentages of clean and of triggered images "flagged" or "rejected", "" where none can be."""
    if getattr(group.first.rates, name) is None:
        return ""
    return " / ".join(f"{group.mean(rate):.1f}" for rate in (name, f"{name}_triggered"))


def overview(content: Record) -> str:
    """Return CA, ASR and PA, a table each: a row for each trigger, a column for each defense of `SHORT`; or ""."""
    of_trigger: dict[str, dict[str, Group]] = {}
    for g in groups(content, tables.TABLES["agnostic"].attacks, SHORT):
        of_trigger.setdefault(g.trigger[1], {})[g.first.defense] = g
    blocks = []
    for rate, better in (("ca", "higher"), ("asr", "lower"), ("pa", "higher")):
        lines = [
            [trigger, *(f"{mine[name].mean(rate):.0f}" if name in mine else "" for name in SHORT)]
            for trigger, mine in of_trigger.items()
        ]
        header = [f"{rate.upper()}, % ({better} is better)", *SHORT.values()]
        blocks.append(without_blanks(header, lines))
    return "\n\n".join(blocks) if of_trigger else ""


def comparison(content: Record) -> str:
    """Compare the PA of ZIP and of every baseline for the paper's attacks, or return ""."""
    lines = compare_to_baselines(content)
    header = ["trigger", "ZIP, the paper's setting", "baselines", "lead", "ZIP, one setting",
              "ZIP fast behind the guard", "BDMAE", "SampDetox"]  # fmt: skip
    return fill("comparison", table=without_blanks(header, lines)) if lines else ""


def replication(dataset: str, results: Path) -> str:
    """Return the rows with images, triggers and networks drawn anew after all settings were fixed, or ""."""
    name, folder = f"defense-{dataset}", results / "again"
    if not (folder / f"{name}.json").is_file():
        return ""
    content = Record.read(name, folder)
    rows = rows_of(content, dataset, "agnostic")
    return fill("replication", commands="\n".join(commands_of(content)), table=rows)
