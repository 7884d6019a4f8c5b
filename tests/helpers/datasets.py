"""Write small data sets as archives and folders of PNG files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """Encode an image of one color as PNG."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_archive(path: Path, images: dict[str, bytes]) -> Path:
    """Write files to a ZIP archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, images: dict[str, bytes]) -> Path:
    """Write files to a folder."""
    for name, data in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
