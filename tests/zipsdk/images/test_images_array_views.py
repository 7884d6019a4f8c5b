"""Test that DLPack producers and objects with NumPy's array protocols are read and restored."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_checks import H, W, identity, noise, same
from zipsdk import images
from zipsdk.errors import InputError, OutOfMemoryError


class Plain:
    """A DLPack producer without an array namespace."""

    def __init__(self, data: Any):
        self.data = data

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Pixels(Plain):
    """An array of a library that has DLPack and an array namespace."""

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules["pixels_of_a_test"]


@pytest.fixture(autouse=True)
def namespace(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the array namespace of `Pixels`."""
    module = ModuleType("pixels_of_a_test")
    module.from_dlpack = lambda x: Pixels(np.from_dlpack(x))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class Converted:
    """An object that NumPy converts."""

    def __init__(self, data: Any):
        self.data = data
        self.calls = 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.calls += 1
        return self.data


class Described:
    """An object with the older protocol for arrays."""

    def __init__(self, data: Any):
        self.data = data
        self.__array_interface__ = data.__array_interface__


SHAPES = [(H, W), (H, W, 3), (H, W, 4), (2, H, W, 1), (2, H, W, 3), (0, H, W, 3)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [Pixels, Plain, Converted, Described])
def test_arrays_of_other_libraries_are_restored_exactly(kind: Any, shape: tuple[int, ...], dtype: Any) -> None:
    eight = noise(*shape)
    x = eight if dtype == np.uint8 else eight * dtype(257) if dtype == np.uint16 else (eight / 255).astype(dtype)
    before = x.copy()
    out = identity(kind(x))
    if kind is Pixels:
        assert type(out) is Pixels
        out = out.data
    assert type(out) is np.ndarray
    same(out, before)
    same(x, before)
    assert out.flags.writeable and not np.shares_memory(out, x)


def test_lists_may_mix_libraries() -> None:
    x = noise(H, W, 3)
    out = identity([Pixels(x), Plain(x), Converted(x), Described(x), x, Image.fromarray(x)])
    assert [type(o) for o in out] == [Pixels, *[np.ndarray] * 4, Image.Image]
    for o in out:
        np.testing.assert_array_equal(o.data if isinstance(o, Pixels) else np.asarray(o), x)


def test_the_data_format_of_other_libraries_is_channels_last_unless_said() -> None:
    x = noise(2, 3, H, W)
    same(identity(Pixels(x), data_format="NCHW").data, x)
    with pytest.raises(InputError, match=r'\(2, 3, 5, 7\).* pass data_format="NCHW"'):
        images.read(Pixels(x))


def test_strided_and_read_only_arrays_are_read() -> None:
    x = noise(2, H, 2 * W, 3)[:, :, ::2]
    same(identity(Pixels(x)).data, x)
    x = noise(H, W, 3)
    x.flags.writeable = False
    same(identity(Converted(x)), x)
    same(identity(Pixels(x)).data, x)  # DLPack says that it is read-only, since version 1


def test_an_object_is_converted_once() -> None:
    x = Converted(noise(2, H, W, 3))
    images.read(x)
    assert x.calls == 1


@pytest.mark.parametrize(
    ("device", "name"), [(2, "a CUDA device"), (8, "a Metal device"), (99, "a device of DLPack's type 99")]
)
def test_arrays_on_other_devices_are_refused(device: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pixels, "__dlpack_device__", lambda self: (device, 0))
    for batch in (Pixels(noise(H, W, 3)), [Pixels(noise(H, W, 3))]):
        with pytest.raises(InputError, match=rf"Pixels on {name}, expected .*the CPU; .*x\.get\(\) of CuPy"):
            images.read(batch)


class OnlyCuda:
    """An array on a GPU without DLPack."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


def raising(error: BaseException) -> Any:
    def convert(self: Any, *_: Any, **__: Any) -> Any:
        raise error

    return convert


@pytest.mark.parametrize(
    ("kind", "method", "error", "message"),
    [
        (
            Converted,
            "__array__",
            TypeError("no"),
            r"Converted that gives no NumPy array \(TypeError: no\).*to NumPy first",
        ),
        (Plain, "__dlpack__", BufferError("in use"), "Plain that gives no .*BufferError: in use"),
        (Pixels, "__dlpack_device__", ValueError("lost"), "Pixels that gives no .*ValueError: lost"),
    ],
)
def test_failures_of_other_libraries_are_reported(
    kind: Any, method: str, error: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, method, raising(error))
    with pytest.raises(InputError, match=message):
        images.read(kind(noise(H, W, 3)))
    with pytest.raises(InputError, match=f"item 1 of the list: .*{message}"):
        images.read([noise(H, W, 3), kind(noise(H, W, 3))])
    monkeypatch.setattr(kind, method, raising(MemoryError()))
    with pytest.raises(OutOfMemoryError, match="does not fit into memory"):
        images.read(kind(noise(H, W, 3)))


def test_other_objects_and_dtypes_are_refused() -> None:
    with pytest.raises(InputError, match=r"OnlyCuda, expected .*; copy it to the CPU first"):
        images.read(OnlyCuda())  # type: ignore[call-overload]
    for dtype in (np.int64, bool, complex):
        with pytest.raises(InputError, match=f"dtype {np.dtype(dtype)}, expected uint8"):
            images.read(Pixels(np.zeros((H, W, 3), dtype)))
    with pytest.raises(InputError, match=r"got a builtins\.type, expected an array"):
        images.read(Pixels)  # type: ignore[call-overload]


def test_dlpack_without_a_dtype_falls_back_to_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's DLPack lacks bfloat16, and the message is about the dtype."""
    x = noise(H, W, 3)
    monkeypatch.setattr(Pixels, "__dlpack__", raising(BufferError("Unsupported dtype")))
    monkeypatch.setattr(Pixels, "__array__", lambda self, dtype=None, copy=None: x, raising=False)
    assert type(identity(Pixels(x))) is Pixels


def test_a_namespace_without_from_dlpack_gives_numpy(namespace: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(H, W, 3)
    del namespace.from_dlpack
    same(identity(Pixels(x)), x)
    monkeypatch.setattr(Pixels, "__array_namespace__", lambda self: np)
    same(identity(Pixels(x)), x)
    monkeypatch.setattr(Pixels, "__array_namespace__", raising(RuntimeError("none")))
    same(identity(Pixels(x)), x)


@pytest.mark.parametrize("wrap", [lambda x: [Pixels(x[0]), Converted(x[1])], Pixels, lambda x: Pixels(x[0])])
def test_loaded_images_of_other_libraries_pickle(wrap: Any) -> None:
    loaded, restore = images.read(wrap(noise(2, H, W, 4)))
    clean = [p.rgb for p in loaded]
    expected = restore(clean)
    for twin in (pickle.loads(pickle.dumps((loaded, restore))), copy.deepcopy((loaded, restore))):
        out = twin[1](clean)
        pairs = zip(out, expected, strict=True) if isinstance(expected, list) else [(out, expected)]
        for a, b in pairs:
            assert type(a) is type(b)
            same(*(x.data if isinstance(x, Pixels) else x for x in (a, b)))


# ---- libraries


@pytest.mark.parametrize("library", ["array_api_strict", "jax.numpy"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_library_gets_its_own_arrays(library: str, dtype: str) -> None:
    xp = pytest.importorskip(library)
    eight = noise(2, H, W, 3)
    x = xp.asarray(eight if dtype == "uint8" else eight.astype(np.float32) / np.float32(255))
    before = np.array(x)
    out = identity(x)
    assert type(out) is type(x) and out.dtype == x.dtype and bool(xp.all(out == x))
    assert type(identity([x[0, ...]])[0]) is type(x)
    same(np.array(x), before)


def test_jax_arrays_without_values_or_range_are_refused() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(InputError, match=r"dtype bfloat16, .* pass x\.astype\(np\.float32\)"):
        images.read(jax.numpy.ones((H, W, 3), "bfloat16"))
    with pytest.raises(InputError, match="gives no NumPy array"):
        jax.jit(images.read)(jax.numpy.ones((H, W, 3)))


# ---- loaded images


def test_a_loaded_image_is_read_as_it_is() -> None:
    x = noise(H, W, 3)
    big = images.read_one(x, max_pixels=H * W)
    with pytest.raises(
        InputError, match=r"expected at most 34 pixels; .*pass zipsdk\.images\.read_one\(image, max_pix"
    ):
        images.read_one(x, max_pixels=34)
    assert images.read_one(big, max_pixels=34) is big
    for batch in (big, [big, Image.fromarray(x[:2])]):
        loaded, restore = images.read(batch, max_pixels=34)
        assert loaded[0] is big
        out = restore([p.rgb for p in loaded])
        same(out[0] if isinstance(out, list) else out, x)
