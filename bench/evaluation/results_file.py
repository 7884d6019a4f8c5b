"""The record of the defence: rows, and all that they refer to, in one JSON file for each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.common import record
from bench.defenses.base import Defence
from bench.defenses.guarded import Guarded
from bench.defenses.registry import DefenseSpec
from bench.evaluation.cache import hash_of
from bench.evaluation.evaluate import Scene
from zipsdk._util.locks import locked_folder


class Rows:
    """The rows of a record, with what they refer to by its hash: runs, data, triggers, classifiers, defences.

    Several processes may add to one record: each takes in what the others have written before it writes.
    """

    PARTS = ("runs", "data", "triggers", "classifiers", "defences", "rows", "cost")

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.content: dict[str, dict[str, Any]] = {part: {} for part in self.PARTS}
        self._mine: dict[str, dict[str, Any]] = {part: {} for part in self.PARTS}
        self._merge()
        environment = record.environment()
        self.run = hash_of(environment)
        self.put("runs", self.run, environment)

    @staticmethod
    def key(spec: DefenseSpec, scene: Scene, defence: Defence | Guarded, seed: int) -> str:
        """Return the key of a row; two specs that make the same defense have a row each."""
        return hash_of([spec.key, scene.describe(), defence.describe(), seed])

    def put(self, part: str, key: str, value: Any) -> None:
        """Take something in; `write` writes it."""
        self.content[part][key] = self._mine[part][key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.content["rows"]

    def add(
        self, key: str, spec: DefenseSpec, scene: Scene, defence: Defence | Guarded, seed: int, counts: dict[str, Any]
    ) -> None:
        """Take a row in, and write the record."""
        said = {"data": scene.data.describe(), "triggers": scene.trigger.describe(),
                "classifiers": scene.classifier.info, "defences": defence.describe()}  # fmt: skip
        row: dict[str, Any] = {"attack": scene.attack, "trigger name": scene.trigger.name, "target": scene.target,
                               "defence": str(spec), "name": defence.name, "evaluations": defence.evaluations,
                               "queries": defence.queries, "seed": seed, **counts}  # fmt: skip
        for kind, description in said.items():
            row[kind] = hash_of(description)
            self.put(kind, row[kind], {**description, **scene.data.counted()} if kind == "data" else description)
        row["run"] = self.run
        self.put("rows", key, row)
        self.write()

    def finish(self, seconds: float) -> None:
        """Say how long this run took; of one that had nothing to add nothing is written."""
        if self._mine["rows"] or self._mine["cost"]:
            self.put("runs", self.run, {**self.content["runs"][self.run], "seconds": round(seconds, 1)})
            self.write()

    def _merge(self) -> None:
        if (self.folder / f"{self.name}.json").is_file():
            there = record.read(self.name, self.folder)
            # what others have made since is newer than what was read of it
            self.content = {part: {**there[part], **mine} for part, mine in self._mine.items()}

    def write(self) -> None:
        """Write the record, with what other processes have added to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.folder):
            self._merge()
            record.write(self.name, self.content, self.folder)
