"""Group the rows of a record for tables and plots."""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

from bench.evaluation import tables
from bench.evaluation.rates import Rate, interval
from bench.evaluation.records import Record, ResultRow

GUARD = "guard preset=fast"
#: The defenses of Table 1 and the guard, and their names in plots and in the README.
SHORT = {"none": "no defense", "shrinkpad": "ShrinkPad", "blur": "blur alone", "zip-paper": "ZIP, the paper's setting",
         "zip": "ZIP, one setting", "zip preset=fast": "ZIP, one setting, fast",
         GUARD: "ZIP fast behind the guard"}  # fmt: skip


class Group:
    """Rows of a record that differ only in their seed."""

    def __init__(self, rows: list[ResultRow]):
        self.rows, self.first = rows, rows[0]

    @property
    def trigger(self) -> tuple[str, str]:
        """The attack and the name of the trigger."""
        return self.first.trigger

    def rate(self, name: str) -> Rate:
        """Return a rate with the mean number of hits, by the name of the field of `Rates`."""
        return _mean_rate([getattr(row.rates, name) for row in self.rows])

    def clean_rate(self, name: str) -> Rate | None:
        """Return the same for the classifier without a backdoor, None where it was not measured."""
        rates = [getattr(row.clean_model, name) for row in self.rows if row.clean_model is not None]
        return _mean_rate(rates) if rates else None

    def percents(self, name: str) -> list[float]:
        """Return a rate of each row, in percent."""
        return [getattr(row.rates, name).percent for row in self.rows]

    def mean(self, name: str) -> float:
        """Return the mean of a rate over the seeds, in percent."""
        return statistics.mean(self.percents(name))

    def brief(self, decimals: int) -> str:
        """Format CA / ASR / PA in percent."""
        return " / ".join(f"{self.mean(name):.{decimals}f}" for name in ("ca", "asr", "pa"))

    def cell(self, name: str) -> str:
        """Format a rate with the standard deviation over the seeds and Wilson's interval."""
        values = self.percents(name)
        low, high = interval(self.rate(name))
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread} [{low:.1f}, {high:.1f}]"


def _mean_rate(rates: list[Rate]) -> Rate:
    return rates[0]._replace(hits=round(statistics.mean(r.hits for r in rates)))


def newest(record: Record) -> list[ResultRow]:
    """Drop superseded rows.

    A row is superseded if a newer row has the same attack, trigger and number of images, but another classifier, other
    images, or another trigger or target of that name.
    """

    def kind(row: ResultRow) -> tuple[Any, ...]:
        return *row.trigger, row.images

    latest = {kind(row): row.conditions for row in sorted(record.rows.values(), key=record.date)}
    return [row for row in record.rows.values() if row.conditions == latest[kind(row)]]


def groups(
    record: Record,
    attacks: Iterable[str],
    defenses: Iterable[str],
    most: int | None = None,
    about: Container[str] = (),
) -> list[Group]:
    """Group the rows for these attacks and defenses, in that order.

    All groups for one trigger have the same `conditions`. If rows have several numbers of images, at most `most`, take
    the number with the most defenses in `about`, then with the most defenses, then the largest.
    """
    defenses = list(defenses)
    found: dict[tuple[str, str], dict[int, list[ResultRow]]] = {}
    for row in newest(record):
        if row.defense in defenses and (most is None or row.images <= most):
            found.setdefault(row.trigger, {}).setdefault(row.images, []).append(row)

    def fullness(rows: list[ResultRow]) -> tuple[int, int, int]:
        present = {row.defense for row in rows}
        return sum(name in about for name in present), len(present), rows[0].images

    chosen = {trigger: max(sizes.values(), key=fullness) for trigger, sizes in found.items()}
    out = []
    for attack in attacks:
        for defense in defenses:
            for (its, _), rows in chosen.items():
                if its == attack and (mine := [row for row in rows if row.defense == defense]):
                    last = max(mine, key=record.date).defenses
                    out.append(Group(sorted((r for r in mine if r.defenses == last), key=lambda r: r.seed)))
    return out


def own_defenses(name: str) -> set[str]:
    """Return the defenses that a table is about: those that Table 1 does not have."""
    first = set(tables.TABLES["table1"].row_names)
    return set(tables.TABLES[name].row_names) - (first if name != "table1" else set())


def of_table(record: Record, name: str) -> list[Group]:
    """Group the rows of one of `tables.TABLES`; none if the record has no row that the table is about."""
    table, own = tables.TABLES[name], own_defenses(name)
    # the other defenses are shown for no more images than these
    most = max((group.first.images for group in groups(record, table.attacks, own)), default=0)
    return groups(record, table.attacks, table.row_names, most, own)


def parts(record: Record) -> list[tuple[str, Record]]:
    """Split a record by the options that hold for a whole run, oldest first.

    These are the user's classifier, or how all classifiers were trained; the attacker's target, seed and rate; the side
    and the source of the images.

    Returns:
        For each choice of options a label of those that differ, "" for a single choice, and the record with its rows.
    """
    chosen = {key: _options(row, record) for key, row in record.rows.items()}
    names: list[str] = []

    def label(options: dict[str, Any], names: list[str]) -> str:
        return ", ".join(f"{name} {options[name]}" for name in names if options[name] is not None)

    def labels(names: list[str]) -> set[str]:
        return {label(options, names) for options in chosen.values()}

    for name in next(iter(chosen.values()), {}):
        if len(labels([*names, name])) > len(labels(names)):
            names.append(name)
    rows: dict[str, dict[str, ResultRow]] = {}
    for key, row in record.rows.items():
        rows.setdefault(label(chosen[key], names), {})[key] = row
    return [(title, replace(record, rows=mine)) for title, mine in rows.items()]


def _options(row: ResultRow, record: Record) -> dict[str, Any]:
    """Return the options of a row that hold for a whole run, None where an option does not apply."""
    network, trigger, data = record.classifiers[row.classifiers], record.triggers[row.triggers], record.data[row.data]
    trained, poison = network.get("recipe", {}), network.get("poison", {})
    return {
        "classifier": network["classifier"], "epochs": trained.get("epochs"), "classifier seed": trained.get("seed"),
        "rate": poison.get("rate"), "warm-up epochs": poison.get("implant", 0), "target": row.target,
        "attack seed": trigger["seed"], "side": data["side"], "source": data["source"],
        # a user's classifier is the same for all attacks, unless it changed behind its name
        "hash": None if trained else row.classifiers[:6],
    }  # fmt: skip
