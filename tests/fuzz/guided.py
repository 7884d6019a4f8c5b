"""Let Atheris (libFuzzer) choose the inputs by what they cover of zipsdk and Pillow: ``python -m tests.fuzz.guided``.

Hypothesis turns libFuzzer's bytes into the same structured inputs as the seeded run draws. The corpus stays in the
state folder, so that a later run begins where this one ended.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Kinds whose inputs are read by Python code that can be instrumented.
STEERED = (
    "jpeg",
    "png",
    "webp",
    "tiff",
    "gif",
    "bmp",
    "avif",
    "ppm",
    "pil",
    "array",
    "producer",
    "spec",
    "sidecar",
    "plan",
    "guard",
)
#: Bytes that one input is made from at most; of more, most would decide nothing, and so would most mutations.
MOST = 96
#: Random inputs that an empty corpus begins with.
BEGINNINGS = 40


def run(state: Path, kinds: list[str], count: int, jobs: int) -> None:
    """Run `count` steered inputs for each kind, in processes of their own."""
    if not count:
        return
    from tests.fuzz import pool  # not above: what it imports must be instrumented first

    if importlib.util.find_spec("atheris") is None:
        print("guided runs are left out: pip install atheris", file=sys.stderr)
        return
    todo = [k for k in kinds if k in STEERED and not (state / "chunks" / f"guided-{k}.json").exists()]
    env = {**os.environ, "PYTHONPATH": pool.PATH, "OMP_NUM_THREADS": "1"}
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    while todo or running:
        while todo and len(running) < jobs:
            kind = todo.pop(0)
            (state / "logs").mkdir(parents=True, exist_ok=True)
            with (state / "logs" / f"guided-{kind}.txt").open("wb") as log:
                command = [sys.executable, "-m", "tests.fuzz.guided", str(state), kind, str(count)]
                running.append((kind, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)))
        _, process = running.pop(0)
        process.wait()


def main(argv: list[str]) -> None:
    """Run one kind in this process, which libFuzzer ends."""
    state, kind, count = Path(argv[0]), argv[1], int(argv[2])
    import atheris

    with atheris.instrument_imports(include=["zipsdk", "PIL"]):
        from tests.fuzz.kinds import KINDS

    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from tests.fuzz import engine
    from tests.fuzz.recipes import Recipe, digest
    from tests.fuzz.worker import write

    record, memory, seen = engine.Record(kind), engine.Memory(), set[str]()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    file = state / "chunks" / f"guided-{kind}.json"

    def use(recipe: Recipe) -> None:
        if digest(recipe) in seen:
            return
        seen.add(digest(recipe))
        record.inputs += 1
        result, seconds, grown, wrong = engine.failure_of(KINDS[kind], recipe, scratch / "input", memory)
        record.slowest, record.megabytes = max(record.slowest, seconds), max(record.megabytes, grown)
        if wrong is not None:
            engine.note(record, recipe, wrong)
        elif result == "accepted":
            record.accepted += 1
        else:
            record.refused[result] += 1

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test(data: st.DataObject) -> None:
        use(KINDS[kind].draw(data.draw))

    executed = 0

    def one(data: bytes) -> None:
        nonlocal executed
        executed += 1
        test.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
        if executed == count:  # libFuzzer ends the process without a word to Python
            write(file, record.to_json())
            shutil.rmtree(scratch, ignore_errors=True)

    corpus = state / "corpus" / kind
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):  # too few bytes make no input at all
        for i in range(BEGINNINGS):
            (corpus / f"start-{i}").write_bytes(random.Random(i).randbytes(MOST))
    options = (
        f"-runs={count}",
        f"-max_len={MOST}",
        "-len_control=0",
        "-seed=1",
        "-timeout=60",
        f"-artifact_prefix={corpus.parent}/",
    )
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
