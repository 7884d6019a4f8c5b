"""The record of the defence: rows, and all that they refer to, in one JSON file for each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import record
from bench.baselines import Defence
from bench.baselines.guarded import Guarded
from bench.evaluation import Scene, hash_of


class Rows:
    """The rows of a record, with what they refer to by its hash: runs, data, triggers, classifiers, defences.

    Several processes may add to one record: each takes in what the others have written before it writes.
    """

    PARTS = ("runs", "data", "triggers", "classifiers", "defences", "rows", "cost")

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.content: dict[str, dict[str, Any]] = {part: {} for part in self.PARTS}
        self._merge()
        environment = record.environment()
        self.run = hash_of(environment)
        self.content["runs"][self.run] = environment

    @staticmethod
    def key(line: str, scene: Scene, defence: Defence | Guarded, seed: int) -> str:
        """A row's name. Two lines may mean the same defence, and have a row each: they differ elsewhere."""
        return hash_of([line, scene.describe(), defence.describe(), seed])

    def __contains__(self, key: str) -> bool:
        return key in self.content["rows"]

    def add(
        self, key: str, line: str, scene: Scene, defence: Defence | Guarded, seed: int, counts: dict[str, Any]
    ) -> None:
        """Take a row in, and write the record."""
        said = {"data": scene.data.describe(), "triggers": scene.trigger.describe(),
                "classifiers": scene.classifier.info, "defences": defence.describe()}  # fmt: skip
        row: dict[str, Any] = {"attack": scene.attack, "trigger name": scene.trigger.name, "target": scene.target,
                               "defence": line, "name": defence.name, "evaluations": defence.evaluations,
                               "queries": defence.queries, "seed": seed, **counts}  # fmt: skip
        for kind, description in said.items():
            row[kind] = hash_of(description)
            self.content[kind][row[kind]] = description
        row["run"] = self.run
        self.content["rows"][key] = row
        self.write()

    def _merge(self) -> None:
        if (self.folder / f"{self.name}.json").is_file():
            there = record.read(self.name, self.folder)
            for part, mine in self.content.items():
                self.content[part] = {**there[part], **mine}

    def write(self) -> None:
        self._merge()
        record.write(self.name, self.content, self.folder)
