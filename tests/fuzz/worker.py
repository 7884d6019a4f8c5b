"""Run one chunk of one kind in this process: ``python -m tests.fuzz.worker STATE KIND NUMBER COUNT``.

Before each input its recipe is written to STATE/running/KIND-NUMBER.json, so that the parent knows which input
killed the process. The record is written, atomically, to STATE/chunks/KIND-NUMBER.json at the end.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Address space above what the process has at its start: a safety net below the machine's memory.
ADDRESS_SPACE = 8 << 30


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def main(argv: list[str]) -> None:
    """Run the chunk that the arguments name."""
    state, kind, number, count = Path(argv[0]), argv[1], int(argv[2]), int(argv[3])
    import coverage

    measured = coverage.Coverage(
        data_file=str(state / "coverage" / f"{kind}-{number}"), source_pkgs=["zipsdk"], branch=True, messages=False
    )
    (state / "coverage").mkdir(parents=True, exist_ok=True)
    measured.start()
    from tests.fuzz.engine import run_chunk

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE, now + ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    poison_file = state / "poison.json"
    poison = set(json.loads(poison_file.read_text())) if poison_file.exists() else set()
    running = state / "running" / f"{kind}-{number}.json"
    parent = os.getppid()

    def announce(recipe: dict[str, Any]) -> None:
        if os.getppid() != parent:  # the parent is dead, and a new run may have begun the same chunk
            raise SystemExit("the run has ended")
        write(running, json.dumps(recipe))

    # in memory where there is a file system for it: an input is a file or a folder of files
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        record = run_chunk(kind, number, count, scratch / "input", poison=poison, announce=announce)
        from tests.fuzz import commands

        commands.forget_template()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    measured.stop()
    measured.save()
    write(state / "chunks" / f"{kind}-{number}.json", record.to_json())
    running.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
