"""The record of a data set: result rows, costs, and the descriptions that they refer to by hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.common import record
from bench.evaluation.rates import Rates

#: JSON that is copied as it is: descriptions, of which keys are hashes, and runs.
Descriptions = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ResultRow:
    """What one defense does against one trigger with one seed.

    Args:
        defense: the text of its `DefenseSpec`.
        name: of the defense, for tables.
        steps: of the generative model for an image.
        queries: of the classifier for an image.
        rates: of the attacked classifier behind the defense.
        clean_model: rates of the same network without a backdoor, None if there is none.
        data, triggers, classifiers, defenses, run: hashes of descriptions in the record.
    """

    attack: str
    trigger_name: str
    target: int
    defense: str
    name: str
    steps: float
    queries: float
    seed: int
    rates: Rates
    clean_model: Rates | None
    data: str
    triggers: str
    classifiers: str
    defenses: str
    run: str

    @property
    def images(self) -> int:
        """The number of test images."""
        return self.rates.ca.of

    @property
    def trigger(self) -> tuple[str, str]:
        """The attack and the name of the trigger; an attack may be tested with two triggers."""
        return self.attack, self.trigger_name

    @property
    def conditions(self) -> tuple[Any, ...]:
        """Everything but the defense and its seed: equal for rows that may be compared."""
        return self.attack, self.trigger_name, self.data, self.triggers, self.target, self.classifiers

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON, with the rates among its keys."""
        out: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name == "rates":
                out |= value.to_json()
            elif name != "clean_model":
                out[name] = value
            elif value is not None:
                out[name] = value.to_json()
        return out

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ResultRow:
        """Read what `to_json` returned."""
        plain = {f.name: row[f.name] for f in fields(cls) if f.name not in ("rates", "clean_model")}
        clean = row.get("clean_model")
        return cls(**plain, rates=Rates.from_json(row), clean_model=clean and Rates.from_json(clean))


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """Time of a defense for each image.

    Args:
        ms: median and quartiles, in milliseconds.
        ms_triggered: for images with a trigger, where a guard decides.
        engine: `info` of the engine.
        run: the key of the run in the record.
    """

    name: str
    steps: float
    queries: float
    images: int
    side: int
    ms: dict[str, float]
    ms_triggered: dict[str, float] | None = None
    engine: dict[str, Any]
    run: str

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CostRow:
        """Read what `to_json` returned."""
        return cls(**row)


@dataclass
class Record:
    """ResultsFile and costs by key, and runs and descriptions by hash."""

    runs: Descriptions = field(default_factory=dict)
    data: Descriptions = field(default_factory=dict)
    triggers: Descriptions = field(default_factory=dict)
    classifiers: Descriptions = field(default_factory=dict)
    defenses: Descriptions = field(default_factory=dict)
    rows: dict[str, ResultRow] = field(default_factory=dict)
    cost: dict[str, CostRow] = field(default_factory=dict)

    def date(self, row: ResultRow) -> str:
        """Return when the run of a row began, ISO 8601."""
        date: str = self.runs[row.run]["date"]
        return date

    def updated(self, newer: Record) -> Record:
        """Return this record with the entries of a newer one."""
        return Record(**{part: {**getattr(self, part), **getattr(newer, part)} for part in vars(self)})

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the record as JSON."""
        rows = {key: row.to_json() for key, row in self.rows.items()}
        return {**vars(self), "rows": rows, "cost": {key: cost.to_json() for key, cost in self.cost.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Read what `to_json` returned; other keys are ignored."""
        parts = {part: content[part] for part in ("runs", "data", "triggers", "classifiers", "defenses")}
        rows = {key: ResultRow.from_json(row) for key, row in content["rows"].items()}
        return cls(**parts, rows=rows, cost={key: CostRow.from_json(row) for key, row in content["cost"].items()})

    @classmethod
    def read(cls, name: str, folder: Path = record.RESULTS) -> Record:
        """Read ``folder/name.json``."""
        return cls.from_json(record.read(name, folder))
