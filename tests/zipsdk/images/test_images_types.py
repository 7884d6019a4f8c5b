"""Test the types that `read` and `read_one` promise; `make lint` checks `assert_type`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.helpers.image_files import encoded
from zipsdk import images
from zipsdk.images import BatchRestorer, LoadedImage

if TYPE_CHECKING:
    from typing import assert_type
else:

    def assert_type(value: Any, kind: Any) -> Any:
        return value


RGB: npt.NDArray[np.uint8] = np.zeros((2, 5, 7, 3), np.uint8)
ONE: npt.NDArray[np.uint8] = RGB[0]


def test_arrays_have_the_type_of_an_array() -> None:
    loaded, restore = images.read(RGB)
    assert_type(loaded, list[LoadedImage[npt.NDArray[np.uint8]]])
    out = assert_type(restore([p.rgb for p in loaded]), npt.NDArray[np.uint8])
    assert type(out) is np.ndarray
    one = assert_type(images.read_one(ONE), LoadedImage[npt.NDArray[np.uint8]])
    assert type(assert_type(one.restore(one.rgb), npt.NDArray[np.uint8])) is np.ndarray
    several, restore_list = images.read([ONE, ONE])
    outs = assert_type(restore_list([p.rgb for p in several]), list[npt.NDArray[np.uint8]])
    assert [type(x) for x in outs] == [np.ndarray] * 2


def test_files_and_images_have_the_type_of_a_pil_image(tmp_path: Path) -> None:
    data = encoded(RGB[0])
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        for loaded in (
            assert_type(images.read_one(path), LoadedImage[Image.Image]),
            assert_type(images.read_one(str(path)), LoadedImage[Image.Image]),
            assert_type(images.read_one(data), LoadedImage[Image.Image]),
            assert_type(images.read_one(bytearray(data)), LoadedImage[Image.Image]),
            assert_type(images.read_one(memoryview(data)), LoadedImage[Image.Image]),
            assert_type(images.read_one(io.BytesIO(data)), LoadedImage[Image.Image]),
            assert_type(images.read_one(file), LoadedImage[Image.Image]),
            assert_type(images.read_one(Image.fromarray(RGB[0])), LoadedImage[Image.Image]),
        ):
            assert type(assert_type(loaded.restore(loaded.rgb), Image.Image)) is Image.Image
    items, restore = images.read([path, path])
    assert_type(restore, BatchRestorer[list[Image.Image]])
    assert [type(x) for x in restore([p.rgb for p in items])] == [Image.Image] * 2
    mixed, restore_mixed = images.read([path, ONE])
    assert_type(restore_mixed, BatchRestorer[list[object]])
    assert len(restore_mixed([p.rgb for p in mixed])) == 2
    again = assert_type(images.read_one(images.read_one(path)), LoadedImage[Image.Image])
    assert type(again.restore(again.rgb)) is Image.Image
    loaded_again, restore_again = images.read([again, again])
    outs = assert_type(restore_again([p.rgb for p in loaded_again]), list[Image.Image])
    assert [type(x) for x in outs] == [Image.Image] * 2


@pytest.mark.torch
def test_tensors_have_the_type_of_a_tensor() -> None:
    if TYPE_CHECKING:
        import torch
    else:
        torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, 5, 7)
    loaded, restore = images.read(x)
    assert type(assert_type(restore([p.rgb for p in loaded]), torch.Tensor)) is torch.Tensor
    one = images.read_one(x[0])
    assert type(assert_type(one.restore(one.rgb), torch.Tensor)) is torch.Tensor
