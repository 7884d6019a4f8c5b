"""Read images from folders and zip archives."""

from __future__ import annotations

import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zipsdk.errors import InputError
from zipsdk.images import SUFFIXES, read_one
from zipsdk.types import U8

#: Maximum number of folders in a source, because nested links multiply them.
MAX_FOLDERS = 1_000_000


def read_files(source: str | Path) -> Iterator[bytes]:
    """Yield the contents of the image files in a zip archive or a folder, in the order of their names.

    Raises:
        InputError: the source is neither; or see `walk` and `entries`.
    """
    source = Path(source)
    if source.is_dir():
        for name in sorted(n for n in walk(source) if is_image(n)):
            yield (source / name).read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in entries(archive, source) if is_image(n)):
                yield archive.read(name)
    else:
        raise InputError(f"{source}: got neither a folder nor a zip archive; check the path")


def is_image(name: str) -> bool:
    """Tell whether a name has the suffix of an image that is read, and is not hidden."""
    return Path(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Tell whether a path with ``/`` has a part that starts with a dot, or lies in macOS's folder of metadata."""
    return name.startswith("__MACOSX/") or "/." in f"/{name}"


def walk(root: Path) -> Iterator[str]:
    """Yield the names of files and folders in a folder, relative to it; the names of folders end in "/".

    Links are followed, except links to a folder that contains them.

    Raises:
        InputError: a broken link has the name of an image, or there are too many folders.
    """
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    left = MAX_FOLDERS
    while pending:
        left -= 1
        if left < 0:
            raise InputError(f"{root}: got more than {MAX_FOLDERS} folders, expected fewer; remove links to folders")
        folder, prefix, ancestors = pending.pop()
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        if identity in ancestors:
            warnings.warn(
                f"{folder}: got a link to a folder that contains it; it is not followed", UserWarning, stacklevel=2
            )
            continue
        for path in folder.iterdir():
            name = prefix + path.name
            if path.is_dir():
                if not is_hidden(f"{name}/"):
                    yield f"{name}/"
                    pending.append((path, f"{name}/", ancestors | {identity}))
            elif path.is_file():
                yield name
            elif path.is_symlink() and is_image(name):
                raise InputError(
                    f"{path}: got a broken link, expected an image; copy the file there or remove the link"
                )


def entries(archive: zipfile.ZipFile, source: Path) -> Iterator[str]:
    """Yield the names of the entries of an archive.

    Raises:
        InputError: an entry is a link, whose content is only the name of its target.
    """
    for entry in archive.infolist():
        if stat.S_ISLNK(entry.external_attr >> 16) and not is_hidden(entry.filename):
            raise InputError(
                f"{source}: got the link {entry.filename}, expected files and folders; "
                "make the archive again with the files in place of the links"
            )
        yield entry.filename


def decode(image: bytes | U8, side: int | None = None) -> U8:
    """Decode the content of a file or an array to uint8 (H, W, 3) with `read_one`; resize it to side x side if given.

    Raises:
        ImageReadError: the image cannot be read.
    """
    rgb = read_one(image).rgb
    if side and rgb.shape[:2] != (side, side):
        rgb = np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC))
    return rgb


def read_sample(source: Path, limit: int, side: int | None) -> list[U8]:
    """Read up to `limit` images spread evenly over the source, uint8 (H, W, 3); crop the center to `side` x `side`.

    Raises:
        InputError: the source has no images.
        ImageReadError: an image cannot be read.
    """
    files = list(read_files(source))
    if not files:
        raise InputError(f"{source}: got no image, expected at least one ({', '.join(sorted(SUFFIXES))})")
    out = []
    for data in files[:: max(1, len(files) // limit)][:limit]:
        x = decode(data)
        height, width = x.shape[:2]
        if side and min(height, width) > side:
            top, left = (height - side) // 2, (width - side) // 2
            x = x[top : top + side, left : left + side].copy()
        out.append(x)
    return out
