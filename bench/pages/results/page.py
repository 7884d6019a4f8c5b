"""A page of results and its plots, drawn from the records of bench/defense.py; no number is typed.

    python -m bench.pages.results.page                       docs/results.md, from bench/results
    python -m bench.pages.results.page --results FOLDER      FOLDER/results.md, from the records in FOLDER

Each cell is a mean over the seeds of the purification; after it stand the standard deviation over the seeds, where
there are several, and Wilson's 95% interval for the number of *pictures*: more seeds do not make it narrower.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import record
from bench.common.markdown import ROOT, START, table
from bench.defenses.guarded import Guarded
from bench.evaluation import published, tables
from bench.pages.results import sheet
from bench.pages.results.claims import ahead_of, marks_of
from bench.pages.results.groups import SHORT, Group, groups, of_table, parts
from bench.pages.results.plots import curve, dots
from bench.pages.results.text import commands_of, cost_of, head_of, spread_of
from zipsdk._util.atomic import write_atomically

#: Above it, where a folder has no page yet.
HEAD = """# Results

In percent, with Wilson's 95% intervals. CA: clean pictures that are recognised behind the defence. ASR: pictures with
the trigger that are taken for the attacker's class, those that are of it left out. PA: pictures with the trigger that
are recognised for what they are. docs/results.md of zipsdk says more of how to read these tables. A section has one
classifier that was brought, or those that were trained and attacked in one way.

"""
DOCS = ROOT / "docs"
#: The paper's data sets come first.
TITLES = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "imagenette": "Imagenette"}
#: Tables that are drawn, over what.
CURVES = {"lambda": "lam", "evaluations": "evaluations", "guarded": "evaluations"}


class Part(NamedTuple):
    """What a section is drawn from: the rows of a data set, or a part of them, see `results_groups.parts`."""

    dataset: str
    title: str
    #: of its plots
    name: str
    content: dict[str, Any]

    @property
    def first(self) -> bool:
        """Whether what there is once for a data set is in its section."""
        return self.name == self.dataset


def records(results: Path = record.RESULTS) -> Iterator[Part]:
    """All parts of the records that have rows."""
    there = [path.stem.removeprefix("defense-") for path in sorted(results.glob("defense-*.json"))]
    for dataset in sorted(there, key=lambda name: (*TITLES, name).index(name)):
        for i, (told, content) in enumerate(parts(record.read(f"defense-{dataset}", results))):
            title = TITLES.get(dataset, dataset) + f": {told}" * bool(told)
            yield Part(dataset, title, f"{dataset}-section{i + 1}" if i else dataset, content)


def table_of(content: dict[str, Any], dataset: str, name: str) -> str:
    """One of `tables.TABLES` as Markdown, or "" where the record has nothing of it."""
    lines = []
    for g in of_table(content, name):
        theirs = published.figures(dataset, g.first["attack"], g.first["defence"])
        printed = "" if theirs is None else " / ".join("-" if v is None else f"{v:.1f}" for v in theirs)
        clean = g.rate("CA", "clean classifier")
        lines.append([
            g.first["trigger name"], g.first["name"] + _remark(content, g),
            g.cell("CA"), g.cell("ASR"), g.cell("PA"), g.cell("PA others"), printed,
            "" if clean is None else f"{clean.percent:.1f}", f"{g.first['evaluations']:g}", str(g.first["CA"][1]),
            str(len(g.rows)), _flagged(g),
        ])  # fmt: skip
    if not lines:
        return ""
    header = ["trigger", "defence", "CA", "ASR", "PA", "PA, other classes", "the paper's CA / ASR / PA",
              "CA of a clean classifier", "evaluations", "pictures", "seeds",
              "flagged: clean / with trigger"]  # fmt: skip
    return f"### {tables.TABLES[name].about}\n\n{_without_blanks(header, lines)}"


def _without_blanks(header: list[str], lines: list[list[str]]) -> str:
    """A table of the columns in which there is anything."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    return table([header[i] for i in kept], [[line[i] for i in kept] for line in lines])


def _remark(content: dict[str, Any], group: Group) -> str:
    """What a reader must know of a defence beside its name."""
    if group.first["defence"].split()[0] == "zip":
        return " (one setting)"
    defence = content["defences"][group.first["defences"]]
    if defence["defence"] == "Guard" and defence["version"] != Guarded.VERSION:
        return f" (by rule {defence['version']}; now it is {Guarded.VERSION})"
    return ""


def _flagged(group: Group) -> str:
    """What a guard has purified, in percent of the clean pictures and of those with the trigger."""
    if "flagged" not in group.first:
        return ""
    return " / ".join(f"{statistics.mean(group.percents(name)):.1f}" for name in ("flagged", "flagged triggered"))


def short_table() -> str:
    """Table 1 in brief, for the README: CA / ASR / PA, a row for each trigger, a column for each defence."""
    lines = []
    for part in records():
        if part.dataset not in TITLES:
            continue  # a user's own, that the README does not speak of
        found = groups(part.content, tables.TABLES["agnostic"].attacks, SHORT)
        for trigger in dict.fromkeys(g.trigger for g in found):
            mine = [g for g in found if g.trigger == trigger]
            cells = {g.first["defence"]: g.brief(0) for g in mine}
            pictures = mine[0].first["CA"][1]
            lines.append([f"{part.title} ({pictures:,})", trigger[1], *(cells.get(line, "") for line in SHORT)])
    return table(["pictures", "trigger", *SHORT.values()], lines)


def comparison(results: Path) -> str:
    """PA of ZIP beside that of every rival, for the paper's attacks on all data sets, or ""."""
    lines = [[part.title, *line] for part in records(results) for line in ahead_of(part.content)]
    if not lines:
        return ""
    header = ["pictures", "trigger", "ZIP, the paper's setting", "its rivals", "ahead by", "ZIP, one setting",
              "ZIP fast behind the guard", "BDMAE", "SampDetox"]  # fmt: skip
    return (
        "## ZIP and its rivals\n\n"
        "PA in percent, the same triggered pictures in a line. The rivals are those that the paper has beside ZIP, the "
        "best first; DiffPure and DDNM have as many evaluations as ZIP. BDMAE is in the paper too, without PA.\n\n"
        + _without_blanks(header, lines)
    )


def again(dataset: str, results: Path) -> str:
    """The rows for which pictures, triggers and networks were drawn anew, once everything else was fixed."""
    name, folder = f"defense-{dataset}", results / "again"
    if not (folder / f"{name}.json").is_file():
        return ""
    content = record.read(name, folder)
    commands = "\n".join(commands_of(content))
    return (
        "### Once more, with other pictures, triggers and networks\n\n"
        "Another draw of the test pictures (some are the same by chance; on signs many, for lack of others), "
        "of the triggers and of who is poisoned, and networks trained from another seed; the settings as they were. "
        "Taken once.\n\n"
        f"{commands}\n\n" + table_of(content, dataset, "agnostic").split("\n\n", 1)[1]
    )


def section(part: Part, results: Path, page: Path) -> str:
    """Everything about a part of a record; the plots are written beside the page."""
    dataset, content = part.dataset, part.content
    said = [f"## {part.title}", *head_of(content)]
    if path := dots(content, part.name, page.parent):
        said.append(f"![CA and ASR of the defences, with 95% intervals]({path.name})")
    said += [spread_of(content), marks_of(content), again(dataset, results) if part.first else ""]
    said += [table_of(content, dataset, name) for name in tables.TABLES if name not in (*CURVES, "quick")]
    for name, x in CURVES.items():
        if path := curve(content, part.name, name, x, page.parent):
            said.append(f"### {tables.TABLES[name].about}\n\n![{tables.TABLES[name].about}]({path.name})\n\n"
                         + table_of(content, dataset, name).split("\n\n", 1)[1])  # fmt: skip
    if part.first and (images := sheet.place(results, dataset)).is_file():
        said.append(
            "### Pictures\n\nTest pictures, with the trigger, what the transform leaves, what ZIP makes of it, "
            "and how that differs from the clean one:\n\n"
            f"![Test pictures before and after]({Path(os.path.relpath(images, page.parent)).as_posix()})"
        )
    if part.first:
        said.append(cost_of(content))
    return "\n\n".join(p for p in said if p)


def measured(results: Path, page: Path) -> str:
    """All that is drawn of the records in a folder, or ""; the plots are written beside the page."""
    sections = [section(part, results, page) for part in records(results)]
    return "\n\n".join(part for part in (comparison(results), *sections) if part)


def draw(results: Path = record.RESULTS) -> Path | None:
    """The page of the records in a folder, with its plots: results.md there, but docs/results.md of the project's own.

    What stands above the mark is kept. None where there is no record.
    """
    import matplotlib

    matplotlib.use("Agg")
    page = (DOCS if results.resolve() == record.RESULTS.resolve() else results) / "results.md"
    body = measured(results, page)
    if not body:
        return None
    head = page.read_text().split(START)[0] if page.is_file() else HEAD
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
