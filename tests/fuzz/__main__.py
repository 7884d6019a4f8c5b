"""Run the fuzzer and print a table: ``python -m tests.fuzz [KIND ...]``, resumable by the same command.

Exit code 0: no findings; 1: findings, each in STATE/findings; 2: not all chunks ran.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import coverage

from tests.fuzz import guided, pool
from tests.fuzz.engine import Record
from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import write


def main(argv: list[str]) -> int:
    """Run what has no record yet, then print all records."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz zipsdk; interrupted runs resume.")
    parser.add_argument("kinds", nargs="*", help=f"all of them, or some of {', '.join(KINDS)}")
    parser.add_argument(
        "--state", type=Path, default=Path("build/fuzz"), help="folder of records (default: build/fuzz)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share or multiple of the usual number of inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (default: all cores)")
    parser.add_argument(
        "--guided", type=int, default=0, metavar="N", help="inputs of each kind that Atheris steers, too"
    )
    parser.add_argument("--new", action="store_true", help="forget the records of earlier runs")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    args = parser.parse_args(argv)
    kinds = args.kinds or list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"got the kinds {sorted(unknown)}, expected some of {', '.join(KINDS)}")
    state = args.state.absolute()
    if args.new and state.exists():
        shutil.rmtree(state)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended, too
    start = time.perf_counter()
    todo = pool.tasks(kinds, args.scale)
    pool.run(state, todo, args.jobs)
    guided.run(state, kinds, args.guided, args.jobs)
    table = _table(state, kinds)
    findings = _findings(state, table)
    lines = _coverage(state)
    missing = [t.name() for t in todo if not (state / "chunks" / f"{t.name()}.json").exists()]
    _print(table, findings, lines, missing, time.perf_counter() - start)
    if args.json:
        rows = {k: {**r.__dict__, "findings": sorted(r.findings)} for k, r in table.items()}
        write(
            args.json,
            json.dumps({"versions": _versions(), "kinds": rows, "coverage": lines, "missing": missing}, indent=1),
        )
    return 1 if findings else 2 if missing else 0


def _table(state: Path, kinds: list[str]) -> dict[str, Record]:
    table: dict[str, Record] = {}
    for path in sorted((state / "chunks").glob("*.json")):
        raw = json.loads(path.read_text())
        row = f"guided {raw['kind']}" if path.name.startswith("guided-") else raw["kind"]
        if raw["kind"] in kinds:
            table.setdefault(row, Record(raw["kind"])).add(raw)
    for path in sorted((state / "crashes").glob("*.json")):
        for name, crash in json.loads(path.read_text()).items():
            if crash["kind"] in kinds:
                record = table.setdefault(crash["kind"], Record(crash["kind"]))
                record.findings.setdefault(name, {**crash, "count": 0})["count"] += 1
    order = [*kinds, *(f"guided {k}" for k in kinds)]
    return {k: table[k] for k in order if k in table}


def _findings(state: Path, table: dict[str, Record]) -> dict[str, dict[str, Any]]:
    """Write one file for each finding, named by a hash of its signature."""
    found: dict[str, dict[str, Any]] = {}
    for record in table.values():
        for name, finding in record.findings.items():
            old = found.setdefault(name, {**finding, "signature": name, "count": 0})
            old["count"] += finding["count"]
            if len(json.dumps(finding["recipe"])) < len(json.dumps(old["recipe"])):
                old["recipe"], old["kind"] = finding["recipe"], finding["kind"]
    for path in (state / "findings").glob("*.json"):
        path.unlink()
    for name, finding in found.items():
        short = hashlib.sha256(name.encode()).hexdigest()[:8]
        write(state / "findings" / f"{finding['kind']}-{short}.json", json.dumps(finding, indent=1))
    return found


def _coverage(state: Path) -> dict[str, float]:
    """Combine the coverage of all chunks: percent of the lines and branches of each module."""
    files = [str(p) for p in (state / "coverage").glob("*-*") if p.is_file()]
    if not files:
        return {}
    whole = coverage.Coverage(
        data_file=str(state / "coverage.all"), source_pkgs=["zipsdk"], branch=True, messages=False
    )
    whole.combine(files, keep=True)
    report = state / "coverage.json"
    whole.json_report(outfile=str(report), ignore_errors=True)
    raw = json.loads(report.read_text())["files"]
    return {
        p.split("zipsdk/", 1)[1]: round(f["summary"]["percent_covered"], 1)
        for p, f in sorted(raw.items())
        if "zipsdk/" in p
    }


def _versions() -> dict[str, str]:
    return {n: metadata.version(n) for n in ("hypothesis", "pillow", "numpy", "onnxruntime", "onnx")}


def _print(table: dict[str, Record], findings: dict[str, dict[str, Any]], lines: dict[str, float], missing: list[str],
           seconds: float) -> None:  # fmt: skip
    head = f"{'kind':<18}{'inputs':>8}{'accepted':>10}"
    print(f"{head}  {'refused':<52}{'findings':>9}{'slowest':>9}{'memory':>9}")
    total = 0
    for name, r in table.items():
        total += r.inputs
        refused = ", ".join(f"{k} {n}" for k, n in sorted(r.refused.items(), key=lambda x: -x[1]))
        shown = refused if len(refused) <= 50 else refused[:47] + "..."
        used = f"{r.slowest:>7.2f} s{r.megabytes:>6.0f} MB"
        print(f"{name:<18}{r.inputs:>8,}{r.accepted:>10,}  {shown:<52}{len(r.findings):>9}{used}")
    print(f"{'all':<18}{total:>8,} inputs in {seconds:.0f} s; {len(findings)} findings")
    print("versions: " + ", ".join(f"{k} {v}" for k, v in _versions().items()))
    if lines:
        print("coverage, percent of lines and branches:")
        for module, percent in lines.items():
            print(f"  {module:<28}{percent:>6.1f}")
    for name, finding in sorted(findings.items()):
        print(f"{finding['kind']}: {finding['count']} times: {name}")
    if missing:
        print(f"not run: {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
