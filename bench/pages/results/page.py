"""Draw a page of results and its plots from the records of bench/defense.py.

    python -m bench.pages.results.page                       docs/results.md, from bench/results
    python -m bench.pages.results.page --results FOLDER      FOLDER/results.md, from the records in FOLDER

A cell is a mean over the seeds of the purification, with the standard deviation over several seeds, and Wilson's 95%
interval for the number of *images*: more seeds do not narrow it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.common import record
from bench.common.markdown import ROOT, START, fill, table
from bench.defenses.guarded import Guarded
from bench.evaluation import published, tables
from bench.evaluation.records import Record
from bench.pages.results import sheet
from bench.pages.results.claims import check_targets, compare_to_baselines
from bench.pages.results.groups import SHORT, Group, groups, of_table, parts
from bench.pages.results.plots import curve, dots
from bench.pages.results.text import commands_of, cost_of, head_of, spread_of
from zipsdk._util.atomic import write_atomically

DOCS = ROOT / "docs"
#: The paper's data sets come first.
TITLES = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "imagenette": "Imagenette"}
#: Tables that are drawn as curves, and the quantity of the x axis.
CURVES = {"lambda": "lam", "steps": "steps", "guarded": "steps"}


class Part(NamedTuple):
    """The rows of a section: all of a data set, or a part of them; see `groups.parts`.

    name: of its plots.
    """

    dataset: str
    title: str
    name: str
    record: Record

    @property
    def first(self) -> bool:
        """Whether the section shows what a data set has once."""
        return self.name == self.dataset


def records(results: Path = record.RESULTS) -> Iterator[Part]:
    """Yield all parts of the records that have rows."""
    present = [path.stem.removeprefix("defense-") for path in sorted(results.glob("defense-*.json"))]
    for dataset in sorted(present, key=lambda name: (*TITLES, name).index(name)):
        for i, (label, content) in enumerate(parts(Record.read(f"defense-{dataset}", results))):
            title = TITLES.get(dataset, dataset) + f": {label}" * bool(label)
            yield Part(dataset, title, f"{dataset}-section{i + 1}" if i else dataset, content)


def table_of(content: Record, dataset: str, name: str) -> str:
    """Return one of `tables.TABLES` as Markdown, or "" if the record has no row that it is about."""
    lines = []
    for g in of_table(content, name):
        theirs = published.figures(dataset, g.first.attack, g.first.defense)
        printed = "" if theirs is None else " / ".join("-" if v is None else f"{v:.1f}" for v in theirs)
        clean = g.clean_rate("ca")
        lines.append([
            g.first.trigger_name, g.first.name + _remark(content, g),
            g.cell("ca"), g.cell("asr"), g.cell("pa"), g.cell("pa_nontarget"), printed,
            "" if clean is None else f"{clean.percent:.1f}", f"{g.first.steps:g}", str(g.first.images),
            str(len(g.rows)), _flagged(g),
        ])  # fmt: skip
    if not lines:
        return ""
    header = ["trigger", "defense", "CA", "ASR", "PA", "PA, other classes", "the paper's CA / ASR / PA",
              "CA of a clean classifier", "steps", "images", "seeds",
              "flagged: clean / with trigger"]  # fmt: skip
    return f"### {tables.TABLES[name].about}\n\n{_without_blanks(header, lines)}"


def _without_blanks(header: list[str], lines: list[list[str]]) -> str:
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


def _flagged(group: Group) -> str:
    """Return the percentages of clean and of triggered images that a guard purifies, "" without a guard."""
    if group.first.rates.flagged is None:
        return ""
    return " / ".join(f"{group.mean(name):.1f}" for name in ("flagged", "flagged_triggered"))


def short_table() -> str:
    """Return Table 1 for the README: CA / ASR / PA, a row for each trigger, a column for each defense."""
    lines = []
    for part in records():
        if part.dataset not in TITLES:
            continue  # a data set of the user
        found = groups(part.record, tables.TABLES["agnostic"].attacks, SHORT)
        for trigger in dict.fromkeys(g.trigger for g in found):
            mine = [g for g in found if g.trigger == trigger]
            cells = {g.first.defense: g.brief(0) for g in mine}
            images = mine[0].first.images
            lines.append([f"{part.title} ({images:,})", trigger[1], *(cells.get(name, "") for name in SHORT)])
    return table(["images", "trigger", *SHORT.values()], lines)


def comparison(results: Path) -> str:
    """Compare the PA of ZIP and of every baseline for the paper's attacks on all data sets, or return ""."""
    lines = [[part.title, *line] for part in records(results) for line in compare_to_baselines(part.record)]
    if not lines:
        return ""
    header = ["images", "trigger", "ZIP, the paper's setting", "baselines", "lead", "ZIP, one setting",
              "ZIP fast behind the guard", "BDMAE", "SampDetox"]  # fmt: skip
    return fill("comparison", table=_without_blanks(header, lines))


def replication_table(dataset: str, results: Path) -> str:
    """Return the rows with images, triggers and networks drawn anew after all settings were fixed, or ""."""
    name, folder = f"defense-{dataset}", results / "again"
    if not (folder / f"{name}.json").is_file():
        return ""
    content = Record.read(name, folder)
    rows = table_of(content, dataset, "agnostic").split("\n\n", 1)[1]
    return fill("replication", commands="\n".join(commands_of(content)), table=rows)


def section(part: Part, results: Path, page: Path) -> str:
    """Return a section; its plots are written beside the page."""
    dataset, content = part.dataset, part.record
    blocks = [f"## {part.title}", *head_of(content)]
    if path := dots(content, part.name, page.parent):
        blocks.append(f"![CA and ASR of the defenses, with 95% intervals]({path.name})")
    blocks += [spread_of(content), check_targets(content), replication_table(dataset, results) if part.first else ""]
    blocks += [table_of(content, dataset, name) for name in tables.TABLES if name not in (*CURVES, "quick")]
    for name, x in CURVES.items():
        if path := curve(content, part.name, name, x, page.parent):
            about, rows = tables.TABLES[name].about, table_of(content, dataset, name).split("\n\n", 1)[1]
            blocks.append(f"### {about}\n\n![{about}]({path.name})\n\n{rows}")
    if part.first and (images := sheet.place(results, dataset)).is_file():
        blocks.append(fill("images", path=Path(os.path.relpath(images, page.parent)).as_posix()))
    if part.first:
        blocks.append(cost_of(content))
    return "\n\n".join(block for block in blocks if block)


def measured(results: Path, page: Path) -> str:
    """Return the generated part of a page, or ""; the plots are written beside the page."""
    sections = [section(part, results, page) for part in records(results)]
    return "\n\n".join(part for part in (comparison(results), *sections) if part)


def draw(results: Path = record.RESULTS) -> Path | None:
    """Draw the page of the records in a folder with its plots: FOLDER/results.md, or docs/results.md of the project.

    Everything above the mark is kept.

    Returns:
        The page, or None if there is no record.
    """
    import matplotlib

    matplotlib.use("Agg")
    page = (DOCS if results.resolve() == record.RESULTS.resolve() else results) / "results.md"
    body = measured(results, page)
    if not body:
        return None
    head = page.read_text().split(START)[0] if page.is_file() else f"{fill('results_head')}\n\n"
    write_atomically(page, f"{head}{START}\n{body}\n".encode())
    return page


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.pages.results.page", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the records")
    results = p.parse_args().results
    page = draw(results)
    if page is None:
        p.exit(1, f"error: {results}: got no defense-DATASET.json with rows; python bench/defense.py writes them\n")
    print(page)


if __name__ == "__main__":
    main()
