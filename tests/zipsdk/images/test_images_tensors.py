"""Test that torch tensors are read and restored as tensors, and unusable ones refused with a hint that works."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_checks import H, W, identity, noise
from tests.helpers.paths import ROOT
from zipsdk import images
from zipsdk.errors import InputError

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[export]'")
pytestmark = pytest.mark.torch

SHAPES = [(H, W), (1, H, W), (3, H, W), (4, H, W), (2, 1, H, W), (2, 3, H, W), (1, 4, H, W), (0, 3, H, W)]
DTYPES = [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensor_of(eight: Any, dtype: Any) -> Any:
    """Convert 8-bit values to the range of a dtype."""
    t = torch.from_numpy(eight)
    if dtype == torch.uint8:
        return t
    return torch.from_numpy(eight * np.uint16(257)) if dtype == torch.uint16 else (t.double() / 255).to(dtype)


LAYOUTS: dict[str, Any] = {
    "contiguous": lambda t: t,
    "strided": lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
    "transposed": lambda t: t.transpose(-1, -2).clone().transpose(-1, -2),
    "offset": lambda t: torch.cat((t, t))[t.shape[0] :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_are_restored_exactly(shape: tuple[int, ...], dtype: Any, layout: str) -> None:
    eight = noise(*shape)
    x = LAYOUTS[layout](tensor_of(eight, dtype))
    before = x.clone()
    out = identity(x)
    assert type(out) is torch.Tensor and out.dtype == dtype and out.is_contiguous()
    assert torch.equal(out, x) and torch.equal(x, before)
    assert not out.numel() or out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    loaded, restore = images.read(x)
    purified = restore([255 - p.rgb for p in loaded])
    expected = tensor_of(255 - eight, dtype)
    if shape[-3:-2] == (4,):  # alpha is returned as it is
        expected[..., 3, :, :] = x[..., 3, :, :]
    assert purified.dtype == dtype and torch.equal(purified, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_8bit_value_survives(dtype: Any) -> None:
    k = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = tensor_of(k, dtype)
    loaded = images.read_one(x)
    np.testing.assert_array_equal(loaded.rgb[:, :, 0], k)
    assert torch.equal(loaded.restore(loaded.rgb), x)


@pytest.mark.parametrize("channels", [3, 4])
def test_channels_last_stays(channels: int) -> None:
    x = tensor_of(noise(2, channels, H, W), torch.bfloat16).to(memory_format=torch.channels_last)
    out = identity(x)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous() and torch.equal(out, x)
    for one in identity([x[0], x[1]]):
        assert one.is_contiguous()


def test_the_data_format_of_tensors_is_channels_first_unless_said() -> None:
    eight = noise(2, H, W, 3)
    nhwc = torch.from_numpy(eight)
    nchw = nhwc.permute(0, 3, 1, 2)
    cases: list[tuple[Any, Any]] = [(nchw, None), (nchw, "NCHW"), (nhwc, "NHWC")]
    for x, data_format in cases:
        loaded, restore = images.read(x, data_format=data_format)
        np.testing.assert_array_equal(np.stack([p.rgb for p in loaded]), eight)
        assert torch.equal(restore([p.rgb for p in loaded]), x)
    with pytest.raises(InputError, match=r'\(2, 5, 7, 3\), expected .*"NCHW".*: pass data_format="NHWC"'):
        images.read(nhwc)
    # a list may mix both
    loaded, restore = images.read([nchw[0], eight[1], Image.fromarray(eight[0])])
    np.testing.assert_array_equal(np.stack([p.rgb for p in loaded]), eight[[0, 1, 0]])
    out = restore([p.rgb for p in loaded])
    assert [type(x) for x in out] == [torch.Tensor, np.ndarray, Image.Image]
    assert torch.equal(out[0], nchw[0]) and (out[1] == eight[1]).all()


def test_loaded_images_do_not_share_memory_with_the_tensor() -> None:
    for dtype in (torch.uint8, torch.bfloat16):
        x = tensor_of(noise(2, 4, H, W), dtype)
        before = x.clone()
        loaded, restore = images.read(x)
        x.zero_()
        assert torch.equal(restore([p.rgb for p in loaded]), before)


def test_other_kinds_of_tensors() -> None:
    rgb = torch.from_numpy(noise(3, H, W))
    with torch.inference_mode():
        inference = rgb.float() / 255
    unit = inference.clone()
    parameter = torch.nn.Parameter(unit, requires_grad=False)
    negated = torch.complex(unit, -unit).conj().imag  # its sign is in a flag
    assert negated.is_neg()
    for x in (inference, parameter, negated, torch._neg_view(-unit.bfloat16())):
        out = identity(x)
        assert type(out) is torch.Tensor and torch.equal(out, x)
    # many pixels in little memory, which are refused before anything is copied
    huge = torch.zeros(1, dtype=torch.bfloat16).expand(3, 1 << 20, 1 << 20)
    with pytest.raises(InputError, match=r"1048576 x 1048576 pixels.*read_one\(image, max_pixels"):
        images.read(huge)


class OnGpu(torch.Tensor):  # type: ignore[name-defined]
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda:1")


ONES = torch.ones(3, H, W)
REFUSED: list[tuple[str, Any, str, Any]] = [
    ("gradient", lambda: torch.rand(3, H, W, requires_grad=True), r"requires grad.* pass tensor\.detach\(\)",
     lambda t: t.detach()),
    ("cuda", lambda: ONES.as_subclass(OnGpu), r"on the device cuda:1, expected .*; pass tensor\.cpu\(\)", None),
    ("meta", lambda: torch.ones(3, H, W, device="meta"), "device meta, which has no values, .*; make it on the CPU",
     None),
    ("sparse", lambda: ONES.to_sparse(), r"layout torch\.sparse_coo.* pass tensor\.to_dense\(\)",
     lambda t: t.to_dense()),
    ("bool", lambda: torch.ones(3, H, W, dtype=torch.bool), r"torch\.bool, .* pass tensor\.to\(torch\.uint8\) \* 255",
     lambda t: t.to(torch.uint8) * 255),
    ("int64", lambda: torch.full((3, H, W), 200), r"torch\.int64, .* pass tensor\.to\(torch\.uint8\) where it is 0",
     lambda t: t.to(torch.uint8)),
    ("complex", lambda: ONES.to(torch.complex64), r"torch\.complex64, .*tensor\.abs\(\)", lambda t: t.abs()),
    ("float8", lambda: ONES.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn, .*pass tensor\.float\(\) where",
     lambda t: t.float()),
    ("range", lambda: torch.full((3, H, W), 200.0), "got 200.0 at .*or convert it to uint8 where it is 0..255",
     lambda t: t.to(torch.uint8)),
    ("gray", lambda: torch.ones(8, H, W), r"channel axis: x\[:, None\]", lambda t: t[:, None]),
    ("lazy", lambda: torch.nn.UninitializedParameter(requires_grad=False), "gives no NumPy array", None),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message", "follow"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_other_tensors_are_refused_with_a_hint_that_works(make: Any, message: str, follow: Any) -> None:
    x = make()
    with pytest.raises(InputError, match=message):
        images.read(x)
    with pytest.raises(InputError, match=f"item 1 of the list: .*{message}"):
        images.read([ONES, x])
    if follow:
        images.read(follow(x))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch announces that both kinds will change
def test_quantized_and_nested_tensors_are_refused() -> None:
    quantized = torch.quantize_per_tensor(ONES, 1 / 255, 0, torch.quint8)
    with pytest.raises(InputError, match=r"quantized \(torch\.quint8\).* pass tensor\.dequantize\(\)"):
        images.read(quantized)
    images.read(quantized.dequantize().clamp(0, 1))
    nested = torch.nested.nested_tensor([ONES, ONES[:, 1:]])
    with pytest.raises(InputError, match=r"nested, .*; pass list\(tensor\.unbind\(\)\)"):
        images.read(nested)
    assert [p.rgb.shape for p in images.read(list(nested.unbind()))[0]] == [(H, W, 3), (H - 1, W, 3)]


def test_data_loaders_are_told_to_use_stream() -> None:
    data = torch.utils.data
    loader = data.DataLoader(data.TensorDataset(torch.zeros(4, 3, H, W), torch.zeros(4)), batch_size=2)
    with pytest.raises(InputError, match=r"stream\(images for images, _ in loader\)"):
        images.read(loader)
    batches = [images.read(batch)[0] for batch, _ in loader]
    assert [len(b) for b in batches] == [2, 2]
    with pytest.raises(InputError, match=r"of a DataLoader's \(images, labels\) pass the images only"):
        images.read(next(iter(loader)))


@pytest.mark.parametrize("wrap", [list, torch.stack, lambda x: x[0]])
def test_loaded_tensors_pickle(wrap: Any) -> None:
    loaded, restore = images.read(wrap([*tensor_of(noise(2, 4, H, W), torch.bfloat16)]))
    clean = [p.rgb for p in loaded]
    expected, out = restore(clean), pickle.loads(pickle.dumps(restore))(clean)
    for a, b in zip(out, expected, strict=True):
        assert type(a) is torch.Tensor and a.dtype == torch.bfloat16 and torch.equal(a, b)


@pytest.mark.slow  # it imports torch again
def test_loaded_tensors_pickle_into_a_process_without_torch() -> None:
    x = tensor_of(noise(2, 4, H, W), torch.bfloat16).to(memory_format=torch.channels_last)
    read = [images.read(batch) for batch in (x, [*x], x[0])]
    code = (
        "import pickle, sys; read = pickle.load(sys.stdin.buffer)\n"
        "out = [(restore([p.rgb for p in loaded]), loaded[0].restore(loaded[0].rgb)) for loaded, restore in read]\n"
        "sys.stdout.buffer.write(pickle.dumps(out))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(read), capture_output=True, env=environment, check=True
    )
    (batch, one), (items, _), (single, _) = pickle.loads(done.stdout)
    assert torch.equal(batch, x) and batch.is_contiguous(memory_format=torch.channels_last)
    assert all(out.dtype == x.dtype and torch.equal(out, x[0]) for out in (one, items[0], single))


def test_torch_is_not_imported() -> None:
    code = "import numpy, sys, zipsdk.images as i; i.read(numpy.zeros((2, 5, 7, 3))); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
