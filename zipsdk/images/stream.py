"""Read ranges of a file and inserted bytes as one file, without copying."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, BinaryIO

#: A range of the source (start, length), or bytes to insert.
Part = tuple[int, int] | bytes


class Splice(io.RawIOBase):
    """Read parts of a file as one seekable file; nothing else may read `source` in the meantime."""

    def __init__(self, source: BinaryIO, parts: Iterable[Part]):
        super().__init__()
        self._source = source
        self._parts: list[Part] = []
        self._starts: list[int] = []
        self._at = self._size = 0
        for part in parts:
            length = len(part) if isinstance(part, bytes) else part[1]
            if length > 0:
                self._parts.append(part)
                self._starts.append(self._size)
                self._size += length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek: got position {base + offset}, expected at least 0")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        view = memoryview(buffer).cast("B")
        i = bisect_right(self._starts, self._at) - 1
        part, skip = self._parts[i], self._at - self._starts[i]
        if isinstance(part, bytes):
            data = part[skip : skip + len(view)]
        else:
            self._source.seek(part[0] + skip)
            data = self._source.read(min(part[1] - skip, len(view)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class Ranges:
    """Collect parts in order; adjacent ranges of the source are merged."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def keep(self, start: int, length: int) -> None:
        """Append `length` bytes of the source, beginning at `start`."""
        last = self.parts[-1] if self.parts else b""
        if isinstance(last, tuple) and sum(last) == start:
            self.parts[-1] = (last[0], last[1] + length)
        else:
            self.parts.append((start, length))

    def insert(self, data: bytes) -> None:
        """Append bytes that are not in the source."""
        self.parts.append(data)

    def open(self, source: BinaryIO) -> BinaryIO:
        """Open the parts as a buffered file."""
        return io.BufferedReader(Splice(source, self.parts))


def size_of(source: BinaryIO) -> int:
    """Return the bytes of a seekable file, and seek to its start."""
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    return size
