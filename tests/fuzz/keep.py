"""Keep a finding as a test, once it is fixed: ``python -m tests.fuzz.keep STATE/findings/X.json NAME``.

It writes tests/fuzz/findings/NAME.json: the input, what was wrong, and the result that the fixed code gives.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.fuzz.engine import Memory, failure_of
from tests.fuzz.kinds import kind_of
from tests.fuzz.worker import write

FOLDER = Path(__file__).parent / "findings"


def main(argv: list[str]) -> int:
    """Check that the finding is fixed, and write it; 1 if it still fails."""
    found = json.loads(Path(argv[0]).read_text())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        result, _, _, wrong = failure_of(kind_of(found["kind"]), found["recipe"], Path(folder) / "input", Memory())
    if wrong is not None:
        print(f"still fails: {type(wrong).__name__}: {wrong}", file=sys.stderr)
        return 1
    kept = {"kind": found["kind"], "was": found["signature"], "results": [result], "recipe": found["recipe"]}
    write(FOLDER / f"{argv[1]}.json", json.dumps(kept, indent=1) + "\n")
    print(f"{FOLDER / argv[1]}.json: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
