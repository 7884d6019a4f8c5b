"""What a page of results says of its rows in words, and what they cost; no number is typed."""

from __future__ import annotations

import statistics
from typing import Any

from bench.common.markdown import table
from bench.evaluation import tables
from bench.evaluation.rates import Rate
from bench.pages.results.groups import SHORT, groups, of_table


def head_of(content: dict[str, Any]) -> list[str]:
    """Of which pictures and classifiers the rows are, and the commands that took them."""
    some = next(iter(content["rows"].values()))
    data = content["data"][some["data"]]
    present = data.get("classes with pictures", data["classes"])
    classes = f"{present} classes" if present == data["classes"] else f"{present} of the {data['classes']} classes"
    films = (
        f" They are frames of {data['tracks']} tracks. The intervals take those of one track for one picture; since "
        "they are not quite alike, the intervals are rather too wide."
    ) if "tracks" in data else ""  # fmt: skip
    used = dict.fromkeys(row["classifiers"] for row in content["rows"].values())
    behind = [content["classifiers"][name] for name in used]
    known = [c for c in behind if "recipe" in c]
    given = dict.fromkeys(c["classifier"] for c in behind if "recipe" not in c)
    said = [
        f"Test pictures from {data['source']} at {data['side']} x {data['side']}, balanced over {classes}.{films} "
        f"Target class {some['target']}.",
        "<details><summary>Commands and commits</summary>\n\n" + "\n".join(commands_of(content)) + "\n\n</details>",
    ]
    if known:
        said.append(trained(known))
    if given:
        said.append(f"Classifiers that were brought: {', '.join(given)}.")
    return [*said, left_out(content)]


def left_out(content: dict[str, Any]) -> str:
    """How many rows of the tables' attacks and defences are in none of them, for there are others that go together."""
    drawn = [name for name in tables.TABLES if name != "quick"]
    shown = {id(row) for name in drawn for group in of_table(content, name) for row in group.rows}
    wanted = [(tables.TABLES[name].attacks, tables.TABLES[name].row_names) for name in drawn]
    n = sum(
        id(row) not in shown and any(row["attack"] in attacks and row["defence"] in lines for attacks, lines in wanted)
        for row in content["rows"].values()
    )
    if not n:
        return ""
    return (
        f"In the record and not shown: {n} row{'s' * (n > 1)}. What stands together is of the same pictures, trigger "
        "and classifier, the newest of as many pictures; these are of others, or of an older version of a defence. "
        "Rows that should be seen apart want a folder of their own (`--results`)."
    )


def trained(known: list[dict[str, Any]]) -> str:
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


def commands_of(content: dict[str, Any]) -> list[str]:
    """The commands that the rows are from, with their commits, oldest first."""
    used = {row["run"] for row in content["rows"].values()}
    runs = sorted((run for name, run in content["runs"].items() if name in used), key=lambda run: run["date"])
    return list(dict.fromkeys(f"- `{run['command']}` ({run['commit']})" for run in runs))


def spread_of(content: dict[str, Any]) -> str:
    """How much the networks differ that are behind the rows: what no interval here has in it."""
    said = []
    attacks = dict.fromkeys(row["attack"] for row in content["rows"].values())
    for line in ("none", "shrinkpad", "blur"):
        mine = [
            g.first for g in groups(content, attacks, [line])
            if content["classifiers"][g.first["classifiers"]].get("augment") == "standard"
        ]  # fmt: skip
        same = statistics.mode(row["data"] for row in mine) if mine else None
        of = {row["classifiers"]: Rate(*row["CA"]).percent for row in mine if row["data"] == same}
        if len(of) > 2:
            low, high, sd = min(of.values()), max(of.values()), statistics.stdev(of.values())
            said.append(f"{SHORT[line]} {low:.1f} to {high:.1f} (standard deviation {sd:.1f}, {len(of)} networks)")
    if not said:
        return ""
    return (
        f"CA of the networks that the different attacks poisoned, on the same clean pictures: {'; '.join(said)}. A row "
        "has one network, so its interval does not have this in it."
    )


def cost_of(content: dict[str, Any]) -> str:
    """What each defence took; a table for each machine, size and number of pictures."""
    alike: dict[tuple[Any, ...], list[list[str]]] = {}
    for line, c in content["cost"].items():
        machine = content["runs"][c["run"]]["machine"]
        alike.setdefault((c["side"], c["pictures"], machine["cores"], machine["processor"]), []).append(
            [line, c["name"], f"{c['evaluations']:g}", f"{c['queries']:g}", _ms(c, "ms"), _ms(c, "ms triggered")]
        )
    header = ["row", "defence", "evaluations", "queries of the classifier", "ms a picture", "with a trigger"]
    said = ["### Cost"] * bool(alike)
    for (side, pictures, cores, processor), lines in alike.items():
        how = (
            f"Milliseconds a picture of {side} x {side}, {pictures} at once, median [quartiles], on {cores} cores of "
            f"{processor}."
        )
        if len(said) == 1:
            how += (
                " A guard's and BDMAE's have their queries in it; a guard's evaluations, and as many queries again, "
                "are for what it flags: on clean pictures few, on those with a BadNets trigger nearly all."
            )
        said += [how, table(header, lines)]
    return "\n\n".join(said)


def _ms(cost: dict[str, Any], what: str) -> str:
    return f"{cost[what]['median']:.1f} [{cost[what]['low']:.1f}, {cost[what]['high']:.1f}]" if what in cost else ""
