"""All kinds of inputs: how they are drawn, what must hold, and their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz import (
    arguments,
    arrays,
    checks_images,
    checks_models,
    commands,
    graphs,
    guards,
    headers,
    options,
    planted,
    producers,
    tensors,
    texts,
)
from tests.fuzz.boxes import draw_avif, draw_webp
from tests.fuzz.edits import Draw
from tests.fuzz.jpeg import draw_jpeg
from tests.fuzz.png import draw_png
from tests.fuzz.recipes import Recipe, pack
from tests.fuzz.seeds import THUMBNAIL, base_files
from tests.fuzz.sources import WAYS
from tests.fuzz.tiff import draw_tiff


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        draw: gives a recipe.
        check: runs a recipe in an empty folder; gives "accepted" or the name of the refusal, raises on a violation.
        count: inputs in a full run.
        seconds: CPU time for one input at most.
        megabytes: memory that one input may add to the process at most.
    """

    draw: Callable[[Draw], Recipe]
    check: Callable[[Recipe, Path], str]
    count: int
    seconds: float = 10.0
    megabytes: int = 64


def image_names() -> tuple[str, ...]:
    """Name the image formats that this build of Pillow reads and writes."""
    return tuple(n for n in ("jpeg", "png", "webp", "tiff", "gif", "bmp", "avif", "ppm") if base_files(n))


def _file(make: Callable[[Draw], bytes], *suffixes: str) -> Callable[[Draw], Recipe]:
    def draw_file(draw: Draw) -> Recipe:
        return {
            "suffix": draw(st.sampled_from((*suffixes * 4, ".png", ".jpg"))),
            "via": draw(st.sampled_from(WAYS)),
            "data": pack(make(draw)),
        }

    return draw_file


def _kinds() -> dict[str, Kind]:
    names = image_names()
    makers: dict[str, tuple[Callable[[Draw], bytes], tuple[str, ...]]] = {
        "jpeg": (draw_jpeg, (".jpg",)),
        "png": (draw_png, (".png",)),
        "webp": (draw_webp, (".webp",)),
        "tiff": (lambda draw: draw_tiff(draw, THUMBNAIL), (".tif",)),
        "gif": (headers.draw_gif, (".gif",)),
        "bmp": (headers.draw_bmp, (".bmp",)),
        "avif": (draw_avif, (".avif",)),
        "ppm": (headers.draw_ppm, (".ppm", ".pgm")),
    }
    kinds = {n: Kind(_file(makers[n][0], *makers[n][1]), checks_images.check_file, 800) for n in names}
    kinds["splice"] = Kind(
        _file(lambda draw: headers.splice(draw, names), ".png", ".tif"), checks_images.check_file, 500
    )
    kinds["bytes"] = Kind(
        _file(lambda draw: headers.any_bytes(draw, names), ".png", ".jpg"), checks_images.check_file, 300
    )
    kinds["array"] = Kind(arrays.draw_arrays, checks_images.check_array, 800)
    # the first one imports torch
    kinds["tensor"] = Kind(tensors.draw_tensors, tensors.check_tensors, 800, seconds=60, megabytes=1024)
    kinds["producer"] = Kind(producers.draw_producers, producers.check_producers, 800)
    kinds["pil"] = Kind(arrays.draw_pil, checks_images.check_pil, 500)
    kinds["guard"] = Kind(guards.draw_guard, guards.check_guard, 500)
    kinds["options"] = Kind(options.draw_options, options.check_options, 500)
    # the first one may import TensorRT
    kinds["argument"] = Kind(arguments.draw_argument, arguments.check_argument, 1000, megabytes=512)
    kinds["onnx"] = Kind(graphs.draw_graph, checks_models.check_graph, 800)
    kinds["spec"] = Kind(texts.draw_spec, checks_models.check_spec, 800)
    kinds["sidecar"] = Kind(texts.draw_sidecar, checks_models.check_sidecars, 300)
    kinds["plan"] = Kind(texts.draw_plan, checks_models.check_sidecars, 300)
    kinds["manifest"] = Kind(texts.draw_manifest, commands.check_manifest, 300)
    kinds["command"] = Kind(commands.draw_command, commands.check_command, 500)
    return kinds


KINDS = _kinds()
#: Not part of a run; see `tests.fuzz.planted`.
PLANTED = {
    "planted raise": Kind(planted.draw_number, planted.check_raise, 0),
    "planted crash": Kind(planted.draw_number, planted.check_crash, 0),
    "planted memory": Kind(planted.draw_number, planted.check_memory, 0),
}


def kind_of(name: str) -> Kind:
    """Return a kind by its name."""
    return (KINDS | PLANTED)[name]
