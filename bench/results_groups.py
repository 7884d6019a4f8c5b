"""Rows of a record that differ in their seed alone, taken together: what the page and its plots are drawn from."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from bench.evaluation import Rate, interval

GUARD = "guard profile=fast"
#: The defences of Table 1, and what plots and the README call them.
SHORT = {"none": "no defence", "shrinkpad": "ShrinkPad", "blur": "blur alone", "zip-paper": "ZIP, the paper's setting",
         "zip": "ZIP, one setting", "zip profile=fast": "ZIP, one setting, fast",
         GUARD: "ZIP fast behind the guard"}  # fmt: skip

Row = dict[str, Any]


class Group:
    """The rows that differ in their seed alone."""

    def __init__(self, rows: list[Row]):
        self.rows, self.first = rows, rows[0]

    @property
    def trigger(self) -> tuple[str, str]:
        """The attack, and the name of the trigger it is tested with: an attack may have two."""
        return self.first["attack"], self.first["trigger name"]

    def rate(self, name: str, of: str | None = None) -> Rate | None:
        """The mean number of hits, of the classifier or of the "clean classifier"."""
        rates = [Rate(*(r[of] if of else r)[name]) for r in self.rows if not of or of in r]
        if not rates:
            return None
        return rates[0]._replace(hits=round(statistics.mean(r.hits for r in rates)))

    def percents(self, name: str) -> list[float]:
        return [Rate(*r[name]).percent for r in self.rows]

    def brief(self, decimals: int) -> str:
        """CA / ASR / PA in percent."""
        return " / ".join(f"{statistics.mean(self.percents(name)):.{decimals}f}" for name in ("CA", "ASR", "PA"))

    def cell(self, name: str) -> str:
        values = self.percents(name)
        rate = self.rate(name)
        assert rate is not None
        low, high = interval(rate)
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread} [{low:.1f}, {high:.1f}]"


def groups(
    content: dict[str, Any], attacks: Iterable[str], lines: Iterable[str], most: int | None = None
) -> list[Group]:
    """The rows of a record for these attacks and defences, in that order; the largest set of pictures of each, `most`
    at most."""
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in content["rows"].values():
        if most is not None and row["CA"][1] > most:
            continue
        found.setdefault((row["attack"], row["defence"], row["trigger name"]), {}).setdefault(
            _like(row, content), []
        ).append(row)
    out = []
    for attack in attacks:
        for line in lines:
            for (a, d, _), variants in found.items():
                if (a, d) == (attack, line):
                    best = max(
                        variants.values(), key=lambda rows: (rows[0]["CA"][1], content["runs"][rows[-1]["run"]]["date"])
                    )
                    out.append(Group(sorted(best, key=lambda r: r["seed"])))
    return out


def _like(row: Row, content: dict[str, Any]) -> str:
    """What rows have in common that may be averaged over their seeds."""
    return "/".join([row["data"], row["triggers"], str(row["target"]), row["classifiers"], row["defences"]])
