"""Describe the rows of a record, their classifiers and their cost."""

from __future__ import annotations

import statistics
from typing import Any

from bench.common.markdown import fill, table
from bench.evaluation import tables
from bench.evaluation.records import Record
from bench.pages.results.groups import SHORT, groups, of_table


def head_of(record: Record) -> list[str]:
    """Describe the images and the classifiers of the rows."""
    some = next(iter(record.rows.values()))
    data = record.data[some.data]
    present = data.get("classes_with_images", data["classes"])
    classes = f"{present} classes" if present == data["classes"] else f"{present} of the {data['classes']} classes"
    tracks = f" {fill('tracks', tracks=data['tracks'])}" if "tracks" in data else ""
    used = dict.fromkeys(row.classifiers for row in record.rows.values())
    networks = [record.classifiers[name] for name in used]
    trained_here = [network for network in networks if "recipe" in network]
    given = dict.fromkeys(network["classifier"] for network in networks if "recipe" not in network)
    paragraphs = [
        f"Test images from {data['source']} at {data['side']} x {data['side']}, balanced over {classes}.{tracks} "
        f"Target class {some.target}.",
    ]
    if trained_here:
        paragraphs.append(trained(trained_here))
    if given:
        paragraphs.append(f"Classifiers of the user: {', '.join(given)}.")
    return [*paragraphs, left_out(record)]


def left_out(record: Record) -> str:
    """Count the rows of the tables' attacks and defenses that no table shows, because other rows go together."""
    drawn = [name for name in tables.TABLES if name != "quick"]
    shown = {id(row) for name in drawn for group in of_table(record, name) for row in group.rows}
    wanted = [(tables.TABLES[name].attacks, tables.TABLES[name].row_names) for name in drawn]
    n = sum(
        id(row) not in shown and any(row.attack in attacks and row.defense in defenses for attacks, defenses in wanted)
        for row in record.rows.values()
    )
    return fill("left_out", rows=f"{n} row{'s' * (n > 1)}") if n else ""


def trained(networks: list[dict[str, Any]]) -> str:
    """Describe how the classifiers were trained, from their descriptions."""
    recipe = networks[0]["recipe"]
    text = f"Classifier: {recipe['architecture']}, {recipe['epochs']} epochs."
    attacked = [network["poison"] for network in networks if network["poison"].get("attack")]
    if attacked:
        rates = sorted({poison["rate"] for poison in attacked})
        text += f" Poisoned training images: {', '.join(f'{100 * rate:g}%' for rate in rates)}."
    if epochs := max((poison.get("implant", 0) for poison in attacked), default=0):
        text += f" In the first {epochs} epochs half of the images of a poisoned classifier had the trigger."
    return text


def commands_of(record: Record) -> list[str]:
    """List the commands of the rows with their commits, oldest first."""
    used = {row.run for row in record.rows.values()}
    runs = sorted((run for name, run in record.runs.items() if name in used), key=lambda run: run["date"])
    return list(dict.fromkeys(f"- `{run['command']}` ({run['commit']})" for run in runs))


def spread_of(record: Record) -> str:
    """Describe how much the networks of the rows differ, which no interval includes."""
    spreads = []
    attacks = dict.fromkeys(row.attack for row in record.rows.values())
    for defense in ("none", "shrinkpad", "blur"):
        rows = [
            group.first for group in groups(record, attacks, [defense])
            if record.classifiers[group.first.classifiers].get("augment") == "standard"
        ]  # fmt: skip
        data = statistics.mode(row.data for row in rows) if rows else None
        ca = {row.classifiers: row.rates.ca.percent for row in rows if row.data == data}
        if len(ca) > 2:
            low, high, deviation = min(ca.values()), max(ca.values()), statistics.stdev(ca.values())
            spreads.append(
                f"{SHORT[defense]} {low:.1f} to {high:.1f} (standard deviation {deviation:.1f}, {len(ca)} networks)"
            )
    return fill("spread", spreads="; ".join(spreads)) if spreads else ""


def cost_of(record: Record) -> str:
    """Return the cost of each defense, in a table for each machine, size and number of images, or ""."""
    alike: dict[tuple[Any, ...], list[list[str]]] = {}
    for defense, cost in record.cost.items():
        machine = record.runs[cost.run]["machine"]
        alike.setdefault((cost.side, cost.images, machine["cores"], machine["processor"]), []).append(
            [defense, cost.name, f"{cost.steps:g}", f"{cost.queries:g}", _ms(cost.ms), _ms(cost.ms_triggered)]
        )
    if not alike:
        return ""
    header = ["row", "defense", "steps", "queries of the classifier", "ms for each image", "with a trigger"]
    paragraphs = ["### Cost", fill("cost_of_guards")]
    for (side, images, cores, processor), lines in alike.items():
        paragraphs.append(
            f"Milliseconds for each image of {side} x {side}, {images} at once, median [quartiles], on {cores} cores "
            f"of {processor}."
        )
        paragraphs.append(table(header, lines))
    return "\n\n".join(paragraphs)


def _ms(times: dict[str, float] | None) -> str:
    return f"{times['median']:.1f} [{times['low']:.1f}, {times['high']:.1f}]" if times else ""
