"""Draw the tables of docs/benchmarks/restoration.md from the records of bench/quality/."""

from __future__ import annotations

from bench.common.markdown import fill, table
from bench.common.record import read

#: What is compared with the original, by the name in the record.
COMPARED = {"A+A x": "A⁺A x", "bicubic": "bicubic of A x", "zip": "purified"}


def measured() -> str:
    """Return all tables of the page."""
    return "\n\n".join((restoration(), crosstalk(), seams()))


def restoration() -> str:
    """Describe the restoration of clean images."""
    psnr, sharpness, commands = [], [], []
    for name in ("restoration", "restoration-fast"):
        record = read(name)
        commands.append(record["command"])
        for r in record["rows"]:
            results, z = r["results"], r["results"]["zip"]
            row = [f"{r['data']} ({r['images']} of {r['size'][0]} px)", f"blur{r['blur']}", str(r["info"]["steps"])]
            gain = f"{z['gain_db']:+.2f} ± {z['gain_standard_error']:.2f}"
            psnr.append([*row, *(f"{results[k]['psnr']:.2f}" for k in COMPARED), gain])
            sharpness.append([*row, *(f"{results[k]['sharpness']:.2f}" for k in COMPARED)])
    header = ["images", "transform", "steps", *COMPARED.values()]
    return fill("restoration", commands="`, `".join(commands), psnr=table([*header, "gain over A⁺A x"], psnr),
                sharpness=table(header, sharpness))  # fmt: skip


def crosstalk() -> str:
    """Describe how much tiles of one frame change each other."""
    record = read("crosstalk")
    rows = [
        [name, f"{r['mean']:.2f}", f"{r['mean_inner']:.2f}", str(r["max"]), f"{r['pixels_changed']:.1%}"]
        for name, r in record["rows"].items()
    ]
    header = ["difference", "mean", "mean without border", "largest", "pixels changed"]
    return fill("crosstalk", command=record["command"], table=table(header, rows))


def seams() -> str:
    """Describe the seams between windows of a large image."""
    record = read("seams")
    excess = {name: f"{r['rows']:+.2f} and {r['columns']:+.2f}" for name, r in record["excess"].items()}
    height, width = record["size"]
    return fill("seams", width=width, height=height, window=record["frame"], windows=excess["windows"],
                cut_apart=excess["cut apart"], command=record["command"])  # fmt: skip
