"""Run the same few inputs of every kind of `fuzz`, and every input that once broke a rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("hypothesis")
pytest.importorskip("psutil")
pytest.importorskip("coverage")

from tests.fuzz import engine, pool
from tests.fuzz.kinds import KINDS, kind_of
from tests.fuzz.planted import LIMIT
from tests.fuzz.recipes import digest

INPUTS = 20
FOUND = sorted((Path(__file__).parent / "findings").glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_accepted_or_refused(kind: str, tmp_path: Path) -> None:
    record = engine.run_chunk(kind, 0, INPUTS, tmp_path / "input", shrink=False)
    assert record.inputs == INPUTS
    assert not record.findings, json.dumps(record.findings, indent=1)[:3000]
    assert record.accepted + sum(record.refused.values()) == INPUTS


@pytest.mark.parametrize("path", FOUND, ids=[p.stem for p in FOUND])
def test_findings_stay_fixed(path: Path, tmp_path: Path) -> None:
    assert path.stat().st_size < 4096
    found = json.loads(path.read_text())
    result, _, _, wrong = engine.failure_of(kind_of(found["kind"]), found["recipe"], tmp_path / "in", engine.Memory())
    if wrong is not None:
        raise wrong
    assert result in found["results"]


def test_a_chunk_draws_the_same_inputs_again(tmp_path: Path) -> None:
    def drawn(number: int) -> list[str]:
        digests: list[str] = []
        engine.run_chunk(
            "png", number, 8, tmp_path / "input", shrink=False, announce=lambda r: digests.append(digest(r))
        )
        return digests

    seen = [drawn(number) for number in (0, 0, 1)]
    assert seen[0] == seen[1] and len(set(seen[0])) == len(seen[0]) == 8
    assert seen[0] != seen[2]


def test_an_exception_of_another_type_is_found_and_shrunk(tmp_path: Path) -> None:
    record = engine.run_chunk("planted raise", 0, 60, tmp_path / "input")
    (found,) = record.findings.values()
    assert found["message"] and "KeyError" in next(iter(record.findings))
    assert found["recipe"] == {"number": LIMIT, "word": ""}
    assert record.refused["InputError"] > 0 and record.accepted > 0
    assert found["count"] + record.accepted + record.refused["InputError"] == 60


def test_an_input_that_needs_too_much_memory_is_found(tmp_path: Path) -> None:
    if not engine.Memory().works:
        pytest.skip("the peak of this process cannot be reset on this system")
    record = engine.run_chunk("planted memory", 0, 40, tmp_path / "input", shrink=False)
    (name,) = record.findings
    assert "MB of memory" in name and record.megabytes > 90
    assert record.findings[name]["count"] + record.accepted == 40


@pytest.mark.slow
def test_an_input_that_ends_the_interpreter_is_found_and_the_others_still_run(tmp_path: Path) -> None:
    task = pool.Task("planted crash", 0, 8)
    pool.run(tmp_path, [task], 1)
    crashes = [json.loads(p.read_text()) for p in sorted((tmp_path / "crashes").glob("*.json"))]
    assert crashes
    for crash in crashes:
        ((name, found),) = crash.items()
        assert "SIGSEGV" in name and found["recipe"]["number"] >= LIMIT
    record = json.loads((tmp_path / "chunks" / "planted crash-0.json").read_text())
    assert record["inputs"] == 8
    assert record["accepted"] == 8 - len({digest(f["recipe"]) for c in crashes for f in c.values()})
    stamp = (tmp_path / "chunks" / "planted crash-0.json").stat().st_mtime_ns
    pool.run(tmp_path, [pool.Task("planted crash", 0, 8)], 1)  # a chunk with a record is not run again
    assert (tmp_path / "chunks" / "planted crash-0.json").stat().st_mtime_ns == stamp
