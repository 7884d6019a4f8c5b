"""Report the measurements of `bench.speed` as lines, claims and a table; `bench.timing.plot` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.common.timing import quartiles, ratios
from bench.timing.guard_rows import compare_with_bound
from bench.timing.runner import State
from bench.timing.setup import SpeedSetup, TimingRow


def speedup(samples: dict[str, list[float]], key: str, base: str) -> dict[str, float] | None:
    """Compute how many times faster `key` was than `base`, round by round; None if one was not measured."""
    if not samples.get(key) or not samples.get(base):
        return None
    return ratios(samples[base], samples[key])


def results(state: State, rows: Sequence[TimingRow]) -> list[dict[str, Any]]:
    """Make the lines of the table."""
    out = []
    for row in rows:
        line = {**row.describe(), **state.rows.get(row.key, {})}
        if row.key in state.left_out:
            line["left_out"] = state.left_out[row.key]
        elif state.samples.get(row.key):
            seconds = state.samples[row.key]
            line |= {"ms": quartiles([1e3 * s for s in seconds]), "mean_ms": 1e3 * sum(seconds) / len(seconds),
                     "rounds": len(seconds), "over_b": speedup(state.samples, row.key, "whole"),
                     "over_g": speedup(state.samples, row.key, "authors")}  # fmt: skip
        else:
            line["left_out"] = "not reached"
        out.append(line)
    return out


def claims(state: State, setup: SpeedSetup) -> list[dict[str, Any]]:
    """Compare the results with the goals; "got" and "met" are None for a goal that was not measured."""
    samples, parts = state.samples, state.parts
    out: list[dict[str, Any]] = []

    def claim(what: str, wanted: str, got: float | None, met: Callable[[float], bool]) -> None:
        out.append({"claim": what, "wanted": wanted, "got": got, "met": None if got is None else met(got)})

    def middle(key: str, base: str) -> float | None:
        ratio = speedup(samples, key, base)
        return ratio["median"] if ratio else None

    if setup.tiles > 1:
        least = 60 / 64 * setup.tiles
        claim(f"tiling {setup.tiles} to a frame over one to a frame", f"at least {least:.3g}",
              middle("tiled", "whole"), lambda x: x >= least)  # fmt: skip
    for n in (1, setup.tiles) if f"own-{setup.tiles}" in samples else ():
        for name, base in (("authors'", "authors"), ("clean", "eager")):
            claim(f"run over the {name} loop in eager torch, {n} at once", "at least 1.5",
                  middle(f"own-{n}", f"{base}-{n}"), lambda x: x >= 1.5)  # fmt: skip
    claim("run over the authors' loop in eager torch, whole frame", "at least 1.5", middle("whole", "authors"),
          lambda x: x >= 1.5)  # fmt: skip
    for key, measured in gates(state).items():
        claim(f"{key}, share of its bound", "at least 0.95", measured["of_bound"]["median"], lambda x: x >= 0.95)
    if "overhead" in parts:
        claim("share of run that is not the UNet", "at most 0.03", parts["overhead"]["not_unet"], lambda x: x <= 0.03)
    if "startup" in parts:
        start = parts["startup"]
        claim("import zipsdk, seconds", "under 0.3", start["zipsdk"]["import"]["median"], lambda x: x < 0.3)
        if "torch" in start:
            claim("first image from a cold start, over torch", "at least 3", start["sooner"]["median"],
                  lambda x: x >= 3)  # fmt: skip
    return out


def gates(state: State) -> dict[str, dict[str, Any]]:
    """Compare each guard that was measured with its bound."""
    found = {}
    for how in ("whole", "tiled"):
        for key in (f"guard-{how}", f"guard-{how}-all"):
            if all(state.samples.get(k) for k in (key, "detect", f"{how}-classify")):
                found[key] = compare_with_bound(state.samples, state.counts, how, key)
    return found


#: The speed-ups of the paper's section 4.4.3 and their implications; its seconds are in its figure only.
PAPER = [
    {"what": "tiling over one to a frame", "times": 33, "implies": "64 images share a frame: the ideal is 64"},
    {"what": "detection over purifying everything", "times": 39,
     "implies": "p + t_det / T is 1/39 = 2.6%, so fewer than 2.6% can have been flagged, of 5% poisoned"},
    {"what": "ZIP over BDMAE", "times": 3, "implies": "50 passes of its autoencoder per image"},
]  # fmt: skip


def digits(x: float) -> str:
    """Format a number with three digits, without an exponent."""
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def cells(line: dict[str, Any]) -> list[str]:
    """Format a line of the record as a row of the table."""
    if "left_out" in line:
        return [line["letter"], line["label"], f"left out: {line['left_out']}", "", "", "", "", ""]
    ms, runs, check = line["ms"], line.get("runs", {}), line.get("check", {})
    psnr = "same" if check.get("identical") else f"{check['psnr_db']:.1f}" if "psnr_db" in check else "-"
    count = str(line["total_steps"])
    if line["measured_steps"] < line["total_steps"]:
        count += f" ({line['measured_steps']} timed, scaled)"
    where = "+".join(p.replace("ExecutionProvider", "") for p in runs.get("providers", []))
    times = [f"{digits(r['median'])}x" if (r := line[k]) else "-" for k in ("over_b", "over_g")]
    spread = f"{digits(ms['median'])} [{digits(ms['low'])}, {digits(ms['high'])}]"
    return [line["letter"], line["label"], spread, *times, count, f"{runs.get('engine', '')} {where}", psnr]


HEADER = ["", "row", "ms an image [quartiles]", "over (b)", "over (g)", "steps", "runs on", "PSNR, dB"]


def table(payload: dict[str, Any]) -> str:
    """Format a record for the terminal."""
    lines = [HEADER, *map(cells, payload["rows"])]
    short = [len(line[2]) for line in lines if not line[2].startswith("left out")]
    widths = [max(len(line[i]) for line in lines) if i != 2 else max(short) for i in range(len(HEADER))]
    out = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    out += ["", *(f"note: {line['label']}: {line['note']}" for line in payload["rows"] if line["note"]), ""]
    for key, g in payload["gates"].items():
        out.append(f"{key}: {g['decisions']} decisions, {g['flagged_share']:.1%} flagged; "
                   f"t_det {g['detect_ms']:.3g} ms, T {digits(g['purify_ms'])} ms: "
                   f"bound {g['bound']:.3g}x, measured {g['measured']:.3g}x"
                   + (f"; {g['true_positive_rate']:.1%} of the poisoned and {g['false_positive_rate']:.1%} of the "
                      "clean images flagged" if "true_positive_rate" in g else ""))  # fmt: skip
    if payload["guard"]:
        out.append(f"flags are {payload['guard']['flags']}")
    out.append("")
    for c in payload["claims"]:
        got = "not measured" if c["got"] is None else f"{c['got']:.3g}"
        verdict = {None: "-", True: "met", False: "NOT MET"}[c["met"]]
        out.append(f"{verdict:<8} {c['claim']}: {got} (goal: {c['wanted']})")
    return "\n".join(out)
