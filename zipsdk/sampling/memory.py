"""Check before the loop starts whether an image fits into memory: what it needs against what is available.

A process that exceeds the limit of its control group is killed without a message, so the check comes first. A limit
that cannot be read is ignored: off Linux, images are not checked.

Sources: proc(5) for meminfo and statm; the Linux kernel's documentation of cgroup v1 and v2 for the memory controller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from zipsdk._util.cgroups import group_folders, read_text
from zipsdk.errors import OutOfMemoryError
from zipsdk.sampling.state import STRIP_PIXELS
from zipsdk.sampling.tiling import MAX_PIXELS_A_CALL, TileLayout

#: Runs that need fewer bytes are not checked: reading the kernel's files would take longer than they do.
CHECKED_FROM = 64_000_000
#: Bytes of a pixel in float32, three channels.
_PIXEL = 12
#: Arrays of a strip that exist at once: x0~, P of the difference with what its transforms make, noise, input.
_STRIP_ARRAYS = 8
#: Bytes per pixel that ONNX Runtime takes for one UNet call of a bundled model on a CPU, measured at sides of 256 to
#: 512. Other models were not measured and count as 0.
_ENGINE = {"zip-tiny": 2400, "zip-tiny-int8": 2900}


def loop_bytes(layout: TileLayout, images: int, unit: int | None) -> int:
    """Estimate the peak memory of the loop, in bytes, without the images as read, the results and the engine.

    Args:
        layout: of the images.
        images: number of images that go through the loop together.
        unit: rows that strips are multiples of; None if the transforms need whole images.
    """
    row = images * layout.width
    state = row * layout.height
    if layout.windows > 1:
        windows = min(layout.windows, max(1, MAX_PIXELS_A_CALL // (images * layout.frame_pixels)))
        # the windows of a call, their eps and one of them weighted; incomplete rows of eps, and their copy
        engine = (2 * windows + 1) * images * layout.frame_pixels
        held = min(layout.height, layout.frame_height * (1 + -(-windows // len(layout.xs))))
        eps = engine + 2 * row * held
    else:
        eps = state if layout.images_per_frame == 1 else 3 * layout.frames(images) * layout.frame_pixels
    strip = state if unit is None else min(state, max(STRIP_PIXELS, row * unit))
    return _PIXEL * (state + eps + _STRIP_ARRAYS * strip)


def engine_bytes(name: str, layout: TileLayout) -> int:
    """Estimate the engine's memory for one frame, in bytes; 0 for models that were not measured."""
    return _ENGINE.get(name, 0) * layout.frame_pixels


def check(height: int, width: int, need: int, images: int = 1) -> None:
    """Refuse an image that does not fit.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        need: bytes, with the results of all images of the batch.
        images: number of images in the batch, for the message.

    Raises:
        OutOfMemoryError: less than `need` is available.
    """
    if need < CHECKED_FROM or (free := available()) is None or need <= free:
        return
    batch = f" in a batch of {images}; pass fewer images at once (--batch)," if images > 1 else ";"
    raise OutOfMemoryError(
        f"image: got {width} x {height} pixels, which need about {need / 1e9:.2f} GB of memory, expected at most the "
        f"{free / 1e9:.2f} GB that are available{batch} make it smaller, cut it into parts, or free memory"
    )


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still take before it fails or is killed; None if no limit is known.

    The smallest of: the machine's available memory and swap; the rest of each control group's limit, where files in its
    cache count as free; the rest of the process's limit of address space.

    Args:
        root: folder to read the kernel's files in, instead of ``/``.
    """
    limits = [*_machine(root), *_address_space(root)]
    for folder in group_folders("memory", root):
        limits += _group(folder)
    return max(0, min(limits)) if limits else None


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


def check_run(
    groups: Sequence[tuple[TileLayout, int, int, int]], unit: int | None, model: str, largest_frame: int = 0
) -> None:
    """Check a run: the loop of one call at a time, and the results of all images.

    Args:
        groups: layout, number, height and width of the images of each size.
        unit: as for `loop_bytes`.
        model: name in the spec.
        largest_frame: pixels of the largest frame that this engine has run on, whose memory it keeps.

    Raises:
        OutOfMemoryError: an image does not fit; the message names the one that needs most.
    """
    total = sum(n for _, n, _, _ in groups)
    results = sum(3 * n * height * width for _, n, height, width in groups)
    needs = []
    for layout, n, height, width in groups:
        more = engine_bytes(model, layout) if layout.frame_pixels > largest_frame else 0
        needs.append((loop_bytes(layout, min(n, layout.images_per_call), unit) + more, height, width))
    if needs:
        need, height, width = max(needs)
        # at the end there are two copies of the results, while they are converted to the caller's type
        check(height, width, max(need + results, 2 * results), total)
