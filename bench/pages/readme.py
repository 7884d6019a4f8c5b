"""Write the generated parts of README.md, docs/defaults.md and zip-tiny's card from the records.

    python -m bench.pages.readme

Everything between ``<!-- measured -->`` and ``<!-- /measured -->`` is replaced.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench.common.markdown import ROOT, fill, replace, table
from bench.common.record import RESULTS, read
from bench.evaluation.records import Record
from bench.evaluation.tables import TABLES
from bench.pages.results.groups import GUARD, groups
from bench.pages.results.page import TITLES, short_table


def restoration() -> str:
    """Describe the restoration of clean images."""
    rows, commands = [], []
    for name in ("restoration", "restoration-fast"):
        record = read(name)
        commands.append(record["command"])
        for r in record["rows"]:
            results, z = r["results"], r["results"]["zip"]
            rows.append([
                f"{r['data']} ({r['images']} of {r['size'][0]} px)", f"blur{r['blur']}",
                str(r["info"]["steps"]),
                *(f"{results[k]['psnr']:.2f} / {results[k]['sharpness']:.2f}" for k in ("A+A x", "bicubic", "zip")),
                f"{z['gain_db']:+.2f} ± {z['gain_standard_error']:.2f}",
            ])  # fmt: skip
    header = ["images", "transform", "steps", "A⁺A x", "bicubic of A x", "purified", "gain over A⁺A x, dB"]
    return fill("restoration", commands="`, `".join(commands), table=table(header, rows))


def cost() -> str:
    """Describe the time on a CPU."""
    record = read("cpu")
    rows = []
    for r in record["rows"]:
        name = f"{r['images']} of {r['size'][0]}x{r['size'][1]}"
        low, high = r["ms_min_max"]
        rows.append([name, str(r["info"]["steps"]),
                     f"{r['ms_per_image']:.0f} ({low:.0f} to {high:.0f})", f"{r['not_unet']:.1%}"])  # fmt: skip
    machine, threads = record["machine"], record["rows"][0]["info"]["threads"]
    header = ["images at once", "steps", "ms for each image, median (range)", "share outside the UNet"]
    return f"Time on a CPU ({machine['processor']}, {threads} threads, `{record['command']}`):\n\n{table(header, rows)}"


def crosstalk() -> str:
    """Describe how much tiles of one frame change each other."""
    record = read("crosstalk")
    rows = [
        [name, f"{r['mean']:.2f}", f"{r['mean_inner']:.2f}", str(r["max"]), f"{r['pixels_changed']:.1%}"]
        for name, r in record["rows"].items()
    ]
    header = ["32x32 images, difference in gray levels", "mean", "mean without border", "largest", "pixels changed"]
    return fill("crosstalk", command=record["command"], table=table(header, rows))


def seams() -> str:
    """Describe the seams between windows of a large image."""
    record = read("seams")
    excess = {name: f"{r['rows']:+.2f} and {r['columns']:+.2f}" for name, r in record["excess"].items()}
    height, width = record["size"]
    return fill("seams", width=width, height=height, window=record["frame"], windows=excess["windows"],
                cut_apart=excess["cut apart"], command=record["command"])  # fmt: skip


def kernels() -> str:
    """Describe the time of the kernels on a CPU core."""
    record = read("kernels-cpu")
    rows = []
    for r in record["results"]:
        if r["kernel"].startswith("step"):
            ours = r["contenders"]["kernel"]["microseconds"]
            others = [
                f"{name} {c['times_the_kernel']:.1f}x [{c['quartiles'][0]:.1f}, {c['quartiles'][1]:.1f}]"
                for name, c in r["contenders"].items()
                if name != "kernel"
            ]
            rows.append([r["kernel"], str(r["frames"]), f"{ours / 1e3:.2f}", ", ".join(others)])
    header = ["kernel", "256x256 images", "ms", "time of the others over it, medians [quartiles]"]
    return fill("kernels", command=record["command"], table=table(header, rows))


def losses(log: list[dict[str, Any]]) -> str:
    """Return the held-out losses of the last line of a training log."""
    last = log[-1]
    sources = [k for k in last if k.startswith("held_out:")]
    picked = [0, 50, 100, 150, 200, 300, 400, 600, 800, 950]
    at = [last["steps"].index(t) for t in picked]
    rows = [[s.removeprefix("held_out:"), *(f"{last[s][i]:.2g}" for i in at)] for s in sources]
    return table(["after {:,} samples, t =".format(last["samples"]), *map(str, picked)], rows)


def defense() -> str:
    """Describe CA, ASR and PA behind each defense."""
    return fill("defense", table=short_table())


def speed() -> str:
    """Describe the goals for speed."""
    record = read("speed")
    whole = record["seconds_per_image"].get("whole")
    verdict = {None: "-", True: "yes", False: "**no**"}
    rows = [
        [c["claim"], c["wanted"], "not measured" if c["got"] is None else f"{c['got']:.3g}", verdict[c["met"]]]
        for c in record["claims"]
    ]
    text = fill("speed", model=record["model"], cores=record["machine"]["cores"], command=record["command"],
                processor=record["machine"]["processor"], rounds=f"rounds: {len(whole)}, " if whole else "",
                table=table(["ratio or time", "goal", "measured", "met"], rows))  # fmt: skip
    if not record["guard"] or not record["gates"]:  # rows that were not run
        return text
    gains = "; ".join(f"{key} {g['measured']:.2f} (bound {g['bound']:.2f})" for key, g in record["gates"].items())
    return f"{text}\n\n{fill('speed_guard', flags=record['guard']['flags'], gains=gains)}"


def search() -> str:
    """Return the tables of docs/defaults.md."""
    present = (dataset for dataset in TITLES if (RESULTS / f"search-{dataset}.json").is_file())
    return "\n\n".join([*map(_search, present), rejected_rule_table()])


def _search(dataset: str) -> str:
    record = read(f"search-{dataset}")
    triggers = list(record["triggers"])

    def cells(rates: dict[str, list[float]]) -> list[str]:
        return [" / ".join(f"{v:.0f}" for v in rates[name][1:]) for name in triggers]

    def ca(rates: dict[str, list[float]]) -> str:
        return f"{rates[triggers[0]][0]:.1f}"

    whole = record["views"]["whole"]
    defenses = [["No defense", "0", ca(whole), *cells(whole), ""]]
    defenses += [
        [name, f"{d['steps']:g}", ca(d["rates"]), *cells(d["rates"]),
         f"{d['flagged']['clean']:.0f}" if d["flagged"] else ""]
        for name, d in record["defenses"].items()
    ]  # fmt: skip
    scores = [[name, *(f"{v[t]:.0f}" for t in triggers)] for name, v in record["rules"].items()]
    learning = [
        [f"{share}%", name, f"{line['clean']:.0f}" if "clean" in line else "", *(f"{line[t]:.0f}" for t in triggers)]
        for share in record["learning"]["bounded"]
        for name in record["learning"]
        for line in [record["learning"][name][share]]
    ]
    views = [[name, ca(v), *cells(v)] for name, v in record["views"].items()]
    return fill(
        "search",
        title=TITLES[dataset],
        images=record["images"],
        calibration=record["calibration"],
        command=record["command"],
        commit=record["commit"],
        triggers="\n".join(f"- {name}: {about}" for name, about in record["triggers"].items()),
        defenses=table(["defense", "steps", "CA", *triggers, "flagged"], defenses),
        scores=table(["score", *triggers], scores),
        learning=table(["share", "reference", "clean", *triggers], learning),
        one_class=one_class(record["one_class"]),
        views=table(["view", "CA", *triggers], views),
    )


def rejected_rule_table() -> str:
    """Compare rows of the guard with those of the rule that was tried last and rejected."""
    lines, commits = [], set()
    for dataset, title in TITLES.items():
        name = f"defense-{dataset}"
        if not (RESULTS / "rule-6" / f"{name}.json").is_file():
            continue
        rejected = Record.read(name, RESULTS / "rule-6")
        commits |= {run["commit"] for run in rejected.runs.values()}
        now, then = (
            {g.trigger: g.brief(1) for g in groups(record, TABLES["agnostic"].attacks, [GUARD])}
            for record in (Record.read(name), rejected)
        )
        lines += [[title, trigger[1], now[trigger], cells] for trigger, cells in then.items()]
    return fill("rejected_rule", commits=", ".join(sorted(commits)),
                table=table(["images", "trigger", "current rule", "rule 6"], lines))  # fmt: skip


def one_class(found: dict[str, dict[str, float]]) -> str:
    """Describe what a guard flags after it has learned from images of one class; see `bench.evaluation.search`."""
    shares = [f"{name} {f['flagged']:.0f}% are flagged and {f['certain']:.0f}% certain" for name, f in found.items()]
    return f"After learning from images of one class, of clean images of all classes, reference {'; '.join(shares)}."


def main() -> None:
    """Redraw all pages of this module."""
    p = argparse.ArgumentParser(prog="python -m bench.pages.readme", description=__doc__.split("\n")[0])
    p.parse_args()
    if any(RESULTS.glob("search-*.json")):
        replace(ROOT / "docs" / "defaults.md", search())
    parts = (defense(), speed(), restoration(), cost(), crosstalk(), seams(), kernels())
    replace(ROOT / "README.md", "\n\n".join(parts))
    log = [json.loads(line) for line in (RESULTS / "zip-tiny-training.jsonl").read_text().splitlines()]
    replace(ROOT / "zipsdk" / "models" / "zip-tiny.md", losses(log))


if __name__ == "__main__":
    main()
