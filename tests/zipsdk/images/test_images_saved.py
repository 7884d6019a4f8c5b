"""Test `images.save`: formats, refusals and atomic writes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.image_checks import (
    H,
    W,
    listing,
    noise,
    opened,
    same_image,
    sample,
)
from zipsdk import images
from zipsdk.errors import ImageReadError, InputError


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((".tif", m) for m in ("L", "LA", "RGB", "RGBA", "I;16")),
        *((s, "RGB") for s in (".webp", ".bmp", ".ppm", ".PNG", ".tiff")),
        *((".webp", "RGBA"), (".bmp", "L"), (".pgm", "L")),
    ],
)
def test_save_without_loss(suffix: str, mode: str, tmp_path: Path) -> None:
    im = sample(mode)
    images.save(im, str(tmp_path / f"a{suffix}"))
    same_image(opened(tmp_path / f"a{suffix}"), im)
    assert listing(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_save_keeps_colors_below_alpha_0(suffix: str, tmp_path: Path) -> None:
    im = Image.fromarray(noise(H, W, 4))
    im.putalpha(0)
    images.save(im, tmp_path / f"a{suffix}")
    same_image(opened(tmp_path / f"a{suffix}"), im)


def test_jpeg_is_written_with_quality_95_and_full_chroma(tmp_path: Path) -> None:
    images.save(sample("RGB"), tmp_path / "a.jpg")
    im: Any = opened(tmp_path / "a.jpg")
    assert [layer[1:3] for layer in im.layer] == [(1, 1)] * 3
    f = io.BytesIO()
    im.save(f, "JPEG", quality=95)
    assert opened(f).quantization == im.quantization


@pytest.mark.parametrize(
    ("mode", "name", "why"),
    [
        ("RGBA", "a.jpg", "mode RGBA"),
        ("LA", "a.bmp", "mode LA"),
        ("I;16", "a.webp", "mode I;16"),
        ("RGB", "a.gif", r"suffix '\.gif'"),
        ("RGB", "a", "suffix ''"),
        ("RGB", "a.exe", r"suffix '\.exe'"),
    ],
)
def test_save_refuses_a_loss_of_channels_or_depth(mode: str, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        images.save(sample(mode), tmp_path / name)
    with pytest.raises(InputError, match=why):
        images.format_of(tmp_path / name, mode, (W, H))
    with pytest.raises(InputError, match="expected a PIL image"):
        images.save(noise(H, W, 3), tmp_path / name)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(("name", "most"), [("a.webp", 16383), ("a.jpg", 65500), ("a.png", 65536)])
def test_save_refuses_sizes_beyond_the_format(name: str, most: int, tmp_path: Path) -> None:
    images.save(Image.new("RGB", (most, 1)), tmp_path / name)  # the libraries agree
    assert opened(tmp_path / name).size == (most, 1)
    if name != "a.png":
        for size in ((most + 1, 1), (1, most + 1)):
            with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels, expected at most {most} a side"):
                images.save(Image.new("RGB", size), tmp_path / f"b{name}")
        assert listing(tmp_path) == [name]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
def test_save_is_atomic(where: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    images.save(Image.new("RGB", (3, 3), (1, 2, 3)), path)
    old = path.read_bytes()

    def fail(*args: Any, **_: Any) -> None:
        if where == "save":
            args[1].write(b"half a fi")
        # the temporary file is in the same folder, and nothing is there before the image is encoded
        assert len(listing(tmp_path)) == (1 if where == "save" else 2)
        raise failure

    owner: Any = {"save": Image.Image, "fsync": os, "replace": Path}[where]
    monkeypatch.setattr(owner, where, fail)
    expected = ImageReadError if isinstance(failure, Exception) else KeyboardInterrupt
    with pytest.raises(expected) as e:
        images.save(Image.new("RGB", (300, 300)), path)
    if expected is ImageReadError:
        assert "a.png" in str(e.value) and e.value.__cause__ is failure
    assert path.read_bytes() == old and listing(tmp_path) == ["a.png"]


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name in ("no/such/a.png", "file/a.png", "folder.png", "a\0.png"):
        with pytest.raises(ImageReadError, match="cannot be written"):
            images.save(sample("RGB"), tmp_path / name)
    assert listing(tmp_path) == ["file", "folder.png"]


def test_saved_files_have_usual_permissions(tmp_path: Path) -> None:
    images.save(sample("RGB"), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b.png").stat().st_mode
