"""Draw and check torch tensors of any dtype, shape, memory layout and kind, as recipes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.arrays import SPECIAL
from tests.fuzz.checks_images import MAX_PIXELS, check_rgb
from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe, demand
from zipsdk import images
from zipsdk.errors import InputError

READ = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")
DTYPES = (*READ * 4, "bool", "int8", "int16", "int32", "int64", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
          "complex32", "complex64", "complex128", "quint8", "qint8")  # fmt: skip
VIEWS = ("transpose", "reverse", "step", "expand", "narrow", "channels_last", "negative", "conjugate")
STATES = (*[""] * 24, "grad", "parameter", "inference", "sparse", "csr", "meta", "nested", "subclass", "lazy", "mkldnn")


def draw_tensors(draw: Draw) -> Recipe:
    """Draw the recipe of a batch: one tensor, or a list of some."""
    wrap = draw(st.sampled_from(("none", "none", "none", "list", "tuple")))
    count = 1 if wrap == "none" else draw(st.integers(0, 3))
    data_format = draw(st.sampled_from((None, None, "NCHW", "NHWC")))
    return {"wrap": wrap, "data_format": data_format, "tensors": [_draw_tensor(draw) for _ in range(count)]}


def _draw_tensor(draw: Draw) -> Recipe:
    rank = draw(st.sampled_from((3, 3, 3, 4, 4, 4, 2, 0, 1, 5)))
    shape = draw(st.lists(st.sampled_from((1, 2, 3, 4, 5, 9, 8, 0)), min_size=rank, max_size=rank))
    if rank >= 3 and draw(st.integers(0, 3)):
        shape[draw(st.sampled_from((-3, -3, -1)))] = draw(st.sampled_from((3, 3, 1, 4)))
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "shape": shape,
        "seed": draw(st.integers(0, 255)),
        "special": draw(st.sampled_from((*SPECIAL, *[""] * 20))),
        "views": draw(st.lists(st.sampled_from(VIEWS), max_size=2)),
        "state": draw(st.sampled_from(STATES)),
        "huge": draw(st.sampled_from((0,) * 20 + (10**5, 2**31, 2**40))),
    }


def tensor_of(recipe: Recipe) -> Any:
    """Make a tensor from its recipe; what torch refuses to make stays as it is without it."""
    import torch

    rng = np.random.default_rng(recipe["seed"])
    shape, name = tuple(recipe["shape"]), recipe["dtype"]
    if name in ("quint8", "qint8"):
        t = torch.quantize_per_tensor(torch.from_numpy(rng.random(shape)).float(), 1 / 255, 0, getattr(torch, name))
    else:
        dtype: Any = getattr(torch, name)
        size = torch.empty((), dtype=dtype).element_size()
        count = int(np.prod(shape))
        if dtype.is_floating_point and recipe["seed"] % 4:
            t = torch.from_numpy(np.asarray(rng.random(shape))).to(dtype)
        else:  # any bytes, NaN among them
            raw = rng.integers(0, 2 if name == "bool" else 256, count * size, np.uint8)
            t = torch.from_numpy(raw).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
        if dtype.is_floating_point and count and recipe["special"]:
            t.view(-1)[int(rng.integers(count))] = float(recipe["special"])
    for view in recipe["views"]:
        with suppress(RuntimeError, IndexError, NotImplementedError):
            t = _view(torch, t, view)
    if recipe["huge"] and t.ndim >= 2 and not t.is_quantized:  # far larger than memory, and one element in truth
        big = list(t.shape)
        big[0 if len(big) < 4 else 1] = recipe["huge"]
        with suppress(RuntimeError):
            t = t.reshape(-1)[:1].as_strided(big, [0] * len(big))
    with suppress(RuntimeError, IndexError, NotImplementedError, TypeError):
        t = _state(torch, t, recipe["state"])
    return t


def _view(torch: Any, t: Any, view: str) -> Any:
    views: dict[str, Callable[[], Any]] = {
        "transpose": lambda: t.transpose(0, -1),
        "reverse": lambda: t.flip(0),
        "step": lambda: t[::2],
        "expand": lambda: t[:1].expand(t.shape),
        "narrow": lambda: torch.cat((t, t))[1 : len(t) + 1],
        "channels_last": lambda: t.to(memory_format=torch.channels_last),
        "negative": lambda: torch.complex(t, -t).conj().imag,
        "conjugate": lambda: t.conj(),
    }
    return views[view]()


def _state(torch: Any, t: Any, state: str) -> Any:
    class Named(torch.Tensor):  # type: ignore[misc]
        pass

    states: dict[str, Callable[[], Any]] = {
        "": lambda: t,
        "grad": lambda: t.requires_grad_(),
        "parameter": lambda: torch.nn.Parameter(t, requires_grad=False),
        "inference": lambda: _inferred(torch, t),
        "sparse": lambda: t.to_sparse(),
        "csr": lambda: t.to_sparse_csr(),
        "meta": lambda: t.to("meta"),
        "nested": lambda: torch.nested.nested_tensor([t, t]),
        "subclass": lambda: t.as_subclass(Named),
        "lazy": lambda: torch.nn.UninitializedParameter(requires_grad=False),
        "mkldnn": lambda: t.to_mkldnn(),
    }
    return states[state]()


def _inferred(torch: Any, t: Any) -> Any:
    with torch.inference_mode():
        return t.clone()


def check_tensors(recipe: Recipe, folder: Path) -> str:
    """Read and restore a batch of tensors: same type, dtype, shape, memory format; close values; nothing shared."""
    import torch

    del folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces changes of sparse, nested and quantized tensors
        items = [tensor_of(r) for r in recipe["tensors"]]
        before = [_bytes(torch, t) for t in items]
    batch: Any = items[0] if recipe["wrap"] == "none" else list(items) if recipe["wrap"] == "list" else tuple(items)
    try:
        loaded, restore = images.read(batch, data_format=recipe["data_format"], max_pixels=MAX_PIXELS)
    except InputError as e:
        demand("expected" in str(e), f"a refusal without what is expected: {e}")
        return type(e).__name__
    for p in loaded:
        check_rgb(p.rgb, MAX_PIXELS)
    same, inverted = restore([p.rgb for p in loaded]), restore([255 - p.rgb for p in loaded])
    for old, bits, new, other in zip(items, before, *map(_listed, (same, inverted)), strict=True):
        demand(bits == _bytes(torch, old), "the input was changed")
        for out in (new, other):
            demand(type(out) is torch.Tensor, f"got {type(out).__name__} for {type(old).__name__}")
            demand(out.dtype == old.dtype and out.shape == old.shape, f"got {out.dtype} {out.shape} for {old.shape}")
            last = old.ndim == 4 and not old.is_contiguous()
            last = last and old.is_contiguous(memory_format=torch.channels_last)
            demand(
                out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format),
                "another memory format",
            )
            demand(out.numel() == 0 or not _shared(out, old), "the result shares memory with the input")
        top = 1.0 if old.dtype.is_floating_point else 255.0 if old.dtype == torch.uint8 else 65535.0
        step = 0 if old.dtype == torch.uint8 else top / 255 / 2 + top * 2.0**-9
        demand(
            old.numel() == 0 or (new.double() - old.double()).abs().max() <= step + 1e-12,
            f"{old.dtype} changes by more than its rounding without purification",
        )
    return "accepted"


def _listed(x: Any) -> list[Any]:
    return x if isinstance(x, list) else [x]


def _bytes(torch: Any, t: Any) -> bytes:
    """Return the bytes of a small dense tensor; b"" of others."""
    if t.__class__.__name__ == "UninitializedParameter" or t.is_nested or t.is_quantized or t.device.type != "cpu":
        return b""
    if str(t.layout) != "torch.strided" or t.numel() > MAX_PIXELS:
        return b""
    plain = t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).numpy().tobytes()) if plain.numel() else b""


def _shared(a: Any, b: Any) -> bool:
    return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
