"""Check before the loop starts whether an image fits into memory: what it needs against what is available.

A process that exceeds the limit of its control group is killed without a message, so the check comes first. What
cannot be read limits nothing: off Linux, images are not checked.

Sources: proc(5) for meminfo and statm; the Linux kernel's documentation of cgroup v1 and v2 for the memory controller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from zipsdk._util.cgroups import group_folders, read_text
from zipsdk.errors import OutOfMemory
from zipsdk.sampling.state import STRIP_PIXELS
from zipsdk.sampling.tiling import MAX_PIXELS_A_CALL, Layout

#: Runs that need less are not checked: reading the kernel's files takes longer than a small image is worth.
CHECKED_FROM = 64_000_000
#: Bytes of a pixel in float32, three colors.
_PIXEL = 12
#: Arrays of a strip that exist at once: x0~, P of the difference with what its transforms make, noise, input.
_STRIP_ARRAYS = 8
#: Bytes a pixel of one evaluation that ONNX Runtime takes for a bundled model on a CPU, measured at 256 to 512 a side.
#: Of other models it is not known, and not counted.
_ENGINE = {"zip-tiny": 2400, "zip-tiny-int8": 2900}


def loop_bytes(layout: Layout, images: int, unit: int | None) -> int:
    """Estimate the peak memory of the loop, in bytes, without the images as read, the results and the engine.

    Args:
        images: that go through the loop together.
        unit: rows that strips are multiples of; None where the transforms see whole images.
    """
    row = images * layout.width
    state = row * layout.height
    canvas = layout.canvas_height * layout.canvas_width
    if layout.windows > 1:
        windows = min(layout.windows, max(1, MAX_PIXELS_A_CALL // (images * canvas)))
        # the windows of a call, their eps and one of them weighted; rows of eps that wait, and their copy
        engine = (2 * windows + 1) * images * canvas
        held = min(layout.height, layout.canvas_height * (1 + -(-windows // len(layout.xs))))
        eps = engine + 2 * row * held
    else:
        canvases = -(-images // layout.pictures_per_canvas)
        eps = state if layout.pictures_per_canvas == 1 else 3 * canvases * canvas
    strip = state if unit is None else min(state, max(STRIP_PIXELS, row * unit))
    return _PIXEL * (state + eps + _STRIP_ARRAYS * strip)


def engine_bytes(name: str, layout: Layout) -> int:
    """Estimate what the engine takes for one canvas; 0 for models that were not measured."""
    return _ENGINE.get(name, 0) * layout.canvas_height * layout.canvas_width


def check(height: int, width: int, need: int, images: int = 1) -> None:
    """Refuse an image that does not fit.

    Args:
        need: bytes, with the results of all `images` of the batch.

    Raises:
        OutOfMemory: less than `need` is available.
    """
    if need < CHECKED_FROM or (room := available()) is None or need <= room:
        return
    batch = f" in a batch of {images}; pass fewer images at once (--batch)," if images > 1 else ";"
    raise OutOfMemory(
        f"image: got {width} x {height} pixels, which need about {need / 1e9:.2f} GB of memory, expected at most the "
        f"{room / 1e9:.2f} GB that are available{batch} make it smaller, cut it into parts, or free memory"
    )


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still take before it fails or is killed; None where nothing tells.

    The least of what the machine has (with swap), what each control group leaves (files in its cache count as free) and
    what the process's limit of address space leaves.

    Args:
        root: stands for ``/`` where the kernel's files are read.
    """
    rooms = [*_machine(root), *_address_space(root)]
    for folder in group_folders("memory", root):
        rooms += _group(folder)
    return max(0, min(rooms)) if rooms else None


def _machine(root: Path) -> Iterator[int]:
    fields = re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in fields}
    if "MemAvailable" in sizes:
        yield sum(sizes.values())


def _group(folder: Path) -> Iterator[int]:
    stat = dict(re.findall(r"^(\w+) (\d+)$", read_text(folder / "memory.stat"), re.MULTILINE))
    for limit, usage, prefix in (
        ("memory.max", "memory.current", ""),  # v2
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # v1; its largest number means no limit
    ):
        most, used = (_number(folder / name) for name in (limit, usage))
        if most is not None and used is not None and most < 1 << 60:
            yield most - used + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _address_space(root: Path) -> Iterator[int]:
    try:
        import resource  # not on Windows
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = read_text(root / "proc/self/statm").split()
    if limit != resource.RLIM_INFINITY and pages and pages[0].isdecimal():
        yield limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if re.fullmatch(r"\d{1,20}", text) else None


def check_run(groups: Sequence[tuple[Layout, int, int, int]], unit: int | None, model: str, evaluated: int = 0) -> None:
    """Check a run: the loop of one call at a time, and the results of all images.

    Args:
        groups: of images of one size: layout, number, height and width.
        unit: as for `loop_bytes`.
        model: name in the spec.
        evaluated: pixels of the largest canvas that this engine has evaluated: it keeps that memory.

    Raises:
        OutOfMemory: an image does not fit; the message names the one that needs most.
    """
    total = sum(n for _, n, _, _ in groups)
    results = sum(3 * n * height * width for _, n, height, width in groups)
    needs = []
    for layout, n, height, width in groups:
        more = engine_bytes(model, layout) if layout.canvas_height * layout.canvas_width > evaluated else 0
        needs.append((loop_bytes(layout, min(n, layout.pictures_per_call), unit) + more, height, width))
    if needs:
        need, height, width = max(needs)
        # at the end the results are there twice, while they are given the caller's type
        check(height, width, max(need + results, 2 * results), total)
