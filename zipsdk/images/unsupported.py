"""Describe objects that are not read as images or as batches, and what to pass instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zipsdk.errors import InputError
from zipsdk.images.array_views import type_name


def describe_unsupported(item: Any) -> str:
    """Describe an object of a type that is not read, and what to pass instead."""
    kind = type_name(item)
    if kind.startswith("torch.utils.data."):
        hint = (
            "pass a DataLoader to stream, which takes its batches one by one; where it yields (images, labels), "
            "stream(images for images, _ in loader)"
        )
    elif isinstance(item, Iterator):
        hint = "pass it to stream, which takes batches one by one; list(x) makes one batch of single images"
    elif hasattr(item, "__cuda_array_interface__"):
        hint = "copy it to the CPU first, such as by x.get() or x.copy_to_host()"
    elif isinstance(item, (list, tuple)):
        hint = "pass one list of single images, or a whole array: np.asarray(x, np.uint8) where x is 0..255"
    elif isinstance(item, Mapping):
        hint = "pass list(x.values())"
    elif isinstance(item, Iterable):
        hint = "pass list(x), or pass batches that do not fit into memory to stream"
    else:
        hint = "pass one of these"
    return (
        f"got a {kind}, expected an array or tensor, a PIL image, a path, the content of an image file, an open binary "
        f"file or a list of these; {hint}"
    )


def check_batches(batches: Any) -> None:
    """Check the argument of a `stream`.

    Raises:
        InputError: it is no iterable of batches; a path is an iterable of letters, and a file one of lines.
    """
    single = isinstance(batches, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)) or hasattr(batches, "read")
    if single or not isinstance(batches, Iterable):
        raise InputError(
            f"batches: got {type(batches).__name__}, expected an iterable of batches; for one batch use run"
        )
