"""A page of results and its plots, drawn from the records of bench/defense.py; no number is typed.

    python -m bench.results_page                       docs/results.md, from bench/results
    python -m bench.results_page --results FOLDER      FOLDER/results.md, from the records in FOLDER

Each cell is a mean over the seeds of the purification; after it stand the standard deviation over the seeds, where
there are several, and Wilson's 95% interval for the number of *pictures*: more seeds do not make it narrower.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import paper, record, results_sheet, tables
from bench.baselines.guarded import Guarded
from bench.evaluation import Rate
from bench.report import ROOT, START, table
from bench.results_groups import SHORT, Group, groups
from bench.results_marks import ahead_of, marks_of
from bench.results_plot import curve, dots
from zipsdk.files import write_atomically

#: Above it, where a folder has no page yet.
HEAD = """# Results

In percent, with Wilson's 95% intervals. CA: clean pictures that are recognised behind the defence. ASR: pictures with
the trigger that are taken for the attacker's class, those that are of it left out. PA: pictures with the trigger that
are recognised for what they are. docs/results.md of zipsdk says more of how to read these tables.

"""
DOCS = ROOT / "docs"
#: The paper's data sets come first.
TITLES = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "imagenette": "Imagenette"}
#: Tables that are drawn, over what.
CURVES = {"lambda": "lam", "evaluations": "evaluations", "guarded": "evaluations"}


def records(results: Path = record.RESULTS) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data sets that have a record with rows, and these."""
    there = [path.stem.removeprefix("defense-") for path in sorted(results.glob("defense-*.json"))]
    for dataset in sorted(there, key=lambda name: (*TITLES, name).index(name)):
        content = record.read(f"defense-{dataset}", results)
        if content["rows"]:
            yield dataset, content


def table_of(content: dict[str, Any], dataset: str, name: str) -> str:
    """One of `tables.TABLES` as Markdown, or "" where the record has nothing of it."""
    wanted = tables.TABLES[name]
    lines = []
    own = groups(content, wanted.attacks, _own(name))
    if not own:
        return ""
    # what stands beside them is of no more pictures than they
    found = groups(content, wanted.attacks, wanted.defences, max(g.first["CA"][1] for g in own))
    for g in found:
        theirs = paper.figures(dataset, g.first["attack"], g.first["defence"])
        printed = "" if theirs is None else " / ".join("-" if v is None else f"{v:.1f}" for v in theirs)
        clean = g.rate("CA", "clean classifier")
        lines.append([
            g.first["trigger name"], g.first["name"] + _remark(content, g),
            g.cell("CA"), g.cell("ASR"), g.cell("PA"), g.cell("PA others"), printed,
            "" if clean is None else f"{clean.percent:.1f}", f"{g.first['evaluations']:g}", str(g.first["CA"][1]),
            str(len(g.rows)), _flagged(g),
        ])  # fmt: skip
    header = ["trigger", "defence", "CA", "ASR", "PA", "PA, other classes", "the paper's CA / ASR / PA",
              "CA of a clean classifier", "evaluations", "pictures", "seeds",
              "flagged: clean / with trigger"]  # fmt: skip
    return f"### {wanted.about}\n\n{_without_blanks(header, lines)}"


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


def _own(name: str) -> set[str]:
    """The defences that a table is about: those that Table 1 does not have."""
    first = set(tables.TABLES["table1"].defences)
    return set(tables.TABLES[name].defences) - (first if name != "table1" else set())


def _flagged(group: Group) -> str:
    """What a guard has purified, in percent of the clean pictures and of those with the trigger."""
    if "flagged" not in group.first:
        return ""
    return " / ".join(f"{statistics.mean(group.percents(name)):.1f}" for name in ("flagged", "flagged triggered"))


def short_table() -> str:
    """Table 1 in brief, for the README: CA / ASR / PA, a row for each trigger, a column for each defence."""
    lines = []
    for dataset, content in records():
        if dataset not in TITLES:
            continue  # a user's own, that the README does not speak of
        found = groups(content, tables.TABLES["agnostic"].attacks, SHORT)
        for trigger in dict.fromkeys(g.trigger for g in found):
            mine = [g for g in found if g.trigger == trigger]
            cells = {g.first["defence"]: g.brief(0) for g in mine}
            pictures = mine[0].first["CA"][1]
            lines.append([f"{TITLES[dataset]} ({pictures:,})", trigger[1], *(cells.get(line, "") for line in SHORT)])
    return table(["pictures", "trigger", *SHORT.values()], lines)


def comparison(results: Path) -> str:
    """PA of ZIP beside that of every rival, for the paper's attacks on all data sets, or ""."""
    lines = [[TITLES.get(name, name), *line] for name, content in records(results) for line in ahead_of(content)]
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


def spread_of(content: dict[str, Any]) -> str:
    """How much the networks differ that are behind the rows: what no interval here has in it."""
    said = []
    for line in ("none", "shrinkpad", "blur"):
        mine = [
            row for row in content["rows"].values()
            if row["defence"] == line and content["classifiers"][row["classifiers"]].get("augment") == "standard"
        ]  # fmt: skip
        most = max((row["CA"][1] for row in mine), default=0)
        of = {row["classifiers"]: Rate(*row["CA"]).percent for row in mine if row["CA"][1] == most}
        if len(of) > 2:
            low, high, sd = min(of.values()), max(of.values()), statistics.stdev(of.values())
            said.append(f"{SHORT[line]} {low:.1f} to {high:.1f} (standard deviation {sd:.1f}, {len(of)} networks)")
    if not said:
        return ""
    return (
        f"CA of the networks that the different attacks poisoned, on the same clean pictures: {'; '.join(said)}. A row "
        "has one network, so its interval does not have this in it."
    )


def again(dataset: str, results: Path) -> str:
    """The rows for which pictures, triggers and networks were drawn anew, once everything else was fixed."""
    name, folder = f"defense-{dataset}", results / "again"
    if not (folder / f"{name}.json").is_file():
        return ""
    content = record.read(name, folder)
    commands = "\n".join(_commands(content))
    return (
        "### Once more, with other pictures, triggers and networks\n\n"
        "Another draw of the test pictures (some are the same by chance; on signs many, for lack of others), "
        "of the triggers and of who is poisoned, and networks trained from another seed; the settings as they were. "
        "Taken once.\n\n"
        f"{commands}\n\n" + table_of(content, dataset, "agnostic").split("\n\n", 1)[1]
    )


def cost_of(content: dict[str, Any]) -> str:
    if not content["cost"]:
        return ""

    def ms(c: dict[str, Any], what: str) -> str:
        return f"{c[what]['median']:.1f} [{c[what]['low']:.1f}, {c[what]['high']:.1f}]" if what in c else ""

    lines = [
        [line, c["name"], f"{c['evaluations']:g}", f"{c['queries']:g}", ms(c, "ms"), ms(c, "ms triggered")]
        for line, c in content["cost"].items()
    ]
    some = next(iter(content["cost"].values()))
    machine = content["runs"][some["run"]]["machine"]
    return (
        f"### Cost\n\nMilliseconds a picture of {some['side']} x {some['side']}, {some['pictures']} at once, median "
        f"[quartiles], on {machine['cores']} cores of {machine['processor']}. A guard's and BDMAE's have their queries "
        "in it; a guard's evaluations, and as many queries again, are for what it flags: on clean pictures few, on "
        "those with a BadNets trigger nearly all.\n\n"
        + table(["row", "defence", "evaluations", "queries of the classifier", "ms a picture", "with a trigger"], lines)
    )


def section(dataset: str, content: dict[str, Any], results: Path, page: Path) -> str:
    """Everything about a data set; the plots are written beside the page."""
    some = next(iter(content["rows"].values()))
    data = content["data"][some["data"]]
    present = data.get("classes with pictures", data["classes"])
    classes = f"{present} classes" if present == data["classes"] else f"{present} of the {data['classes']} classes"
    films = (
        f" They are frames of {data['tracks']} tracks. The intervals take those of one track for one picture; since "
        "they are not quite alike, the intervals are rather too wide."
    ) if "tracks" in data else ""  # fmt: skip
    known = [c for c in content["classifiers"].values() if "recipe" in c]
    given = [c["classifier"] for c in content["classifiers"].values() if "recipe" not in c]
    parts = [
        f"## {TITLES.get(dataset, dataset)}",
        f"Test pictures from {data['source']} at {data['side']} x {data['side']}, balanced over {classes}.{films} "
        f"Target class {some['target']}.",
        "<details><summary>Commands and commits</summary>\n\n" + "\n".join(_commands(content)) + "\n\n</details>",
    ]
    if known:
        parts.append(_trained(known))
    if given:
        parts.append(f"Classifiers that were brought: {', '.join(dict.fromkeys(given))}.")
    if path := dots(content, dataset, page.parent):
        parts.append(f"![CA and ASR of the defences, with 95% intervals]({path.name})")
    parts += [spread_of(content), marks_of(content), again(dataset, results)]
    parts += [table_of(content, dataset, name) for name in tables.TABLES if name not in (*CURVES, "quick")]
    for name, x in CURVES.items():
        if path := curve(content, dataset, name, x, page.parent):
            parts.append(f"### {tables.TABLES[name].about}\n\n![{tables.TABLES[name].about}]({path.name})\n\n"
                         + table_of(content, dataset, name).split("\n\n", 1)[1])  # fmt: skip
    if (sheet := results_sheet.place(results, dataset)).is_file():
        parts.append(
            "### Pictures\n\nTest pictures, with the trigger, what the transform leaves, what ZIP makes of it, "
            "and how that differs from the clean one:\n\n"
            f"![Test pictures before and after]({Path(os.path.relpath(sheet, page.parent)).as_posix()})"
        )
    parts.append(cost_of(content))
    return "\n\n".join(p for p in parts if p)


def _trained(known: list[dict[str, Any]]) -> str:
    """How the classifiers that were trained here were."""
    recipe = known[0]["recipe"]
    said = f"Classifier: {recipe['architecture']}, {recipe['epochs']} epochs."
    attacked = [c["poison"] for c in known if c["poison"].get("attack")]
    if attacked:
        rates = sorted({p["rate"] for p in attacked})
        said += f" Poisoned training pictures: {', '.join(f'{100 * r:g}%' for r in rates)}."
    if implant := max((p.get("implant", 0) for p in attacked), default=0):
        said += f" In the first {implant} epochs half of what a poisoned one saw had the trigger."
    return said


def _commands(content: dict[str, Any]) -> list[str]:
    """The commands that the rows are from, with their commits, oldest first."""
    used = {row["run"] for row in content["rows"].values()}
    runs = sorted((run for name, run in content["runs"].items() if name in used), key=lambda run: run["date"])
    return list(dict.fromkeys(f"- `{run['command']}` ({run['commit']})" for run in runs))


def measured(results: Path, page: Path) -> str:
    """All that is drawn of the records in a folder, or ""; the plots are written beside the page."""
    sections = [section(dataset, content, results, page) for dataset, content in records(results)]
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
    p = argparse.ArgumentParser(prog="python -m bench.results_page", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the records")
    results = p.parse_args().results
    page = draw(results)
    if page is None:
        p.exit(1, f"error: {results}: got no defense-DATASET.json with rows; python bench/defense.py writes them\n")
    print(page)


if __name__ == "__main__":
    main()
