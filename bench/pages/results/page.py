"""Draw pages of results and their plots from the records of bench/defense.py.

    python -m bench.pages.results.page                       docs/benchmarks/DATASET.md, from bench/results
    python -m bench.pages.results.page --results FOLDER      FOLDER/results.md, from the records in FOLDER

A cell is a mean over the seeds of the purification, with the standard deviation over several seeds, and Wilson's 95%
interval for the number of *images*: more seeds do not narrow it.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bench.common import record
from bench.common.markdown import ROOT, START, fill
from bench.evaluation import tables
from bench.evaluation.records import Record
from bench.pages.results import sheet
from bench.pages.results.claims import check_targets
from bench.pages.results.defense_tables import HEADINGS, about, comparison, overview, replication, rows_of, table_of
from bench.pages.results.groups import parts
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


def figures_of(results: Path) -> Path:
    """Return the folder of the figures: docs/img for the project's records, else the folder of the records."""
    return DOCS / "img" if _is_project(results) else results


def _is_project(results: Path) -> bool:
    return results.resolve() == record.RESULTS.resolve()


def section(part: Part, results: Path, figures: Path, page: Path) -> str:
    """Return a section; its plots are written to `figures`."""
    dataset, content = part.dataset, part.record

    def image(text: str, path: Path) -> str:
        return f"![{text}]({Path(os.path.relpath(path, page.parent)).as_posix()})"

    blocks = [f"## {part.title}", *head_of(content), spread_of(content)]
    if path := dots(content, part.name, figures):
        blocks += ["### Overview", image("CA, ASR and PA of the defenses, with 95% intervals", path), overview(content)]
    blocks += [comparison(content), check_targets(content), replication(dataset, results) if part.first else ""]
    blocks += [table_of(content, dataset, name) for name in HEADINGS if name not in CURVES]
    for name, x in CURVES.items():
        if path := curve(content, part.name, name, x, figures):
            plot, rows = image(tables.TABLES[name].about, path), rows_of(content, dataset, name)
            blocks.append(f"### {HEADINGS[name]}\n\n{about(name)}\n\n{plot}\n\n{rows}")
    if part.first and (images := sheet.place(figures, dataset)).is_file():
        blocks.append(fill("images", image=image("Test images before and after", images)))
    if part.first:
        blocks.append(cost_of(content))
    blocks.append(fill("commands", commands="\n".join(commands_of(content))))
    return "\n\n".join(block for block in blocks if block)


def dataset_page(found: Iterable[Part], results: Path, figures: Path, page: Path) -> str:
    """Return a whole page about one data set of the project; its plots are written to `figures`."""
    text = "\n\n".join(section(part, results, figures, page) for part in found)
    title, body = re.sub(r"^#(#+ )", r"\1", text, flags=re.MULTILINE).split("\n\n", 1)
    return f"{title}\n\n{fill('dataset_head')}\n\n{body}\n"


def draw(results: Path = record.RESULTS) -> list[Path]:
    """Draw the records in a folder, with their plots: FOLDER/results.md, or a page for each data set of the project.

    Everything above the mark of results.md is kept.

    Returns:
        The pages; none if there is no record.
    """
    import matplotlib

    matplotlib.use("Agg")
    found, figures = list(records(results)), figures_of(results)
    if _is_project(results):
        pages = []
        for dataset, mine in groupby(found, key=lambda part: part.dataset):
            pages.append(DOCS / "benchmarks" / f"{dataset}.md")
            write_atomically(pages[-1], dataset_page(mine, results, figures, pages[-1]).encode())
        return pages
    page = results / "results.md"
    body = "\n\n".join(section(part, results, figures, page) for part in found)
    if not body:
        return []
    head = page.read_text().split(START)[0] if page.is_file() else f"{fill('results_head')}\n\n"
    write_atomically(page, f"{head}{START}\n{body}\n".encode())
    return [page]


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.pages.results.page", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the records")
    results = p.parse_args().results
    pages = draw(results)
    if not pages:
        p.exit(1, f"error: {results}: got no defense-DATASET.json with rows; python bench/defense.py writes them\n")
    print(*pages, sep="\n")


if __name__ == "__main__":
    main()
