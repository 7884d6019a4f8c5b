"""Write the measured parts of README.md, docs/defaults.md and zip-tiny's card from the records: no number is typed.

    python -m bench.pages.readme

Between ``<!-- measured -->`` and ``<!-- /measured -->`` everything is replaced.
"""

from __future__ import annotations

import json
from typing import Any

from bench.common.markdown import ROOT, replace, table
from bench.common.record import RESULTS, read
from bench.evaluation.tables import TABLES
from bench.pages.results.groups import GUARD, groups
from bench.pages.results.page import TITLES, short_table


def restoration() -> str:
    rows = []
    for name in ("restoration", "restoration-fast"):
        record = read(name)
        for r in record["rows"]:
            results, info = r["results"], r["info"]
            cells = [
                f"{r['data']} ({r['pictures']} of {r['size'][0]} px)",
                f"blur{r['blur']}",
                str(info["steps"]),
            ]
            for method in ("A+A x", "bicubic", "zip"):
                m = results[method]
                cells.append(f"{m['psnr']:.2f} / {m['sharpness']:.2f}")
            z = results["zip"]
            cells.append(f"{z['gain_db']:+.2f} ± {z['gain_standard_error']:.2f}")
            rows.append(cells)
    header = ["pictures", "transform", "evaluations", "A⁺A x", "bicubic of A x", "purified", "gain over A⁺A x, dB"]
    return (
        "Clean pictures, lambda 10: PSNR in dB / sharpness (detail energy relative to the original's, 1 is as much). "
        "A⁺A x is what the transform leaves of the picture.\n"
        f"(`{read('restoration')['command']}`, `{read('restoration-fast')['command']}`):\n\n{table(header, rows)}"
    )


def cost() -> str:
    record = read("cpu")
    rows = []
    for r in record["rows"]:
        name = f"{r['pictures']} of {r['size'][0]}x{r['size'][1]}"
        low, high = r["ms_min_max"]
        rows.append([name, str(r["info"]["steps"]),
                     f"{r['ms_per_picture']:.0f} ({low:.0f} to {high:.0f})", f"{r['not_unet']:.1%}"])  # fmt: skip
    machine, threads = record["machine"], record["rows"][0]["info"]["threads"]
    header = ["pictures at once", "evaluations", "ms a picture, median (spread)", "of it not the UNet"]
    return f"Time on a CPU ({machine['processor']}, {threads} threads, `{record['command']}`):\n\n{table(header, rows)}"


def neighbours() -> str:
    record = read("neighbours")
    rows = [
        [name, f"{r['mean']:.2f}", f"{r['mean_inner']:.2f}", str(r["max"]), f"{r['pixels_changed']:.1%}"]
        for name, r in record["rows"].items()
    ]
    header = ["32x32 pictures, difference in grey levels", "mean", "mean without border", "largest", "pixels changed"]
    return (
        "How far neighbours on a shared 64x64 canvas move a picture, beside what another seed does "
        f"(`{record['command']}`):\n\n{table(header, rows)}"
    )


def seams() -> str:
    record = read("seams")
    parts = {k: f"{r['rows']:+.2f} and {r['columns']:+.2f}" for k, r in record["excess"].items()}
    height, width = record["size"]
    return (
        f"Seams in a {width}x{height} photograph, in windows of {record['canvas']}: the step across the windows' "
        f"borders exceeds the steps beside them by {parts['windows']} grey levels (rows and columns); cut apart, it is "
        f"{parts['cut apart']} (`{record['command']}`)."
    )


def kernels() -> str:
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
            rows.append([r["kernel"], str(r["canvases"]), f"{ours / 1e3:.2f}", ", ".join(others)])
    header = ["kernel", "256x256 canvases", "ms", "time of the others over it, medians [quartiles]"]
    return (
        "The step around the UNet on one CPU core: the CUDA source compiled by g++ (the shim that the tests use) "
        f"against NumPy and torch (`{record['command']}`):\n\n{table(header, rows)}"
    )


def losses(log: list[dict[str, Any]]) -> str:
    last = log[-1]
    sources = [k for k in last if k.startswith("held_out:")]
    picked = [0, 50, 100, 150, 200, 300, 400, 600, 800, 950]
    at = [last["steps"].index(t) for t in picked]
    rows = [[s.removeprefix("held_out:"), *(f"{last[s][i]:.2g}" for i in at)] for s in sources]
    return table(["after {:,} samples, t =".format(last["samples"]), *map(str, picked)], rows)


def defence() -> str:
    return (
        "The defence: CA / ASR / PA in percent, of small classifiers poisoned with these triggers, behind each "
        "defence. Higher, lower and higher is better. [docs/results.md](docs/results.md) has the intervals, the other "
        f"defences and triggers, the paper's figures beside ours, and what differs:\n\n{short_table()}"
    )


def speed() -> str:
    record = read("speed")
    whole = record["seconds_a_picture"].get("whole")
    rounds = f"rounds: {len(whole)}, " if whole else ""
    verdict = {None: "-", True: "yes", False: "**no**"}
    rows = [
        [c["claim"], c["wanted"], "not measured" if c["got"] is None else f"{c['got']:.3g}", verdict[c["met"]]]
        for c in record["claims"]
    ]
    text = (
        f"Goals for speed ({record['model']}, {record['machine']['cores']} threads of "
        f"{record['machine']['processor']}, {rounds}`{record['command']}`; "
        "[docs/speed.md](docs/speed.md) says what the loops and the guard's bound are):\n\n"
        f"{table(['ratio or time', 'wanted', 'measured', 'met'], rows)}"
    )
    if not record["guard"] or not record["gates"]:  # its rows were left out
        return text
    gains = "; ".join(f"{key} {g['measured']:.2f} (bound {g['bound']:.2f})" for key, g in record["gates"].items())
    return (
        f"{text}\n\n"
        "These guards have the paper's detector, SCALE-UP, in front of a ResNet-34; flags are "
        f"{record['guard']['flags']}. Their share of the bound says that nothing but classifier and purifier takes "
        "time, not that they pay. Beside purifying everything in the same way they are so many times as fast: "
        f"{gains}. More than the bound is the machine's noise: the purifier alone was timed some minutes apart."
    )


def search() -> str:
    """docs/defaults.md's tables."""
    parts = []
    for dataset, title in TITLES.items():
        if not (RESULTS / f"search-{dataset}.json").is_file():
            continue
        record = read(f"search-{dataset}")
        triggers = list(record["triggers"])

        def cells(rates: dict[str, list[float]], names: list[str] = triggers) -> list[str]:
            return [" / ".join(f"{v:.0f}" for v in rates[name][1:]) for name in names]

        tried = record["defences"].values()
        lines = [
            [name, f"{d['evaluations']:g}", f"{d['rates'][triggers[0]][0]:.1f}", *cells(d["rates"]),
             f"{d['flagged']['clean']:.0f}" if d["flagged"] else ""]
            for name, d in zip(record["defences"], tried, strict=True)
        ]  # fmt: skip
        whole = record["views"]["whole"]
        lines.insert(0, ["No defence", "0", f"{whole[triggers[0]][0]:.1f}", *cells(whole), ""])
        views = [[name, f"{v[triggers[0]][0]:.1f}", *cells(v)] for name, v in record["views"].items()]
        rules = [[name, *(f"{v[t]:.0f}" for t in triggers)] for name, v in record["rules"].items()]
        learning = [
            [f"{share}%", name, f"{line['clean']:.0f}" if "clean" in line else "",
             *(f"{line[t]:.0f}" for t in triggers)]
            for share in record["learning"]["bounded"]
            for name in record["learning"]
            for line in [record["learning"][name][share]]
        ]  # fmt: skip
        about = "\n".join(f"- {name}: {what}" for name, what in record["triggers"].items())
        parts.append(
            f"## {title}: the search\n\n{record['pictures']} held-out training pictures, {record['calibration']} "
            f"others for calibration; `{record['command']}`, commit {record['commit']}. The triggers:\n\n{about}\n\n"
            "CA, and ASR / PA by trigger, in percent; the last column is the share of clean pictures that is flagged. "
            "CA and that share are of a guard that has learnt from pictures nobody touched; ASR and PA are of one that "
            "has learnt from pictures of which 5% had the trigger:"
            f"\n\n{table(['defence', 'evaluations', 'CA', *triggers, 'flagged'], lines)}\n\n"
            "Scores that were tried: share of the pictures on which a trigger works that each finds, in percent, when "
            f"2% of clean pictures are false alarms:\n\n{table(['score', *triggers], rules)}\n\n"
            f"What is flagged after learning from {record['calibration']} pictures, of which a share has the trigger: "
            "clean pictures, and those on which a trigger works, in percent:\n\n"
            f"{table(['share', 'norms', 'clean', *triggers], learning)}\n\n"
            f"{one_class(record['one class'])}\n\n"
            "What the classifier makes of each version by itself: CA, and ASR / PA by trigger:\n\n"
            f"{table(['version', 'CA', *triggers], views)}"
        )
    return "\n\n".join([*parts, given_up()])


def given_up() -> str:
    """Rows of the tables by the guard's rule and by the one that was tried last and given up, side by side."""
    lines, commits = [], set()
    for dataset, title in TITLES.items():
        if not (RESULTS / "rule-6" / f"defense-{dataset}.json").is_file():
            continue
        kept, other = (read(f"defense-{dataset}", folder) for folder in (RESULTS, RESULTS / "rule-6"))
        commits |= {run["commit"] for run in other["runs"].values()}
        was, now = (
            {g.trigger: g.brief(1) for g in groups(c, TABLES["agnostic"].attacks, [GUARD])} for c in (other, kept)
        )
        lines += [[title, trigger[1], now[trigger], cells] for trigger, cells in was.items()]
    return (
        f"## The rule that was given up\n\nThe guard, which learns, CA / ASR / PA in percent: as it is, and by rule 6 "
        f"(commit {', '.join(sorted(commits))}), where a median need above 0 counts as 0 and the threshold is 3.5. The "
        f"same networks and pictures.\n\n{table(['pictures', 'trigger', 'as it is', 'rule 6'], lines)}"
    )


def one_class(found: dict[str, dict[str, float]]) -> str:
    """What learning from pictures of a single class does, of `bench.evaluation.search`'s record."""
    said = [f"{name} {f['flagged']:.0f}% are flagged and {f['certain']:.0f}% disbelieved" for name, f in found.items()]
    return (
        f"After learning from pictures of one class alone, of clean pictures of all classes, norms {'; '.join(said)}."
    )


def main() -> None:
    if any(RESULTS.glob("search-*.json")):
        replace(ROOT / "docs" / "defaults.md", search())
    replace(
        ROOT / "README.md", "\n\n".join((defence(), speed(), restoration(), cost(), neighbours(), seams(), kernels()))
    )
    log = [json.loads(line) for line in (RESULTS / "zip-tiny-training.jsonl").read_text().splitlines()]
    replace(ROOT / "zipsdk" / "models" / "zip-tiny.md", losses(log))


if __name__ == "__main__":
    main()
