"""Add rows to the record of a data set; several processes may do so at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.common import record
from bench.defenses.registry import AnyDefense, DefenseSpec
from bench.evaluation.cache import hash_of
from bench.evaluation.evaluate import Scenario
from bench.evaluation.rates import Rates
from bench.evaluation.records import CostRow, Record, ResultRow
from zipsdk._util.locks import locked_folder


class ResultsFile:
    """The record of a data set on disk.

    Several processes may add to one record: each merges what the others have written before it writes.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.content, self._added = Record(), Record()
        self._merge()
        environment = record.environment()
        self.run = hash_of(environment)
        self._put(runs={self.run: environment})

    @staticmethod
    def key(spec: DefenseSpec, scenario: Scenario, defense: AnyDefense, seed: int) -> str:
        """Return the key of a row; two specs that make the same defense have a row each."""
        return hash_of([spec.key, scenario.describe(), defense.describe(), seed])

    def _put(self, **parts: dict[str, Any]) -> None:
        """Add entries in memory; `write` writes them."""
        added = Record(**parts)
        self.content, self._added = self.content.updated(added), self._added.updated(added)

    def __contains__(self, key: str) -> bool:
        return key in self.content.rows

    def add(
        self,
        key: str,
        spec: DefenseSpec,
        scenario: Scenario,
        defense: AnyDefense,
        seed: int,
        rates: Rates,
        clean_model: Rates | None = None,
    ) -> None:
        """Add a row and write the record."""
        data, trigger = scenario.data.describe(), scenario.trigger.describe()
        classifier, description = scenario.classifier.info, defense.describe()
        row = ResultRow(
            attack=scenario.attack, trigger_name=scenario.trigger.name, target=scenario.target, defense=str(spec),
            name=defense.name, steps=defense.total_steps, queries=defense.queries, seed=seed, rates=rates,
            clean_model=clean_model, data=hash_of(data), triggers=hash_of(trigger), classifiers=hash_of(classifier),
            defenses=hash_of(description), run=self.run,
        )  # fmt: skip
        self._put(
            data={row.data: {**data, **scenario.data.counted()}}, triggers={row.triggers: trigger},
            classifiers={row.classifiers: classifier}, defenses={row.defenses: description}, rows={key: row},
        )  # fmt: skip
        self.write()

    def add_cost(self, spec: DefenseSpec, cost: CostRow) -> None:
        """Add the cost of a defense in memory; `write` writes it."""
        self._put(cost={str(spec): cost})

    def finish(self, seconds: float) -> None:
        """Record the duration of this run, if it added anything."""
        if self._added.rows or self._added.cost:
            self._put(runs={self.run: {**self.content.runs[self.run], "seconds": round(seconds, 1)}})
            self.write()

    def _merge(self) -> None:
        if (self.folder / f"{self.name}.json").is_file():
            # what other processes wrote since is newer than what this one read
            self.content = Record.read(self.name, self.folder).updated(self._added)

    def write(self) -> None:
        """Write the record, merged with what other processes have added to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.folder):
            self._merge()
            record.write(self.name, self.content.to_json(), self.folder)
