"""Draw the tables of docs/benchmarks/speed.md from the records of bench/timing/ and bench/gpu/."""

from __future__ import annotations

from bench.common.markdown import fill, table
from bench.common.record import read


def measured() -> str:
    """Return all tables of the page."""
    return "\n\n".join((goals(), cost(), kernels()))


def goals() -> str:
    """Describe the goals for speed."""
    record = read("speed")
    whole = record["seconds_per_image"].get("whole")
    verdict = {None: "-", True: "yes", False: "**no**"}
    rows = [
        [c["claim"], c["wanted"], "not measured" if c["got"] is None else f"{c['got']:.3g}", verdict[c["met"]]]
        for c in record["claims"]
    ]
    text = fill("goals", model=record["model"], cores=record["machine"]["cores"], command=record["command"],
                processor=record["machine"]["processor"], rounds=f"rounds: {len(whole)}, " if whole else "",
                table=table(["ratio or time", "goal", "measured", "met"], rows))  # fmt: skip
    if not record["guard"] or not record["gates"]:  # rows that were not run
        return text
    gains = "; ".join(f"{key} {g['measured']:.2f} (bound {g['bound']:.2f})" for key, g in record["gates"].items())
    return f"{text}\n\n{fill('goals_guard', flags=record['guard']['flags'], gains=gains)}"


def cost() -> str:
    """Describe the time on a CPU."""
    record = read("cpu")
    rows = []
    for r in record["rows"]:
        name = f"{r['images']} of {r['size'][0]}x{r['size'][1]}"
        low, high = r["ms_min_max"]
        rows.append([name, str(r["info"]["steps"]), f"{r['ms_per_image']:.0f}", f"{low:.0f} to {high:.0f}",
                     f"{r['not_unet']:.1%}"])  # fmt: skip
    header = ["images at once", "steps", "ms for each image, median", "range", "share outside the UNet"]
    return fill("cost", processor=record["machine"]["processor"], threads=record["rows"][0]["info"]["threads"],
                command=record["command"], table=table(header, rows))  # fmt: skip


def kernels() -> str:
    """Describe the time of the kernels on a CPU core."""
    record = read("kernels-cpu")
    steps = [r for r in record["results"] if r["kernel"].startswith("step")]
    others = [name for name in steps[0]["contenders"] if name != "kernel"]
    rows = []
    for r in steps:
        found = [r["contenders"][name] for name in others]
        rows.append([
            r["kernel"], str(r["frames"]), f"{r['contenders']['kernel']['microseconds'] / 1e3:.2f}",
            *(f"{c['times_the_kernel']:.1f} [{c['quartiles'][0]:.1f}, {c['quartiles'][1]:.1f}]" for c in found),
        ])  # fmt: skip
    return fill("kernels", command=record["command"], table=table(["kernel", "256x256 images", "ms", *others], rows))
