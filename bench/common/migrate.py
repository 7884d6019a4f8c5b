"""Migrate records in place to the names that the code has now.

    python -m bench.common.migrate            bench/results and its folders
    python -m bench.common.migrate FOLDER     records of one's own

Every row keeps its key and its numbers. Descriptions of images, triggers, classifiers and defenses stay as they are:
keys are hashes of them. A second run changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from bench.common.record import RESULTS
from zipsdk._util.atomic import write_atomically

#: Options of ZIP that presets had names for.
_SETTINGS = {"default": "", "patch": " transforms=blur2 lam=10", "blended": " transforms=gray lam=2",
             "random": " transforms=blur2|gray|blur2+gray|blur4+gray lam=10"}  # fmt: skip


def defense_text(text: str) -> str:
    """Rename the options in the text of a defense: `preset` to what it meant, `profile` to `preset`."""
    if "profile=" not in text:
        return text
    words = text.split()
    settings = [w.removeprefix("preset=") for w in words if w.startswith("preset=")]
    kept = " ".join(w for w in words if not w.startswith("preset="))
    return kept.replace("profile=", "preset=") + "".join(_SETTINGS[name] for name in settings)


def renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Rename keys; their order stays."""
    return {names.get(key, key): value for key, value in row.items()}


def migrate_defenses(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate the record of a data set, as bench/defense.py writes it."""
    content = renamed(content, {"defences": "defenses"})
    content["data"] = {
        key: renamed(data, {"classes with pictures": "classes_with_images"}) for key, data in content["data"].items()
    }
    content["rows"] = {key: _row(row) for key, row in content["rows"].items()}
    content["cost"] = {
        defense_text(text): renamed({**cost, "name": _name(cost["name"])}, _COSTS)
        for text, cost in content["cost"].items()
    }
    return content


def _row(row: dict[str, Any]) -> dict[str, Any]:
    row = renamed(row, {"trigger name": "trigger_name", "defence": "defense", "evaluations": "steps",
                        "clean classifier": "clean_model", "defences": "defenses", **_RATES})  # fmt: skip
    row["defense"] = defense_text(row["defense"])
    row["name"] = _name(row["name"])
    if "clean_model" in row:
        row["clean_model"] = renamed(row["clean_model"], _RATES)
    return row


def _name(name: str) -> str:
    """Rename the detector in the name of a defense, and spell it as elsewhere."""
    return name.replace("DecisivePart", "AblationDetector").replace("No defence", "No defense")


_COSTS = {"evaluations": "steps", "pictures": "images", "ms triggered": "ms_triggered"}
_RATES = {"PA others": "pa_nontarget", "flagged triggered": "flagged_triggered"}


def migrate_search(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate the record of bench/evaluation/search.py."""
    content = renamed(content, {"pictures": "images", "defences": "defenses", "one class": "one_class",
                                "norms": "reference"})  # fmt: skip
    content["defenses"] = {
        _word(name): renamed(defense, {"evaluations": "steps"}) for name, defense in content["defenses"].items()
    }
    content["rules"] = {_word(name): scores for name, scores in content["rules"].items()}
    content["reference"] = renamed(content["reference"], {"parts": "features"})
    migrated: dict[str, Any] = migrate_words(content)
    return migrated


def _word(text: str) -> str:
    """Rename the scores of the guard's detector in a label."""
    words = {"need": "necessity", "enough": "sufficiency", "decisive part": "ablation"}
    return re.sub("need|enough|decisive part", lambda match: words[match[0]], text)


def migrate_int8(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate the record of bench/quality/int8.py."""
    content = renamed(content, {"defence": "defense"})
    models = ("fp32", "int8")
    content["quality"] = [renamed(row, {"pictures": "images"}) for row in content["quality"]]
    content["defense"] = [{**row, **{m: renamed(row[m], _RATES) for m in models}} for row in content["defense"]]
    return content


#: Words in the keys and labels of measurements, with their replacements.
_WORDS = {"pictures": "images", "picture": "image", "neighbours": "neighbors", "canvases": "frames", "canvas": "frame",
          "grey": "gray", "greys": "grays", "colour": "color", "colours": "colors",
          "coloured": "colored"}  # fmt: skip


def migrate_words(content: Any) -> Any:
    """Migrate the record of any other measurement: words in keys and texts, except commands and engines' own info."""
    if isinstance(content, dict):
        kept = ("command", "info", "engine")
        return {_words(key): value if key in kept else migrate_words(value) for key, value in content.items()}
    if isinstance(content, list):
        return [migrate_words(value) for value in content]
    return _words(content) if isinstance(content, str) else content


def _words(text: str) -> str:
    for old, new in (("seconds_a_picture", "seconds_per_image"), ("measured_evaluations", "measured_steps"),
                     ("evaluations", "total_steps")):  # fmt: skip
        text = text.replace(old, new)
    text = re.sub("[a-z]+", lambda match: _WORDS.get(match[0], match[0]), text)
    return re.sub(r"\b([Aa]) image", r"\1n image", text)


#: How to migrate a record, by the key that tells its kind.
MIGRATIONS = {"classifiers": migrate_defenses, "one class": migrate_search, "one_class": migrate_search,
              "defence": migrate_int8, "defense": migrate_int8}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.common.migrate", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    for path in sorted(p.parse_args().folder.rglob("*.json")):
        old = path.read_text()
        content = json.loads(old)
        migration = next((m for key, m in MIGRATIONS.items() if key in content), migrate_words)
        new = json.dumps(migration(content), indent=1) + "\n"
        if json.loads(new) != json.loads(old):
            write_atomically(path, new.encode())
            print(path)


if __name__ == "__main__":
    main()
