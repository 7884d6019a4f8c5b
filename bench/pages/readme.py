"""Write the generated parts of README.md, docs/ and zip-tiny's card from the records.

    python -m bench.pages.readme

Everything between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is replaced. `bench.pages.results.page` draws the pages of
the data sets.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench.common.markdown import ROOT, fill, replace, table
from bench.common.record import RESULTS, read
from bench.evaluation.tables import TABLES
from bench.pages import notebook, restoration, speed
from bench.pages.results.groups import GUARD, groups
from bench.pages.results.page import TITLES, records

#: The columns of README's table.
DEFENSES = ("none", "zip preset=fast", GUARD)
#: Its triggers: some are stopped, some get through a purifier alone, some the guard too.
TRIGGERS = {
    "cifar10": ("BadNets 2x2", "Blended noise", "White square 3x3", "WaNet", "SIG"),
    "gtsrb": ("Blended noise", "PhysicalBA 2x2"),
    "imagenette": ("BadNets 5x5", "Blended noise"),
}


def results_block() -> str:
    """Return README's table: CA, ASR and PA without a defense, behind a purifier and behind the guard."""
    rows = []
    for part in records():
        found = groups(part.record, TABLES["agnostic"].attacks, DEFENSES)
        for trigger in TRIGGERS.get(part.dataset, ()):
            mine = {g.first.defense: g for g in found if g.trigger[1] == trigger}
            numbers = [f"{mine[name].mean(rate):.0f}" for name in DEFENSES for rate in ("ca", "asr", "pa")]
            rows.append([f"{TITLES[part.dataset]} ({mine['none'].first.images:,})", trigger, *numbers])
    header = ["images", "trigger", "CA", "ASR", "PA", "purifier: CA", "ASR", "PA", "guard: CA", "ASR", "PA"]
    return fill("readme_results", table=table(header, rows))


def speed_block() -> str:
    """Return README's lines about speed."""
    cpu, record = read("cpu"), read("speed")
    ms = {(r["images"], r["size"][0], r["info"]["steps"]): f"{r['ms_per_image']:.0f}" for r in cpu["rows"]}
    claim = "run over the authors' loop in eager torch, "
    ratio = {
        c["claim"].removeprefix(claim): f"{c['got']:.1f}" for c in record["claims"] if c["claim"].startswith(claim)
    }
    return fill("readme_speed", processor=cpu["machine"]["processor"], threads=cpu["rows"][0]["info"]["threads"],
                paper=ms[64, 32, 20], fast=ms[64, 32, 4], paper_one=ms[1, 32, 20], fast_one=ms[1, 32, 4],
                one=ratio["1 at once"], many=ratio["64 at once"], frame=ratio["whole frame"])  # fmt: skip


def losses(log: list[dict[str, Any]]) -> str:
    """Return the held-out losses of the last line of a training log."""
    last = log[-1]
    sources = [k for k in last if k.startswith("held_out:")]
    picked = [0, 50, 100, 150, 200, 300, 400, 600, 800, 950]
    at = [last["steps"].index(t) for t in picked]
    rows = [[s.removeprefix("held_out:"), *(f"{last[s][i]:.2g}" for i in at)] for s in sources]
    return table(["after {:,} samples, t =".format(last["samples"]), *map(str, picked)], rows)


def main() -> None:
    """Redraw all pages of this module."""
    p = argparse.ArgumentParser(prog="python -m bench.pages.readme", description=__doc__.split("\n")[0])
    p.parse_args()
    docs = ROOT / "docs"
    if any(RESULTS.glob("search-*.json")):
        replace(docs / "research" / "notebook.md", notebook.search())
    replace(docs / "benchmarks" / "restoration.md", restoration.measured())
    replace(docs / "benchmarks" / "speed.md", speed.measured())
    replace(ROOT / "README.md", results_block(), "results")
    replace(ROOT / "README.md", speed_block(), "speed")
    log = [json.loads(line) for line in (RESULTS / "zip-tiny-training.jsonl").read_text().splitlines()]
    replace(ROOT / "zipsdk" / "models" / "zip-tiny.md", losses(log))


if __name__ == "__main__":
    main()
