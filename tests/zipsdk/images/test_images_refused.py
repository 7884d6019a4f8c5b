"""Test files and PIL images that are refused, and reading in threads and forked processes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_checks import (
    SUPPORTED,
    WRITTEN,
    identity,
    noise,
    opened,
    png,
    same_image,
    sample,
)
from tests.helpers.image_files import encoded
from zipsdk import images
from zipsdk.errors import ImageReadError


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_many_frames_are_refused_with_their_number(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    path = tmp_path / f"many{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for item in (path, opened(path)):
        with pytest.raises(ImageReadError, match=f"many\\{suffix}: got 3 frames"):
            images.read(item)
    one = opened(path)
    one.seek(1)
    assert identity(one.copy()).size == (8, 8)


def test_still_gif_and_palette(tmp_path: Path) -> None:
    im = sample("P")
    im.save(tmp_path / "a.gif")
    same_image(identity(tmp_path / "a.gif"), im.convert("RGB"))


def test_jpeg_with_further_images_gives_the_first(tmp_path: Path) -> None:
    first = Image.new("RGB", (16, 16), (255, 0, 0))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), (0, 0, 255))])
    assert opened(tmp_path / "a.jpg").format == "MPO"
    assert images.read_one(tmp_path / "a.jpg").rgb[8, 8, 0] > 250


@pytest.mark.parametrize(("suffix", "kind"), [*WRITTEN, (".gif", "GIF"), (".ppm", "PPM"), (".bmp", "BMP")])
def test_truncated_files_are_refused_by_name(suffix: str, kind: str, tmp_path: Path) -> None:
    if not SUPPORTED.get(suffix, True):
        pytest.skip("not in this Pillow")
    f = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(f, kind)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(f.getvalue()[: len(f.getvalue()) // 2])
    with pytest.raises(ImageReadError, match=f"cut\\{suffix}: got") as e:
        images.read(path)
    assert e.value.__cause__ is not None


@pytest.mark.parametrize(
    ("width", "height"), [(60000, 60000), (12000, 12000), (2**31 - 1, 2**31 - 1), (100_000_001, 1)]
)
def test_bombs_are_refused_before_they_are_decoded(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, 8, 2, b""))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageReadError, match=r"bomb\.png: got .*pixels.*; make it smaller, or cut it into parts"):
        images.read(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_max_pixels_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    identity(tmp_path / "a.png", max_pixels=1200)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for item in (tmp_path / "a.png", opened(tmp_path / "a.png")):
        with pytest.raises(ImageReadError, match="30 x 40 pixels, expected at most 1199"):
            images.read(item, max_pixels=1199)


def test_pillows_size_warning_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        identity(tmp_path / "a.png")
    assert caught == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageReadError, match="MAX_IMAGE_PIXELS"):
        images.read(tmp_path / "a.png")


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "code.png").write_bytes(eps)  # a format that Pillow reads and that is not on the list
    for name, why in (
        ("empty.png", "of another format"),
        ("text.jpg", "of another format"),
        ("code.png", "the format PostScript"),
        ("missing.png", "check the path"),
        ("pipe.png", "special file"),
        (".", "folder"),
        ("text.jpg/x.png", r"cannot be read \(Not a directory\)"),
        ("n" * 300, "File name too long"),
        ("a\0b.png", "a path with a zero byte"),
    ):
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ImageReadError, match=why):
                images.read(path)


def test_messages_about_damaged_files_have_no_class_of_an_exception() -> None:
    whole = encoded(np.zeros((5, 7, 3), np.uint8))
    messages = set()
    for at in range(8, len(whole)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            try:
                images.read_one(data)
            except ImageReadError as e:
                messages.add(str(e))
    assert len(messages) > 20 and not [m for m in messages if re.search(r"\w+Error|Exception", m)]
    assert any("cannot be decoded (broken PNG file" in m and "damaged or incomplete" in m for m in messages)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "a.png")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")  # root may read everything, so chmod would not do

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageReadError, match=r"a\.png: got a file that may not be read.*permissions"):
        images.read(tmp_path / "a.png")


def test_zero_sized_and_broken_images(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="0 x 5"):
        images.read(Image.new("RGB", (0, 5)))
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    im = opened(tmp_path / "a.png")
    im.close()
    with pytest.raises(ImageReadError, match=r"a[.]png"):
        images.read(im)


def test_suffix_does_not_matter_and_suffixes_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    assert (images.read_one(str(tmp_path / "a.jpg")).rgb == (1, 2, 3)).all()
    for suffix in images.SUFFIXES - {".gif", ".apng"} - {s for s, ok in SUPPORTED.items() if not ok}:
        images.save(Image.new("L", (3, 3), 200), tmp_path / f"x{suffix}")
        assert identity(tmp_path / f"x{suffix}").size == (3, 3)


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [identity(tmp_path / "a.png") for _ in range(30)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert warnings.filters == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_that_is_forked_while_a_thread_reads_can_read() -> None:
    """In a process of its own and with an alarm: a child that waits for its parent's thread waits for ever."""
    code = (
        "import os, signal, threading; from PIL import Image; from zipsdk import images\n"
        "reads, forked = threading.Event(), threading.Event()\n"
        "slow, quick = Image.new('RGB', (4, 3)), Image.new('RGB', (4, 3))\n"
        "slow.load = lambda: (reads.set(), forked.wait())\n"
        "thread = threading.Thread(target=images.read_one, args=(slow,))\n"
        "thread.start(), reads.wait()\n"
        "if not (child := os.fork()):\n"
        "    signal.alarm(10)\n"
        "    os._exit(images.read_one(quick).rgb.shape != (3, 4, 3))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "forked.set(), thread.join()\n"
        "images.read_one(quick)"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    message = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert message.stdout == "0\n"
