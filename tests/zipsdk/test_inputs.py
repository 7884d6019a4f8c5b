"""Test what goes into `Purifier.run`, `stream` and `Guard.run`, and that it comes out as the same type."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.fakes.engine import FakeEngine
from tests.fakes.guard import Guard, backdoored, dark, poisoned
from tests.helpers.image_files import encoded
from tests.helpers.images import noise_images
from zipsdk import InputError, Purifier, images


def purifier(**options):
    return Purifier(FakeEngine(), "blur2", seed=1, steps=2, **options)


@pytest.mark.torch
def test_tensors_give_tensors_with_the_same_pixels():
    torch = pytest.importorskip("torch")
    batch = noise_images(3, 16, 20)
    nchw = torch.from_numpy(batch).permute(0, 3, 1, 2)
    expected = torch.from_numpy(purifier().run(batch)).permute(0, 3, 1, 2)
    for x in (nchw, nchw.contiguous()):
        before = x.clone()
        out = purifier().run(x)
        assert type(out) is torch.Tensor and torch.equal(out, expected) and torch.equal(x, before)
        assert out.is_contiguous(memory_format=torch.channels_last) != x.is_contiguous()
    assert torch.equal(purifier().run(nchw.permute(0, 2, 3, 1), data_format="NHWC").permute(0, 3, 1, 2), expected)
    unit = (nchw / 255).to(torch.bfloat16)
    out = purifier().run(unit)
    assert out.dtype == torch.bfloat16 and torch.equal(out, (expected.double() / 255).to(torch.bfloat16))
    mixed = purifier().run([nchw[0], batch[1], Image.fromarray(batch[2])])
    assert [type(x) for x in mixed] == [torch.Tensor, np.ndarray, Image.Image] and torch.equal(mixed[0], expected[0])
    streamed = list(purifier().stream(torch.utils.data.DataLoader(nchw, batch_size=2)))
    assert [x.shape[0] for x in streamed] == [2, 1] and torch.equal(torch.cat(streamed), expected)


@pytest.mark.torch
def test_a_guard_returns_the_tensors_of_purified_images():
    torch = pytest.importorskip("torch")
    x = np.concatenate([dark(1), poisoned(dark(1))])
    clean = SimpleNamespace(run=lambda batch: [np.full_like(image, 60) for image in batch])
    guard = Guard(backdoored, clean)
    unit = torch.from_numpy(x).permute(0, 3, 1, 2) / 255
    for batch in (unit, list(unit)):
        trusted, flagged = guard.run(batch)
        assert not trusted.flagged and flagged.flagged
        assert type(flagged.image) is torch.Tensor and flagged.image.shape == (3, 8, 8)
        assert torch.equal(flagged.image, torch.full((3, 8, 8), 60) / 255)
    with pytest.raises(InputError, match=r"requires grad.*pass tensor\.detach\(\)"):
        guard.run(unit.requires_grad_())


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
def test_the_content_of_a_file_gives_a_pil_image(wrap):
    rgb = noise_images(1, 16, 20)[0]
    expected = purifier().run(rgb)
    for _ in range(2):
        item = wrap(encoded(rgb))
        one, (first, second) = purifier().run(item), purifier().run([item, rgb])
        assert type(one) is Image.Image and type(first) is Image.Image
        for out in (one, first, second):
            np.testing.assert_array_equal(np.asarray(out), expected)
        streamed = list(purifier().stream([item]))
        np.testing.assert_array_equal(np.asarray(streamed[0]), expected)


def test_files_that_cannot_be_read_have_no_label_behind_a_guard(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(dark(1)[0]))
    closed = io.BytesIO(encoded(dark(1)[0]))
    closed.close()
    guard = Guard(backdoored, SimpleNamespace(run=list))
    with (tmp_path / "a.png").open("rb") as good, (tmp_path / "a.png").open(encoding="utf-8") as text:
        decisions = guard.run([good, text, closed, io.StringIO("text")])
    assert [d.label is None for d in decisions] == [False, True, True, True]
    reasons = ['open it with mode "rb"', "got a file that is closed", 'open it with mode "rb"']
    assert all(reason in d.error for d, reason in zip(decisions[1:], reasons, strict=True))


def test_iterators_are_told_to_use_stream():
    batches = [noise_images(1, 16, 20), noise_images(2, 8, 8)]
    guard = Guard(backdoored, SimpleNamespace(run=list))
    for run, stream in ((purifier().run, purifier().stream), (guard.run, guard.stream)):
        for make in (iter, lambda x: (b for b in x), lambda x: map(np.asarray, x)):
            with pytest.raises(InputError, match="pass it to stream, which takes batches one by one"):
                run(make(batches))
            assert [len(out) for out in stream(make(batches))] == [1, 2]


def test_one_batch_given_to_stream_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(dark(1)[0]))
    guard = Guard(backdoored, SimpleNamespace(run=list))
    path = tmp_path / "a.png"
    with path.open("rb") as file:
        for item in (
            str(path),
            path,
            path.read_bytes(),
            bytearray(3),
            file,
            io.BytesIO(),
            Image.new("L", (3, 3)),
            {},
            3,
        ):
            for stream in (purifier().stream, guard.stream):
                with pytest.raises(
                    InputError, match=f"got {type(item).__name__}, expected an iterable of batches; .*run"
                ):
                    list(stream(item))
    for stream in (purifier().stream, guard.stream):  # images of an array, one by one
        assert len(list(stream(dark(2)))) == 2


def test_an_image_above_the_limit_is_purified_once_it_is_read(monkeypatch):
    monkeypatch.setitem(images.read.__kwdefaults__, "max_pixels", 99)
    monkeypatch.setitem(images.read_one.__kwdefaults__, "max_pixels", 99)
    rgb = dark(1, 10, 10)[0]
    run, guard = purifier().run, Guard(backdoored, SimpleNamespace(run=list))
    for item, kind in ((rgb, np.ndarray), (Image.fromarray(rgb), Image.Image), (encoded(rgb), Image.Image)):
        with pytest.raises(InputError, match=r"10 x 10 pixels.*read_one\(image, max_pixels=\.\.\.\)"):
            run(item)
        loaded = images.read_one(item, max_pixels=100)
        assert type(run(loaded)) is kind and [type(x) for x in run([loaded, loaded])] == [kind] * 2
        assert [d.label for d in guard.run([loaded])] == [d.label for d in guard.run(loaded)] == [1]
    with pytest.raises(InputError, match=r"10 x 10 pixels.*pass zipsdk\.images\.read\(batch, max_pixels=\.\.\.\)\[0\]"):
        run(rgb[None])
    out = run(images.read(rgb[None], max_pixels=100)[0])
    np.testing.assert_array_equal(out[0], run(images.read_one(rgb, max_pixels=100)))


def test_torch_is_not_needed_for_arrays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    batch = noise_images(1, 16, 20)
    assert purifier().run(batch).shape == batch.shape
