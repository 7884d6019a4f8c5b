"""Migrate records in place to the names that the code has now.

    python -m bench.common.migrate            bench/results and its folders
    python -m bench.common.migrate FOLDER     records of one's own

Every row keeps its key and its numbers. Descriptions of images, triggers, classifiers and defenses stay as they are:
keys are hashes of them. A second run changes nothing.
"""

from __future__ import annotations

import argparse
import json
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


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """Migrate the record of a data set, as bench/defense.py writes it."""
    rows = {key: {**row, "defence": defense_text(row["defence"])} for key, row in record["rows"].items()}
    cost = {defense_text(text): row for text, row in record["cost"].items()}
    return {**record, "rows": rows, "cost": cost}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.common.migrate", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    for path in sorted(p.parse_args().folder.rglob("*.json")):
        old = path.read_text()
        content = json.loads(old)
        if "classifiers" not in content:
            continue
        new = json.dumps(migrate(content), indent=1) + "\n"
        if new != old:
            write_atomically(path, new.encode())
            print(path)


if __name__ == "__main__":
    main()
